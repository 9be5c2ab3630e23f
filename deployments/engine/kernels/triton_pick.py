"""Pick the largest logit of each row with a Triton kernel. Imported only where Triton runs."""

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

_COLUMNS = 16384


@triton.jit
def _pick_kernel(
    logits, ends, blocks, rows, tokens, newest, V, stride, num_ends, BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Pick one row's token. Program (b)."""
    launch_next(OVERLAPS)
    b = tl.program_id(0)
    is_blocked = tl.load(blocks + b) > 0
    row = tl.load(rows + b)
    line = logits + b.to(tl.int64) * stride
    after_earlier_kernels(OVERLAPS)
    if is_blocked:
        for i in range(num_ends):
            tl.store(line + tl.load(ends + i), -float("inf"))
        tl.debug_barrier()
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    index = tl.arange(0, BLOCK)
    for first in range(0, V, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(line + i, mask=i < V, other=-float("inf")).to(tl.float32)
        x = tl.where(x != x, float("inf"), x)  # NaN is the largest, as torch has it
        index = tl.where(x > largest, i, index)
        largest = tl.maximum(x, largest)
    token = tl.min(tl.where(largest == tl.max(largest, 0), index, V), 0).to(tl.int64)
    tl.store(tokens + b, token)
    tl.store(newest + row, token)


def pick(
    logits: torch.Tensor,
    ends: torch.Tensor,
    blocks: torch.Tensor,
    rows: torch.Tensor,
    newest: torch.Tensor,
) -> torch.Tensor:
    """Return the first of each row's largest logits (B,), and store it in `newest` at `rows`.

    logits: (B, V), in which `ends` (E,) become minus infinity where `blocks` (B,) is not 0.
    """
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    _pick_kernel[(len(logits),)](
        logits, ends, blocks, rows, tokens, newest, logits.shape[1], logits.stride(0),
        len(ends), BLOCK=_COLUMNS, OVERLAPS=overlaps(logits.device), num_warps=16,
        **launch_options(logits.device),
    )  # fmt: skip
    return tokens
