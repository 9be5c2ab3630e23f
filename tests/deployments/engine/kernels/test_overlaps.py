"""What is done too early is found: of kernels that copy one buffer to another."""

import pytest
import torch

from tests.deployments.engine.test_parity import INTERPRETED

if not INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1 and Triton", allow_module_level=True)

import triton
import triton.language as tl

from deployments.engine.kernels.triton_overlap import (
    after_earlier_kernels,
    before_the_next_kernel,
    launch_next,
)
from tests.deployments.engine.kernels.overlaps import watched_overlaps

SIZE = 16


@triton.jit
def _copy_kernel(
    source, target, N: tl.constexpr, READS_EARLY: tl.constexpr, WRITES_EARLY: tl.constexpr,
    HOLDS_NEXT: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    if not HOLDS_NEXT:
        launch_next(OVERLAPS)
    i = tl.arange(0, N)
    if READS_EARLY:
        numbers = tl.load(source + i)
        if WRITES_EARLY:
            tl.store(target + i, numbers)
    if HOLDS_NEXT:
        before_the_next_kernel(OVERLAPS)
    else:
        after_earlier_kernels(OVERLAPS)
    if not READS_EARLY:
        numbers = tl.load(source + i)
    if not WRITES_EARLY:
        tl.store(target + i, numbers)


def copy(
    source: torch.Tensor,
    target: torch.Tensor,
    *,
    reads_early: bool = False,
    writes_early: bool = False,
    holds_next: bool = False,
) -> None:
    _copy_kernel[(1,)](
        source, target, N=SIZE, READS_EARLY=reads_early, WRITES_EARLY=writes_early,
        HOLDS_NEXT=holds_next, OVERLAPS=True,
    )  # fmt: skip


def buffers() -> list[torch.Tensor]:
    return [torch.full((SIZE,), float(i)) for i in range(4)]


def test_what_no_kernel_writes_is_read_early() -> None:
    a, b, c, d = buffers()
    with watched_overlaps() as watch:
        copy(a, b)
        copy(c, d, reads_early=True)
    assert not watch.problems
    assert watch.num_early == 1
    assert torch.equal(d, c)


@pytest.mark.parametrize("holds_next", [False, True])
@pytest.mark.parametrize("num_between", [0, 1])
def test_what_a_kernel_that_still_runs_writes_is_not(num_between: int, holds_next: bool) -> None:
    a, b, c, d = buffers()
    with watched_overlaps() as watch:
        copy(a, b)
        for _ in range(num_between):
            copy(a, c, holds_next=holds_next)
        copy(b, d, reads_early=True)
    has_ended = num_between == 1 and holds_next  # the one between waited before it let d begin
    assert bool(watch.problems) != has_ended


def test_torchs_kernels_let_none_begin_but_are_not_waited_for() -> None:
    a, b, c, d = buffers()
    with watched_overlaps() as watch:
        copy(a, b)
        c.add_(1)
        copy(b, d, reads_early=True)
        assert not watch.problems
        c.add_(1)
        copy(c, d, reads_early=True)
    assert len(watch.problems) == 1
    assert "torch.add_" in watch.problems.pop()


def test_nothing_is_written_before_a_kernel_waits() -> None:
    a, b, *_ = buffers()
    with watched_overlaps() as watch:
        copy(a, b, reads_early=True, writes_early=True)
    assert watch.problems == {"_copy_kernel writes before it waits"}
