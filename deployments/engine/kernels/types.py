"""Define the plain data that the PyTorch and the Triton backend of the kernels share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK_M = 64  # queries of one program of the prefill kernel


@dataclass(frozen=True, slots=True)
class Expansion:
    """Hold the second half of a LoRA product: each row's shrunk x, not yet multiplied by its B.

    shrunk: (B, P, R).
    stacks: for each module, its first output column and its stack (N, R, columns); slot 0 is zeros.
    slots: (B,).
    """

    shrunk: torch.Tensor
    stacks: Sequence[tuple[int, torch.Tensor]]
    slots: torch.Tensor

    @property
    def rank(self) -> int:
        return self.shrunk.shape[2]


@dataclass(frozen=True, slots=True)
class Rope:
    """Hold a rotary position embedding: x * cos + (x with its halves swapped) * sin.

    cos, sin: (S, D), by position; the first half of sin carries the minus sign.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, positions: torch.Tensor) -> "Rope":
        """Return the rows (T, D) of these positions (T,)."""
        return Rope(self.cos[positions], self.sin[positions])

    def apply_rotary_(self, x: torch.Tensor) -> None:
        """Rotate x (T, heads, D) in place; token t is at row t of this table."""
        first, second = x.chunk(2, -1)
        swapped = torch.cat([second, first], -1).mul_(self.sin[:, None])
        x.mul_(self.cos[:, None]).add_(swapped)


@dataclass(frozen=True, slots=True)
class Segment:
    """Describe neighbouring query tokens of one prompt and the keys that they may attend to.

    first, count: the queries in the batch. position: of the first query among the keys.
    first_key, num_keys: in the tensor that holds the keys and values.
    """

    first: int
    count: int
    position: int
    first_key: int
    num_keys: int


def prompt_blocks(segments: Sequence[Segment], num_blocks: int | None = None) -> torch.Tensor:
    """Cut the segments into blocks of BLOCK_M queries, one for each program of the kernel.

    Returns:
        (n, 5) int32 on the host: first query, count, its position, first key, number of keys.
        Empty blocks are added up to `num_blocks`.
    """
    rows = BLOCK_M
    blocks = [
        (s.first + i, min(rows, s.count - i), s.position + i, s.first_key, s.num_keys)
        for s in segments
        for i in range(0, s.count, rows)
    ]
    if num_blocks is not None:
        blocks += [(0, 0, 0, 0, 0)] * (num_blocks - len(blocks))
    return torch.tensor(blocks, dtype=torch.int32)
