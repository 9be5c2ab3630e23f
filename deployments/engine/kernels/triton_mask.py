"""Block logits by a mask of bits with a Triton kernel. Imported only where Triton runs."""

import torch
import triton
import triton.language as tl

_COLUMNS = 4096


@triton.jit(do_not_specialize=["n"])
def _mask_kernel(logits, bits, places, n, V, stride, words, BLOCK: tl.constexpr):
    """Block some of one row's logits. Program (i, block)."""
    i = tl.program_id(0)
    line = logits + tl.load(places + i).to(tl.int64) * stride
    mask = bits + tl.load(places + n + i).to(tl.int64) * words
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(mask + column // 32, mask=column < V, other=0)
    is_blocked = ((word >> (column % 32)) & 1) == 0
    tl.store(line + column, -float("inf"), mask=is_blocked & (column < V))


def mask_logits_(logits: torch.Tensor, bits: torch.Tensor, places: torch.Tensor) -> None:
    """Do what ops.mask_logits_ does."""
    num_places, columns = places.shape[1], logits.shape[1]
    _mask_kernel[(num_places, triton.cdiv(columns, _COLUMNS))](
        logits, bits, places, num_places, columns, logits.stride(0), bits.stride(0),
        BLOCK=_COLUMNS,
    )  # fmt: skip
