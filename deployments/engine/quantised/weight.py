"""Hold a quantised weight in one of three formats.

int8 and nf4 are bitsandbytes' own formats, so that an adapter trained on such a base serves on
exactly that base; fp8 is made when the base is loaded. The product here is the twin of the kernels'
(kernels/quantised_product.py): torch's, by the dequantised weight.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F

from deployments.engine.host_memory import numbers_on
from deployments.engine.quantised.formats import (
    BLOCK,
    INVERSE_127,
    NF4_CODE,
    quantise_fp8,
    quantise_int8,
    quantise_nf4,
)

Kind = Literal["int8", "nf4", "fp8"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class QuantisedWeight:
    """Stand for a weight (out, in): values by row, and factors in float32 of rows or blocks."""

    kind: ClassVar[Kind]
    _dtype: ClassVar[torch.dtype]
    _dims: ClassVar[int] = 1  # of the factors

    def __init__(self, values: torch.Tensor, factors: torch.Tensor) -> None:
        _check(values, 2, self._dtype, f"{self.kind} values")
        _check(factors, self._dims, torch.float32, f"factors of {self.kind}")
        if len(factors) != len(values):
            raise ValueError(f"{len(values)} rows of {self.kind} have {len(factors)} factors")
        self.values, self.factors = values.contiguous(), factors.contiguous()

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.factors.nbytes

    def to(self, device: torch.device | str) -> Self:
        """Return the same weight on a device."""
        return type(self)(self.values.to(device), self.factors.to(device))

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """Return (out, in): computed in float32, then rounded to `dtype`."""
        raise NotImplementedError

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ W.T (T, out) of x (T, in), in the dtype of x."""
        return F.linear(x, self.dequantised(x.dtype))


class Int8Weight(QuantisedWeight):
    """Hold W = values * absmax / 127, bitsandbytes' LLM.int8 without outliers of x.

    Args:
        values: int8 (out, in), bitsandbytes' `CB` or `weight`.
        factors: absmax (out,), bitsandbytes' `SCB`.
    """

    kind = "int8"
    _dtype = torch.int8

    @property
    def absmax(self) -> torch.Tensor:
        return self.factors

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.values * self.factors[:, None]).mul_(INVERSE_127).to(dtype)


class Fp8Weight(QuantisedWeight):
    """Hold W = values * scales.

    Args:
        values: float8_e4m3fn (out, in).
        factors: scales (out,).
    """

    kind = "fp8"
    _dtype = torch.float8_e4m3fn

    @property
    def scales(self) -> torch.Tensor:
        return self.factors

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return self.values.float().mul_(self.factors[:, None]).to(dtype)


class Nf4Weight(QuantisedWeight):
    """Hold W = NF4_CODE[codes] * absmax, one absmax for each 64 neighbours of a row.

    Args:
        values: uint8 (out, in / 2), as bitsandbytes packs: the upper half is the first of two.
        factors: absmax (out, in / 64). One that is doubly quantised goes through
            `formats.nested_absmax` first.
    """

    kind = "nf4"
    _dtype = torch.uint8
    _dims = 2

    def __init__(self, values: torch.Tensor, factors: torch.Tensor) -> None:
        super().__init__(values, factors)
        if self.values.shape[1] * 2 != self.factors.shape[1] * BLOCK:
            raise ValueError(
                f"nf4 values {tuple(values.shape)} do not go with absmax {tuple(factors.shape)}"
            )

    @classmethod
    def from_bitsandbytes(
        cls, packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, int]
    ) -> Self:
        """Take bitsandbytes' `weight` (n, 1), and its absmax (out * in / 64,) in float32.

        Raises:
            ValueError: blocks of 64 do not divide a row, or the sizes do not fit together.
        """
        rows, columns = shape
        check_columns(columns)
        if packed.numel() * 2 != rows * columns or absmax.numel() * BLOCK != rows * columns:
            raise ValueError(
                f"a weight {shape} in nf4 has {rows * columns // 2} bytes and "
                f"{rows * columns // BLOCK} absmax; found {packed.numel()} and {absmax.numel()}"
            )
        return cls(packed.reshape(rows, -1), absmax.reshape(rows, -1))

    @property
    def absmax(self) -> torch.Tensor:
        return self.factors

    @property
    def shape(self) -> tuple[int, int]:
        rows, half = self.values.shape
        return rows, half * 2

    def codes(self) -> torch.Tensor:
        """Return the codes uint8 (out, in)."""
        return torch.stack([self.values >> 4, self.values & 15], -1).flatten(1)

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        table = numbers_on(self.device, NF4_CODE)
        blocks = table[self.codes().int()].view(*self.factors.shape, BLOCK)
        return blocks.mul_(self.factors[..., None]).flatten(1).to(dtype)


def check_columns(columns: int) -> None:
    """Raises ValueError: nf4 cannot hold rows of so many inputs."""
    if columns % BLOCK:
        raise ValueError(
            f"nf4 takes layers with a multiple of {BLOCK} inputs, and one has {columns}: "
            "set quantization: int8 or none"
        )


def quantise(weight: torch.Tensor, kind: Kind) -> QuantisedWeight:
    """Quantise a weight (out, in), where it lies.

    int8 and nf4 give bitsandbytes' values; int8 rounds the weight to float16 first, as it does.

    Raises:
        ValueError: the weight is not finite (in float16, for int8), or nf4 cannot hold its rows.
    """
    if kind == "int8":
        return Int8Weight(*quantise_int8(weight))
    if kind == "fp8":
        return Fp8Weight(*quantise_fp8(weight))
    rows, columns = weight.shape
    check_columns(columns)
    return Nf4Weight.from_bitsandbytes(*quantise_nf4(weight), (rows, columns))


def stacked(weights: Sequence[QuantisedWeight]) -> QuantisedWeight:
    """Return the rows of several weights of one kind as one weight; one alone as it is.

    Raises:
        ValueError: the kinds differ.
    """
    first = weights[0]
    if len(weights) == 1:
        return first
    if len({weight.kind for weight in weights}) > 1:
        kinds = ", ".join(weight.kind for weight in weights)
        raise ValueError(f"one product cannot have weights of several kinds: {kinds}")
    return type(first)(
        torch.cat([weight.values for weight in weights]),
        torch.cat([weight.factors for weight in weights]),
    )


def _check(tensor: torch.Tensor, dims: int, dtype: torch.dtype, what: str) -> None:
    if tensor.dim() != dims or tensor.dtype != dtype:
        raise ValueError(
            f"{what} are {dtype} of {dims} dimensions, not {tensor.dtype} {tuple(tensor.shape)}"
        )
