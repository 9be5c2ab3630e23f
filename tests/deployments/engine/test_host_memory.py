"""What a step sends to a GPU does not wait for it."""

import ast
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from torch.overrides import TorchFunctionMode

from deployments.engine import cuda_graphs, host_memory
from deployments.engine.decoder import AsyncTokens
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.host_memory import numbers_on, on_device, set_at
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import ForcedTokens, Request, SamplingParams
from deployments.engine.scheduling.prefixes import PrefixCache
from deployments.engine.scheduling.scheduler import Scheduler
from tests.deployments.engine.captured_on_host import captured
from tests.deployments.engine.test_architectures import loaded_from, modules_of
from tests.tiny_architectures import make_tiny
from tests.tiny_models import make_adapter

ENGINE = Path(host_memory.__file__).parent
# Their tensors are made once, while a model is loaded; the reference decoder waits for each token.
AT_THE_START = ("kernels/quantised_product.py", "quantised/formats.py", "quantised/loader.py")
NO_STEP = (*AT_THE_START, "peft_decoder.py")
PENALISED = SamplingParams(
    6, temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=3, no_repeat_ngram_size=2
)
LETTERS = LLMatcher.grammar_from_regex("[a-z ]+")
_READS = frozenset(
    "item tolist __bool__ __int__ __float__ __index__ nonzero argwhere masked_select bincount "
    "is_nonzero cpu numpy unique equal allclose".split()
)
_SUBSCRIPTS = ("__getitem__", "__setitem__")
# Done by kernels on a GPU, and to what is on the host there.
_ON_A_CPU = {("numpy", "sampling.py"), ("numpy", "row_batches.py"), ("tolist", "masks.py")}


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


def test_a_step_makes_no_tensor_on_the_device_from_the_hosts_numbers() -> None:
    waiting = {}
    for path in ENGINE.rglob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        waiting[path.relative_to(ENGINE).as_posix()] = [
            ast.unparse(call)
            for call in calls
            if ast.unparse(call.func) in ("torch.tensor", "torch.as_tensor")
            and any(keyword.arg == "device" for keyword in call.keywords)
        ]
    assert {name for name, calls in waiting.items() if calls} == set(NO_STEP)


@pytest.mark.parametrize("name", ["bart", "llama", "t5", "t5gemma"])
def test_a_step_asks_for_no_number_and_sets_none_by_a_subscript(name: str, tmp_path: Path) -> None:
    """On a GPU each would wait. What is sought here is torch's calls, which are seen on a CPU."""
    decoder, run = _steps_of(name, tmp_path, torch.device("cpu"))
    decoder._masks._device = torch.device("cuda")  # so that masks are applied as on one
    with _Waiting() as waiting:
        run()
    assert waiting.calls, "no call of torch was seen"
    assert set(waiting.found) <= _ON_A_CPU


def test_guessed_tokens_are_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows whose tokens the graph picks together, and then those that it does not know."""
    base = make_tiny("llama", tmp_path / "base")
    limits = FastLimits(4, 96, max_adapters=1)
    decoder = build_decoder(loaded_from(base), "fast", limits, {}, batch_invariant=True)
    assert isinstance(decoder, ModelRunner)
    captured(decoder, monkeypatch)
    scheduler = Scheduler(decoder.capacities, prefill_tokens=96, can_split_prompts=True)
    drawn = SamplingParams(9, temperature=0.8, seed=3)
    for sampling in (SamplingParams(9), drawn, SamplingParams(9, min_tokens=9)):
        scheduler.add(Request("r", (3, 4, 5), None, sampling), 0.0)
    plan = scheduler.schedule(0.0)
    for job in plan.admitted:
        assert job.row is not None
        decoder.set_adapter(job.row, None)
    newest = decoder.step(plan).wait()
    guesses = {0: [7, 8, 9], 1: [], 2: [7, 8]}
    with _Waiting() as waiting:
        decoder.step_drafts({row: [newest[row], *guesses[row]] for row in newest})
    found = Counter(found for found in waiting.found if found[1] == "model_runner.py")
    assert found == {("tolist", "model_runner.py"): 1, ("__int__", "model_runner.py"): 1}


def test_a_call_that_would_wait_is_found() -> None:
    tensor = torch.zeros(3)
    with _Waiting() as waiting:
        tensor[1] = 2.0
        tensor[tensor > 1] = torch.ones(())
        tensor[1].item()
        tensor[0] = tensor[1]
        tensor[2].fill_(3.0)
        set_at(tensor, (torch.tensor([0]),), 4.0)
        tensor[range(2)]
        tensor[tensor.argmax()]
        torch.where(tensor > 1)
        torch.where(tensor > 1, 0.0, tensor)
        tensor.repeat_interleave(torch.tensor([1, 2, 1]))
        tensor.repeat_interleave(2)
        torch.tensor([1.0], device=tensor.device)
        tensor.to(tensor.device)
        tensor.to(torch.float64)
    wanted = "__setitem__ __setitem__ item __getitem__ where repeat_interleave tensor to"
    assert [call for call, _ in waiting.found] == wanted.split()
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
    penalised, scored, their prompts too, structured, forced, with an adapter, with a shortest
    length, behind a prefix, and in a row that another had."""
    base = make_tiny(name, folder / "base")
    loaded = loaded_from(base, device.type)
    if name == "bart":
        loaded = dataclasses.replace(loaded, forced=ForcedTokens(first=5, last=6))
    decoder = build_decoder(loaded, "fast", FastLimits(4, 96, max_adapters=1), {})
    assert isinstance(decoder, ModelRunner)
    adapter = make_adapter(
        base, folder / "a", seed=1, base_name=str(base), targets=modules_of(name)[0]
    )
    decoder.load_adapter("a", adapter)
    asked = [
        SamplingParams(6),
        PENALISED,
        SamplingParams(6, min_tokens=4),
        SamplingParams(6, logprobs=2),
        SamplingParams(6, grammar=LETTERS),
        SamplingParams(6, temperature=0.7, grammar=LETTERS),
    ]
    if decoder.can_split_prompts:
        asked.append(SamplingParams(6, logprobs=2, echo=True))

    def run() -> list[AsyncTokens]:
        scheduler = Scheduler(
            decoder.capacities,
            prefill_tokens=64,
            can_split_prompts=decoder.can_split_prompts,
            prefixes=PrefixCache(decoder.generation) if decoder.can_reuse_prefixes else None,
        )
        prompt = tuple(3 + i % 50 for i in range(60))
        for number, sampling in enumerate(asked):
            adapter = "a" if number % 2 else None
            scheduler.add(Request(f"r{number}", prompt, adapter, sampling), 0.0)
        pending: list[AsyncTokens] = []
        prefixes = 0
        while not (plan := scheduler.schedule(0.0)).is_empty:
            for row in plan.released:
                decoder.free(row)
            for job in plan.admitted:
                assert job.row is not None
                decoder.set_adapter(job.row, job.request.adapter)
                if job.prefix is not None:
                    decoder.reuse_prefix(job.row, *job.prefix)
                    prefixes += 1
            pending.append(decoder.step(plan))
        assert bool(prefixes) == decoder.can_reuse_prefixes
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
        if _waits(called, args, kwargs or {}):
            self.found.append((called, Path(sys._getframe(1).f_code.co_filename).name))
        return function(*args, **(kwargs or {}))


def _waits(called: str, args: Any, kwargs: Any) -> bool:
    if called in ("tensor", "as_tensor"):
        return "device" in kwargs
    if called == "to":
        return any(isinstance(each, str | torch.device) for each in (*args, *kwargs.values()))
    if called == "where":
        return len(args) == 1
    if called == "repeat_interleave":
        return isinstance(args[1], torch.Tensor) and "output_size" not in kwargs
    return called in _READS or (called in _SUBSCRIPTS and _subscript_waits(*args[1:]))


def _subscript_waits(at: Any, value: Any = None) -> bool:
    """Return whether a subscript, and what is stored there, make the host wait."""
    is_sized = any(
        isinstance(each, list | range)
        or (isinstance(each, torch.Tensor) and each.dtype == torch.bool)
        for each in (at if isinstance(at, tuple) else (at,))
    )
    return is_sized or not (value is None or isinstance(value, torch.Tensor))
