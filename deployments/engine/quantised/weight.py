"""Hold a quantised weight in one of three formats, and multiply by it.

int8 and nf4 are bitsandbytes' own formats, so that an adapter trained on such a base serves on
exactly that base; fp8 is made when the base is loaded. A product runs in a Triton kernel where
those run; elsewhere in its twin, torch's product by the dequantised weight.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, Self, get_args

import torch
import torch.nn.functional as F

from deployments.engine.kernels.backend import are_fused
from deployments.engine.quantised.formats import (
    BLOCK,
    INVERSE_127,
    NF4_CODE,
    codes_of,
    packed_codes,
    quantise_fp8,
    quantise_int8,
    quantise_nf4,
)

Kind = Literal["int8", "nf4", "fp8"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class QuantisedWeight(Protocol):
    """Stand for a weight (out, in) that is kept quantised."""

    kind: Kind

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""

    @property
    def device(self) -> torch.device: ...

    @property
    def num_bytes(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """Return the same weight on a device."""

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """Return (out, in): computed in float32, then rounded to `dtype`."""

    def product(
        self,
        x: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x @ W.T + bias (T, out) of x (T, in), in the dtype of x.

        A residual (T, out) is added to in place, and returned.
        """


class _Rows:
    """Hold values (out, in) of one byte each, and a number of float32 (out,) for each row."""

    kind: Kind

    def __init__(self, values: torch.Tensor, factors: torch.Tensor) -> None:
        _check(values, 2, self._dtype(), f"{self.kind} values")
        _check(factors, 1, torch.float32, f"factors of {self.kind} rows")
        if len(factors) != len(values):
            raise ValueError(f"{len(values)} rows of {self.kind} have {len(factors)} factors")
        self.values, self._factors = values.contiguous(), factors.contiguous()

    @staticmethod
    def _dtype() -> torch.dtype:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self._factors.nbytes

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.values.to(device), self._factors.to(device))

    def product(
        self,
        x: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return _product(self, x, self.values, self._factors, bias=bias, residual=residual)

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        raise NotImplementedError


class Int8Weight(_Rows):
    """Hold W = values * absmax / 127, bitsandbytes' LLM.int8 without outliers of x.

    Args:
        values: int8 (out, in), bitsandbytes' `CB` or `weight`.
        absmax: float32 (out,), bitsandbytes' `SCB`.
    """

    kind: Kind = "int8"

    @staticmethod
    def _dtype() -> torch.dtype:
        return torch.int8

    @property
    def absmax(self) -> torch.Tensor:
        return self._factors

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.values * self.absmax[:, None]).mul_(INVERSE_127).to(dtype)


class Fp8Weight(_Rows):
    """Hold W = values * scales.

    Args:
        values: float8_e4m3fn (out, in).
        scales: float32 (out,).
    """

    kind: Kind = "fp8"

    @staticmethod
    def _dtype() -> torch.dtype:
        return torch.float8_e4m3fn

    @property
    def scales(self) -> torch.Tensor:
        return self._factors

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.values.float().mul_(self.scales[:, None])).to(dtype)


class Nf4Weight:
    """Hold W = NF4_CODE[codes] * absmax, one absmax for each 64 neighbours of a row.

    Of a row's block of 64, byte j holds the code of input j in its upper half and that of input
    j + 32 in its lower half, so that a kernel reads neighbouring inputs. absmax lies by block, then
    by row, so that it reads neighbouring rows.

    Args:
        values: uint8 (out, in / 2), in that order. `from_bitsandbytes` takes bitsandbytes' order.
        absmax: float32 (in / 64, out).
    """

    kind: Kind = "nf4"

    def __init__(self, values: torch.Tensor, absmax: torch.Tensor) -> None:
        _check(values, 2, torch.uint8, "nf4 values")
        _check(absmax, 2, torch.float32, "absmax of nf4")
        rows, half = values.shape
        if absmax.shape != (half * 2 // BLOCK, rows):
            raise ValueError(f"nf4 values {tuple(values.shape)} with absmax {tuple(absmax.shape)}")
        self.values, self.absmax = values.contiguous(), absmax.contiguous()

    @classmethod
    def from_bitsandbytes(
        cls, packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, int]
    ) -> Self:
        """Take bitsandbytes' `weight` (n, 1), and its absmax (out * in / 64,) in float32.

        A doubly quantised absmax goes through `formats.nested_absmax` first.

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
        by_input = codes_of(packed.view(torch.uint8).view(rows, -1))
        return cls(packed_codes(by_input), absmax.view(rows, -1).t())

    @property
    def shape(self) -> tuple[int, int]:
        rows, half = self.values.shape
        return rows, half * 2

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.absmax.nbytes

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.values.to(device), self.absmax.to(device))

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        rows, columns = self.shape
        halves = self.values.view(rows, -1, BLOCK // 2)
        codes = torch.cat([halves >> 4, halves & 15], -1)  # (out, blocks, 64)
        table = torch.tensor(NF4_CODE, device=self.device)
        blocks = table[codes.int()].mul_(self.absmax.t()[..., None])
        return blocks.view(rows, columns).to(dtype)

    def product(
        self,
        x: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return _product(self, x, self.values, self.absmax, bias=bias, residual=residual)


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
    if isinstance(first, Nf4Weight):
        four = [weight for weight in weights if isinstance(weight, Nf4Weight)]
        if len(four) == len(weights):
            return Nf4Weight(
                torch.cat([weight.values for weight in four]),
                torch.cat([weight.absmax for weight in four], 1),
            )
    elif isinstance(first, _Rows):
        rows = [weight for weight in weights if isinstance(weight, type(first))]
        if len(rows) == len(weights):
            return type(first)(
                torch.cat([weight.values for weight in rows]),
                torch.cat([weight._factors for weight in rows]),
            )
    kinds = ", ".join(weight.kind for weight in weights)
    raise ValueError(f"one product cannot have weights of several kinds: {kinds}")


def _product(
    weight: QuantisedWeight,
    x: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    if are_fused(x.device.type):
        from deployments.engine.kernels.quantised_product import product

        return product(x, values, factors, weight.kind, bias=bias, residual=residual)
    y = F.linear(x, weight.dequantised(x.dtype), bias)
    return y if residual is None else residual.add_(y)


def _check(tensor: torch.Tensor, dims: int, dtype: torch.dtype, what: str) -> None:
    if tensor.dim() != dims or tensor.dtype != dtype:
        raise ValueError(
            f"{what} are {dtype} of {dims} dimensions, not {tensor.dtype} {tuple(tensor.shape)}"
        )
