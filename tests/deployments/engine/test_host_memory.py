"""What a step sends to a GPU does not wait for it."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from deployments.engine import cuda_graphs, host_memory
from deployments.engine.decoder import AsyncTokens
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.host_memory import numbers_on, on_device, set_at
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.scheduler import Scheduler
from tests.deployments.engine.test_architectures import loaded_from, modules_of
from tests.tiny_architectures import make_tiny
from tests.tiny_models import make_adapter

ENGINE = Path(host_memory.__file__).parent
# What runs between a step's launch and the launch of the next one, on a GPU.
STEP = (
    "sampling.py",
    "draw.py",
    "model_runner.py",
    "attention/prefill.py",
    "models/base.py",
    "scores/scorer.py",
    "structured/masks.py",
)
PENALISED = SamplingParams(
    6, temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=3, no_repeat_ngram_size=2
)
_READS = frozenset(
    "item tolist __bool__ __int__ __float__ __index__ nonzero cpu numpy unique equal".split()
)
_SUBSCRIPTS = ("__getitem__", "__setitem__")
_ON_A_CPU = {("numpy", "sampling.py"), ("numpy", "row_batches.py")}  # done by kernels on a GPU


def test_numbers_arrive_as_torch_makes_them() -> None:
    cpu = torch.device("cpu")
    for numbers in ([1, 2], [0.5, 1.5], [True, False], [[1, 2], [3, 4]]):
        found = numbers_on(cpu, numbers)
        assert torch.equal(found, torch.tensor(numbers))
        assert found.dtype == torch.tensor(numbers).dtype


def test_a_tensor_for_a_gpu_is_pinned_and_not_waited_for() -> None:
    asked = []

    class Host:
        def pin_memory(self) -> "Host":
            asked.append("pinned")
            return self

        def to(self, device: object, **options: object) -> str:
            asked.append(options)
            return "there"

    device = SimpleNamespace(type="cuda")
    assert on_device(Host(), device) == "there"  # type: ignore[arg-type, comparison-overlap]
    assert asked == ["pinned", {"non_blocking": True}]


@pytest.mark.parametrize("name", STEP)
def test_a_step_makes_no_tensor_on_the_device_from_the_hosts_numbers(name: str) -> None:
    tree = ast.parse((ENGINE / name).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    waiting = [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func) in ("torch.tensor", "torch.as_tensor")
        and any(keyword.arg == "device" for keyword in call.keywords)
    ]
    assert not waiting


@pytest.mark.parametrize("name", ["bart", "llama", "t5", "t5gemma"])
def test_a_step_asks_for_no_number_and_sets_none_by_a_subscript(name: str, tmp_path: Path) -> None:
    """On a GPU each would wait. What is sought here is torch's calls, which are seen on a CPU."""
    _, run = _steps_of(name, tmp_path, torch.device("cpu"))
    with _Waiting() as waiting:
        run()
    assert waiting.calls, "no call of torch was seen"
    assert set(waiting.found) <= _ON_A_CPU


def test_a_call_that_would_wait_is_found() -> None:
    tensor = torch.zeros(3)
    with _Waiting() as waiting:
        tensor[1] = 2.0
        tensor[tensor > 1] = torch.ones(())
        tensor[1].item()
        tensor[0] = tensor[1]
        tensor[2].fill_(3.0)
        set_at(tensor, (torch.tensor([0]),), 4.0)
    assert [call for call, _ in waiting.found] == ["__setitem__", "__setitem__", "item"]
    assert tensor.tolist() == [4.0, 1.0, 3.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["bart", "llama", "t5", "t5gemma"])
def test_no_step_waits_for_the_one_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are read uncaptured, as long ones are."""
    monkeypatch.setattr(cuda_graphs, "_PROMPTS", 0)
    decoder, run = _steps_of(name, tmp_path, torch.device("cuda"))
    for step in run():  # loads and captures what the steps need
        step.wait()
    decoder.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _steps_of(
    name: str, folder: Path, device: torch.device
) -> tuple[ModelRunner, Callable[[], list[AsyncTokens]]]:
    """Return a decoder, and what launches its steps for requests of each kind: greedy, drawn and
    penalised, scored, with an adapter, with a shortest length."""
    base = make_tiny(name, folder / "base")
    decoder = build_decoder(
        loaded_from(base, device.type), "fast", FastLimits(4, 96, max_adapters=1), {}
    )
    assert isinstance(decoder, ModelRunner)
    adapter = make_adapter(
        base, folder / "a", seed=1, base_name=str(base), targets=modules_of(name)[0]
    )
    decoder.load_adapter("a", adapter)
    asked = (
        SamplingParams(6),
        PENALISED,
        SamplingParams(6, min_tokens=4),
        SamplingParams(6, logprobs=2),
    )

    def run() -> list[AsyncTokens]:
        scheduler = Scheduler(
            decoder.capacities, prefill_tokens=64, can_split_prompts=decoder.can_split_prompts
        )
        prompt = tuple(3 + i % 50 for i in range(60))
        for number, sampling in enumerate(asked):
            adapter = "a" if number % 2 else None
            scheduler.add(Request(f"r{number}", prompt, adapter, sampling), 0.0)
        pending: list[AsyncTokens] = []
        while not (plan := scheduler.schedule(0.0)).is_empty:
            for job in plan.admitted:
                assert job.row is not None
                decoder.set_adapter(job.row, job.request.adapter)
            pending.append(decoder.step(plan))
        return pending

    return decoder, run


class _Waiting(TorchFunctionMode):
    """Find torch's calls that wait for a GPU where their tensor lies on one.

    found: name of the call, and the file whose line calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.found: list[tuple[str, str]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        called = function.__name__
        if called in _READS or (called in _SUBSCRIPTS and _waits(*args[1:])):
            self.found.append((called, Path(sys._getframe(1).f_code.co_filename).name))
        return function(*args, **(kwargs or {}))


def _waits(at: Any, value: Any = None) -> bool:
    """Return whether a subscript, and what is stored there, make the host wait."""
    is_sized = any(
        isinstance(each, list) or (isinstance(each, torch.Tensor) and each.dtype == torch.bool)
        for each in (at if isinstance(at, tuple) else (at,))
    )
    return is_sized or not (value is None or isinstance(value, torch.Tensor))
