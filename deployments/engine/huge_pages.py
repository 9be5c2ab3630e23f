"""Memory of the CPU in pages of 2 MiB where the system has them: a step reads all weights once."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch


def huge_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros on the CPU. Pages that nobody writes to take no memory."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(*shape, dtype=dtype)
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux has it
        return torch.zeros(*shape, dtype=dtype)
    # Shared memory, which is mmap's default, has small pages.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    with contextlib.suppress(OSError):  # a system without them refuses
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
