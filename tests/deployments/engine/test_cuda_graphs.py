"""When steps are tried and captured, with stand-ins for CUDA's streams and graphs."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deployments.engine import cuda_graphs
from deployments.engine.cuda_graphs import _Captures


class Graph:
    """Replays by name, since nothing is captured here."""

    def replay(self) -> None:
        pass

    def pool(self) -> str:
        return "pool"


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    done: list[str] = []
    pools: list[Any] = []
    streams: list[Any] = []

    def stream() -> Any:
        streams.append(SimpleNamespace(wait_stream=lambda other: None))
        return streams[-1]

    @contextlib.contextmanager
    def graph(captured: Any, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "threads that pack adapters pin memory"
        pools.append(pool)
        done.append("capture")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda used: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    cuda_graphs._side_stream.cache_clear()

    def step(size: int) -> tuple[torch.Tensor, ...]:
        done.append(f"step {size}")
        return (torch.zeros(size),)

    pool: Any = SimpleNamespace(layout=0)
    made = _Captures(pool, step, SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    yield SimpleNamespace(made=made, done=done, pools=pools, lora_pool=pool)
    cuda_graphs._side_stream.cache_clear()


def nothing() -> None:
    pass


def test_steps_are_all_tried_before_the_first_is_captured(captures: Any) -> None:
    captures.made.prepare((4, 2), lambda size: None)
    for size in (4, 2):
        captures.made.replay(size, nothing, nothing)
    tried = ["step 4", "step 4", "step 2", "step 2"]
    assert captures.done == [*tried, "capture", "step 4", "capture", "step 2"]
    assert captures.pools == [None, "pool"]
    captures.made.replay(4, nothing, nothing)
    assert len(captures.done) == 8, "captured once"


def test_a_size_that_nobody_prepared_is_tried_first(captures: Any) -> None:
    captures.made.replay(2, nothing, nothing)
    assert captures.done == ["step 2", "step 2", "capture", "step 2"]


def test_moved_weights_are_captured_anew(captures: Any) -> None:
    captures.made.replay(2, nothing, nothing)
    captures.lora_pool.layout = 1
    captures.made.replay(2, nothing, nothing)
    assert captures.done == ["step 2", "step 2", "capture", "step 2"] * 2
    assert captures.pools == [None, None]
