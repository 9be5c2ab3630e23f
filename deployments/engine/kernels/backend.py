"""Say where the Triton kernels run. Their modules import triton, so they are imported late."""

import functools
import importlib.util
import os

_INTERPRET = "TRITON_INTERPRET"


@functools.cache
def are_fused(device_type: str) -> bool:
    """Return whether the Triton kernels, and so CUDA graphs, run on this type of device."""
    runs = device_type == "cuda" or os.environ.get(_INTERPRET) == "1"
    return runs and importlib.util.find_spec("triton") is not None
