"""Find kernels that read or write too early, in Triton's interpreter.

On a GPU a kernel begins while those before it still run (kernels/triton_overlap.py). What it reads
before it waits, none of them may write; and it may write nothing before it waits. Whether an answer
shows such a fault there depends on the time that kernels take; here kernels run one after another,
and the addresses that each reads and writes are compared.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from deployments.engine import kernels

# Operators of torch that launch nothing: they make memory, or another view of it.
_LAUNCH_NOTHING = frozenset(
    "_local_scalar_dense _reshape_alias _unsafe_view alias as_strided detach empty empty_like "
    "empty_strided expand lift_fresh new_empty new_empty_strided permute select slice split "
    "split_with_sizes squeeze t transpose unbind unsqueeze view".split()
)

# The builder's methods that read or write memory: where pointers and mask are among the arguments,
# and whether it writes.
_ACCESSES = (
    ("create_masked_load", 0, 1, False),
    ("create_masked_store", 0, 2, True),
    ("create_atomic_rmw", 1, 3, True),
)


@dataclass
class _Launch:
    """What one kernel does, as addresses of two bytes each."""

    name: str
    waits: bool  # itself; others begin when all before them have ended
    has_waited: bool = False  # the program that runs now
    has_waited_once: bool = False  # any of its programs
    next_begins_early: bool = False  # before this one has waited
    read_early: list[np.ndarray] = field(default_factory=list)
    written: list[np.ndarray] = field(default_factory=list)
    writes_early: bool = False

    def note(self, pointers: Any, mask: Any, *, is_write: bool) -> None:
        there = np.broadcast_to(mask.data, pointers.data.shape)
        addresses = np.unique(pointers.data[there].astype(np.int64) // 2)
        is_early = self.waits and not self.has_waited
        if is_write:
            self.written.append(addresses)
            self.writes_early |= is_early and len(addresses) > 0
        elif is_early:
            self.read_early.append(addresses)

    def wait(self) -> None:
        self.has_waited = self.has_waited_once = True


class Overlaps(TorchDispatchMode):
    """Follow the launches, torch's own too, and list in `problems` what is done too early.

    num_early: launches that read something before they wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: set[str] = set()
        self.num_early = 0
        self.own: _Launch | None = None
        self._running: list[_Launch] = []  # that may not have ended when the next one begins

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.own is None and name not in _LAUNCH_NOTHING:
            launch = _Launch(f"torch.{name}", waits=False)
            made = result if isinstance(result, tuple | list) else [result]
            launch.written += [_addresses(each) for each in made if isinstance(each, torch.Tensor)]
            self._running = [launch]
        return result

    def end(self, launch: _Launch) -> None:
        """Compare what the launch did with those that might still have run."""
        if not launch.waits:
            self._running = [launch]
            return
        early = _together(launch.read_early)
        self.num_early += len(early) > 0
        for other in self._running:
            if len(np.intersect1d(early, _together(other.written))):
                self.problems.add(f"{launch.name} reads what {other.name} may not have written yet")
        if launch.writes_early:
            self.problems.add(f"{launch.name} writes before it waits")
        if not launch.has_waited_once:
            self.problems.add(f"{launch.name} never waits")
        self._running = [*self._running, launch] if launch.next_begins_early else [launch]


def _addresses(made: torch.Tensor) -> np.ndarray:
    """Return all from the first to the last."""
    steps = zip(made.shape, made.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps) * made.element_size()
    first = made.data_ptr()
    return np.arange(first // 2, (first + last) // 2 + 2) if made.numel() else np.empty(0, np.int64)


def _together(addresses: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.int64)


@contextlib.contextmanager
def watched_overlaps() -> Iterator[Overlaps]:
    """Watch what is launched inside, as it would be on a GPU where kernels overlap."""
    watch = Overlaps()
    # All of them now: one that were imported inside would keep what is patched.
    names = [each.name for each in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    run, call = InterpretedFunction.run, InterpretedFunction.__call__
    begin = InterpreterBuilder.set_grid_idx

    def watched_run(self: Any, *args: Any, **options: Any) -> Any:
        launch = watch.own = _Launch(self.fn.__name__, waits="OVERLAPS" in options)
        try:
            result = run(self, *args, **options)
        finally:
            watch.own = None
        watch.end(launch)
        return result

    def watched_call(self: Any, *args: Any, **options: Any) -> Any:
        if watch.own is not None and self.fn.__name__ == "after_earlier_kernels":
            watch.own.wait()
            return None
        if watch.own is not None and self.fn.__name__ == "launch_next":
            watch.own.next_begins_early |= not watch.own.has_waited
            return None
        return call(self, *args, **options)

    def noting(name: str, pointers_at: int, mask_at: int, is_write: bool) -> Any:
        """Return the builder's method of this name, which notes what these arguments say."""
        method = getattr(InterpreterBuilder, name)

        def noted(self: Any, *args: Any, **options: Any) -> Any:
            if watch.own is not None:
                watch.own.note(args[pointers_at], args[mask_at], is_write=is_write)
            return method(self, *args, **options)

        return noted

    def watched_begin(self: Any, *place: int) -> Any:
        if watch.own is not None:
            watch.own.has_waited = False
        return begin(self, *place)

    with pytest.MonkeyPatch.context() as patch, watch:
        for module in modules:
            if hasattr(module, "overlaps"):
                patch.setattr(module, "overlaps", lambda device: True)
        patch.setattr(InterpretedFunction, "run", watched_run)
        patch.setattr(InterpretedFunction, "__call__", watched_call)
        for name, pointers_at, mask_at, is_write in _ACCESSES:
            patch.setattr(InterpreterBuilder, name, noting(name, pointers_at, mask_at, is_write))
        patch.setattr(InterpreterBuilder, "set_grid_idx", watched_begin)
        yield watch
