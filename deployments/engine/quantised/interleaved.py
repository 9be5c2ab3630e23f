"""Store a quantised weight in the order in which the registers of a GPU's matrix units take it.

Of 64 inputs, a thread of a warp multiplies 16: for the instructions m16n8k16 and wgmma (PTX ISA,
"Matrix fragments"), those with the same (k % 8) // 2. They lie side by side here, so that a thread
reads its 16 with one load, and what it has read is the fragment.
"""

from dataclasses import dataclass

import torch

from deployments.engine.quantised.formats import BLOCK
from deployments.engine.quantised.weight import Kind, Nf4Weight, QuantisedWeight


@dataclass(frozen=True, slots=True)
class InterleavedWeight:
    """Hold a quantised weight for the kernels.

    values: (out, width). Byte c * 16 + q * 4 + h * 2 + p of 64 is of input q * 16 + h * 8 + c * 2 +
        p; of nf4 its upper half is of that input of 128, its lower half of the input 64 behind it.
        Rows are filled up with zeros.
    factors: float32 (out,); of nf4 (blocks, out), a zero block at the end if their number is odd.
    shape: (out, in) of the weight.
    """

    kind: Kind
    values: torch.Tensor
    factors: torch.Tensor
    shape: tuple[int, int]

    @property
    def device(self) -> torch.device:
        return self.values.device


def interleaved(weight: QuantisedWeight) -> InterleavedWeight:
    """Return the weight in the order of the kernels, on its device."""
    factors = weight.factors
    if isinstance(weight, Nf4Weight):
        codes = _filled(weight.codes(), 2 * BLOCK)
        upper, lower = codes.view(len(codes), -1, 2, BLOCK).unbind(2)
        values = ((upper << 4) | lower).flatten(1)
        factors = _filled(factors, 2).t().contiguous()
    else:
        values = _filled(weight.values.view(torch.uint8), BLOCK)
    rows = len(values)
    in_order = values.view(rows, -1, 4, 2, 4, 2).permute(0, 1, 4, 2, 3, 5).reshape(rows, -1)
    return InterleavedWeight(weight.kind, in_order.view(weight.values.dtype), factors, weight.shape)


def _filled(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return rows filled up with zeros to a multiple of so many columns."""
    missing = -tensor.shape[1] % multiple
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor
