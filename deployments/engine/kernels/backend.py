"""Say where the Triton kernels run. Their modules import triton, so they are imported late."""

import functools
import importlib.util
import os
from typing import Any

import torch

_INTERPRET = "TRITON_INTERPRET"


@functools.cache
def are_fused(device_type: str) -> bool:
    """Return whether the Triton kernels, and so CUDA graphs, run on this type of device."""
    runs = device_type == "cuda" or os.environ.get(_INTERPRET) == "1"
    return runs and importlib.util.find_spec("triton") is not None


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Return whether a kernel may begin while the one before it ends (programmatic dependent
    launch, from Hopper on): each waits itself before it reads what others wrote."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(device: torch.device) -> dict[str, Any]:
    """Return what a launch of a kernel that waits itself takes."""
    return {"launch_pdl": True} if overlaps(device) else {}


@functools.cache
def counters(kernel: str, count: int, device: torch.device) -> torch.Tensor:
    """Return zeros for the launches of one kernel, which each leaves as zeros: one launch at a time
    uses them."""
    return torch.zeros(count, dtype=torch.int32, device=device)


@functools.cache
def shared_bytes(device: torch.device) -> int | None:
    """Return the shared memory that a program may have; None in Triton's interpreter."""
    if device.type != "cuda":
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)
