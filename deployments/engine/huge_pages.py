"""Memory of the CPU in pages of 2 MiB where the system has them: a step reads all weights once."""

import math
import mmap
from collections.abc import Sequence

import torch


def huge_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros on the CPU. Pages that nobody writes to take no memory."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(*shape, dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux; a system without them refuses
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
