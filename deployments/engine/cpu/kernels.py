"""The pieces of a decode step on a CPU: norms, bytes, products, LoRA, attention.

Every function runs without the interpreter and takes addresses, since a step works on hundreds of
weights. `fastmath` leaves NaN and infinity alone: an adapter that makes them is refused by them.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numba import carray, config, float32, njit

from deployments.engine.cpu.intrinsics import array_at, nearest, power_of_two
from deployments.engine.cpu.tiles import largest, prefetch


def _own_cache() -> str:
    """Return the folder of compiled code of exactly these sources: Numba looks at one file's age
    alone, whatever that file imports."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return str(platformdirs.user_cache_path("polyclinic") / "compiled" / digest[:16])


if not config.CACHE_DIR:  # NUMBA_CACHE_DIR
    config.CACHE_DIR = _own_cache()

_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_FAST = {"reassoc", "nsz", "arcp", "contract", "afn"}
compiled: Any = njit(**_OPTIONS, fastmath=_FAST)
cached: Any = njit(**_OPTIONS, fastmath=_FAST, cache=True)
# Vectors of comparisons need the promise that nothing is NaN. Where something is, the states are
# NaN already: what such a function returns then does not matter.
_compiled_finite: Any = njit(**_OPTIONS, fastmath=True)


@compiled
def floats(address: int, count: int) -> Any:
    return carray(array_at(address), (count,), float32)


@compiled
def fetch(address: int, size: int) -> None:
    """Ask for memory that is read soon."""
    for i in range(0, size, 64):
        prefetch(address + i)


@compiled
def zero(x: Any) -> None:
    for i in range(len(x)):
        x[i] = float32(0.0)


@_compiled_finite
def exp(x: Any) -> Any:
    """Return e to the x, to 2e-7 of it (Cephes' expf: a polynomial after a power of two)."""
    x = min(max(x, float32(-87.0)), float32(88.0))
    exponent = nearest(x * float32(1.44269504))
    whole = float32(exponent)
    rest = x - whole * float32(0.693359375) + whole * float32(2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * rest + float32(1.3981999507e-3)
    p = p * rest + float32(8.3334519073e-3)
    p = p * rest + float32(4.1665795894e-2)
    p = p * rest + float32(1.6666665459e-1)
    p = p * rest + float32(5.0000001201e-1)
    p = p * rest * rest + rest + float32(1.0)
    return p * power_of_two(exponent)


@_compiled_finite
def gate(values: Any, gates: Any) -> None:
    """Multiply values by silu(gates) in place."""
    for i in range(len(values)):
        values[i] *= gates[i] / (float32(1.0) + exp(-gates[i]))


@compiled
def rms_norm(x: Any, weight: Any, out: Any, size: int, eps: float) -> None:
    total = float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    inverse = float32(1.0) / np.sqrt(total / float32(size) + eps)
    for i in range(size):
        out[i] = x[i] * inverse * weight[i]


@compiled
def rotate(x: Any, cos: Any, sin: Any, size: int, scale: float) -> None:
    """Apply RoPE to x (size,) in place and multiply by `scale`; Rope (kernels/ops.py) has the form
    of cos and sin."""
    half = size // 2
    for i in range(half):
        first, second = x[i], x[i + half]
        x[i] = (first * cos[i] + second * sin[i]) * scale
        x[i + half] = (second * cos[i + half] + first * sin[i + half]) * scale


@_compiled_finite
def softmax(address: int, first: int, stop: int, span: int) -> float:
    """Turn scores [first, stop) of `span` into exponentials and return their sum; the others
    become next to nothing."""
    scores = floats(address, span)
    for i in range(first):
        scores[i] = float32(-3e38)
    for i in range(stop, span):
        scores[i] = float32(-3e38)
    most = largest(address, span)
    total = float32(0.0)
    for i in range(span):
        value = exp(scores[i] - most)
        scores[i] = value
        total += value
    return total
