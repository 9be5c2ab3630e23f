"""Keep tensors in the host's memory: in pages of 2 MiB, or on their way to a GPU and back.

A step on a CPU reads all weights once, which large pages speed up. `torch.tensor(...,
device="cuda")` and `.to("cuda")` from ordinary memory wait until every kernel launched before them
has ended: the host then hands out a step's tokens late, and the device idles while the next step is
launched. So does `tensor[at] = number`, which makes a tensor of the number in the host's memory.
Pinned memory is copied without waiting.
"""

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


def send(host: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a tensor of the host to one on any device, without waiting for the device."""
    if target.device.type != "cpu":
        host = host.pin_memory()
    target.copy_(host, non_blocking=True)


def on_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a tensor of the host on a device; on a CPU the tensor itself."""
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def numbers_on(
    device: torch.device, numbers: Sequence[float] | Sequence[Sequence[float]]
) -> torch.Tensor:
    """Return numbers as a tensor on a device, in torch's default dtype for them."""
    return on_device(torch.tensor(numbers), device)


def set_at(tensor: torch.Tensor, at: tuple[torch.Tensor, ...], number: float) -> None:
    """Do `tensor[at] = number`, without waiting for the device."""
    tensor.index_put_(at, tensor.new_full((), number))


def on_its_way(tensor: torch.Tensor) -> torch.Tensor:
    """Return where a copy of a tensor on a GPU will be, once the device has come to it."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
