"""The device that a command trains, merges or answers on, and the memory it took there."""

import resource

import torch

from scripts.lora.errors import LoraError


def check_device(given: str | None) -> str:
    """Return `given`; for None return "cuda" where there is an NVIDIA GPU, else "cpu".

    Raises:
        LoraError: cuda was asked for and there is no GPU.
    """
    if given == "cuda" and not torch.cuda.is_available():
        raise LoraError("--device cuda: no NVIDIA GPU was found; leave it out, or give cpu")
    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def used_mib(device: str) -> float:
    """Return the memory in use on the whole GPU, by every process, MiB; 0 on the CPU."""
    if device == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def peak_memory(device: str, used_before_mib: float) -> dict[str, int]:
    """Return peaks in MiB.

    On the CPU `peak_memory_mib` is the process's; on a GPU it is that of PyTorch's tensors,
    `peak_reserved_mib` is what PyTorch took from the driver, and `device_rise_mib` how far the
    GPU's use is above `used_before_mib` (which counts other processes' changes too).
    """
    if device == "cpu":  # kibibytes on Linux
        return {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10}
    return {
        "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "peak_reserved_mib": round(torch.cuda.max_memory_reserved() / 2**20),
        "device_rise_mib": round(used_mib(device) - used_before_mib),
    }
