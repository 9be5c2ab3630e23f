"""Memory of the CPU in pages of 2 MiB where the system has them: a step reads all weights once."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch

_SIZE = 2**21


def huge_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros on the CPU. Pages that nobody writes to take no memory."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(*shape, dtype=dtype)
    is_small = count * dtype.itemsize < _SIZE // 4
    if is_small or not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux has it
        return torch.zeros(*shape, dtype=dtype)
    # Shared memory, which is mmap's default, has small pages. What is not used takes no memory.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    size = -(-count * dtype.itemsize // _SIZE) * _SIZE + _SIZE
    memory = mmap.mmap(-1, size, flags=flags)
    with contextlib.suppress(OSError):  # a system without them refuses
        memory.madvise(mmap.MADV_HUGEPAGE)
    offset = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % _SIZE
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(*shape)
