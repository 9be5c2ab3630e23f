"""What one decode step asks of torch, for each family, with two adapters and the base mixed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.scheduler import Scheduler
from tests.budgets.conftest import Hold
from tests.budgets.counting import Operators
from tests.conftest import TINY_ADAPTERS

FAMILIES = {"llama": "causal", "flan_t5": "seq2seq"}
PROMPT = (5, 9, 17, 4, 33, 8)
Catalogs = dict[str, tuple[Path, Path]]


def decoder_of(catalogs: Catalogs, name: str) -> ModelRunner:
    base_dir, catalog = catalogs[name]
    family: Any = FAMILIES[name]
    base = load_pretrained(base_dir, family, device="cpu", dtype="float32")
    base = replace(base, eos_ids=frozenset({-1}))  # answers run to their length
    folders = {name: catalog / "weights" / name for name in TINY_ADAPTERS}
    limits = FastLimits(max_rows=4, num_positions=64, max_adapters=3)
    decoder = build_decoder(base, "auto", limits, folders)
    assert isinstance(decoder, ModelRunner)
    for adapter, folder in folders.items():
        decoder.load_adapter(adapter, folder)
    return decoder


def operators_of_a_step(decoder: ModelRunner) -> Operators:
    """Return the operators of one step that writes a token for each of four rows."""
    scheduler = Scheduler(
        decoder.capacities, prefill_tokens=512, can_split_prompts=decoder.can_split_prompts
    )
    for adapter in ("derm", "cardio", None, "derm"):
        scheduler.add(Request("r", PROMPT, adapter, SamplingParams(12)), 0.0)
    counted = Operators()
    for number in range(6):
        plan = scheduler.schedule(0.0)
        for job in plan.admitted:
            assert job.row is not None
            decoder.set_adapter(job.row, job.request.adapter)
        if number < 5:
            decoder.step(plan).wait()
        else:
            assert len(plan.decode) == 4
            with counted:
                decoder.step(plan).wait()
    decoder.reset()
    return counted


@pytest.mark.parametrize("name", FAMILIES)
def test_operators_of_a_step(tiny_catalogs: Catalogs, name: str, hold: Hold) -> None:
    counted = operators_of_a_step(decoder_of(tiny_catalogs, name))
    hold(f"{name}: operators of a decode step", counted.total)
    hold(f"{name}: times a decode step waits for the device", counted.num_synchronising)
    hold(f"{name}: tensors that a decode step allocates", counted.num_allocated)


def test_one_more_wait_and_tensor_in_a_step_are_noticed(
    tiny_catalogs: Catalogs, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(tiny_catalogs, "llama")
    before = operators_of_a_step(decoder).total
    step = decoder._model.decode

    def slower(*args: Any, **more: Any) -> Any:
        torch.ones(1).item()
        return step(*args, **more)

    monkeypatch.setattr(decoder._model, "decode", slower)
    counted = operators_of_a_step(decoder)
    assert counted.total > before
    with pytest.raises(AssertionError, match="waits for the device"):
        hold("llama: times a decode step waits for the device", counted.num_synchronising)
    with pytest.raises(AssertionError, match="tensors that a decode step allocates"):
        hold("llama: tensors that a decode step allocates", counted.num_allocated)
    with pytest.raises(AssertionError, match="operators of a decode step"):
        hold("llama: operators of a decode step", counted.total)
