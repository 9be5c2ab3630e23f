"""What a step sends to a GPU does not wait for it."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deployments.engine import cuda_graphs, host_memory
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.host_memory import numbers_on, on_device
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.scheduler import Scheduler
from tests.deployments.engine.test_architectures import loaded_from
from tests.tiny_architectures import make_tiny

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
PENALISED = SamplingParams(6, temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=3)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["llama", "t5gemma"])
def test_no_step_waits_for_the_one_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are read uncaptured, as long ones are; one answer is drawn and penalised."""
    base = make_tiny(name, tmp_path / "base")
    limits = FastLimits(3, 96, max_adapters=1)
    decoder = build_decoder(loaded_from(base, "cuda"), "fast", limits, {})
    assert isinstance(decoder, ModelRunner)
    monkeypatch.setattr(cuda_graphs, "_PROMPTS", 0)

    def run() -> None:
        scheduler = Scheduler(
            decoder.capacities, prefill_tokens=64, can_split_prompts=decoder.can_split_prompts
        )
        prompt = tuple(3 + i % 50 for i in range(60))
        for number, sampling in enumerate(
            (SamplingParams(6), PENALISED, SamplingParams(6, min_tokens=4))
        ):
            scheduler.add(Request(f"r{number}", prompt, None, sampling), 0.0)
        pending = []
        while not (plan := scheduler.schedule(0.0)).is_empty:
            for job in plan.admitted:
                assert job.row is not None
                decoder.set_adapter(job.row, None)
            pending.append(decoder.step(plan))
        torch.cuda.set_sync_debug_mode("default")
        for each in pending:
            each.wait()
        decoder.reset()

    run()  # loads and captures what the steps need
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
