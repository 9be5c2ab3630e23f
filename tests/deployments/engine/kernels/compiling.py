"""Compile what a call launches for a GPU that need not be there, and launch nothing.

Triton's wheel has all that this takes; tensors are torch's fake ones, which have no storage.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from deployments.engine.kernels import (
    backend,
    quantised_product,
)

CUBIN_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True, slots=True)
class Gpu:
    """Name a GPU by its compute capability and the shared memory that a program may have."""

    name: str
    capability: tuple[int, int]
    shared_bytes: int


H200 = Gpu("H200", (9, 0), 232_448)
A100 = Gpu("A100", (8, 0), 166_912)
L4 = Gpu("L4", (8, 9), 101_376)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Hold what a program of a kernel takes: shared memory, registers of a thread, and the bytes of
    memory that a thread keeps numbers in for which it has no register."""

    name: str
    shared_bytes: int
    registers: int
    spilled_bytes: int


@contextlib.contextmanager
def compiling(gpu: Gpu) -> Iterator[list[Compiled]]:
    """Compile every kernel that is launched inside; the list has one item for each launch."""
    major, minor = gpu.capability
    architecture = 10 * major + minor
    target = GPUTarget("cuda", architecture, 32)
    there = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: architecture,  # Triton keeps kernels by the device's number
        get_current_stream=lambda device=None: 0,
    )
    properties = SimpleNamespace(shared_memory_per_block_optin=gpu.shared_bytes)
    compiled: list[Compiled] = []
    run: Any = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(_measured(run(self, *args, grid=grid, warmup=True, **options)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: gpu.capability)
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        patch.setattr(driver, "_active", there)
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(FakeTensor, "data_ptr", lambda self: 0)  # aligned, as torch's own are
        patch.setattr(FakeTensor, "__getitem__", _part)  # torch's own asks for CUDA
        _forget()
        try:
            with FakeTensorMode():
                yield compiled
        finally:
            _forget()


def _part(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """Return the view that integers and slices name."""
    for dim, own in reversed(list(enumerate(key if isinstance(key, tuple) else (key,)))):
        if isinstance(own, int):
            tensor = tensor.select(dim, own)
        else:
            start, stop, _ = own.indices(tensor.shape[dim])
            tensor = tensor.narrow(dim, start, stop - start)
    return tensor


def _forget() -> None:
    """Empty the caches of what is known of a device, or lies on it."""
    for cached in (
        backend.are_fused,
        backend.overlaps,
        backend.shared_bytes,
        quantised_product._table,
        backend.counters,
    ):
        cached.cache_clear()  # type: ignore[attr-defined]


def _measured(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = subprocess.check_output([CUBIN_TOOL, "-res-usage", file.name], text=True)
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    spilled = used["STACK"] + used["LOCAL"]
    return Compiled(kernel.metadata.name, kernel.metadata.shared, used["REG"], spilled)
