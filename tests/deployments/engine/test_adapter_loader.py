"""The probe of a new adapter, between two steps of answers that run. On a GPU, where there is one,
it is served by captured steps; with TRITON_INTERPRET=1 by the same kernels, uncaptured."""

import dataclasses
from pathlib import Path

import pytest
import torch

from deployments.engine.adapter_loader import NOISE
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterHasNoEffect
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams, SchedulerOutput
from tests.conftest import TINY_ADAPTERS
from tests.deployments.engine.rows_by_hand import run_rows
from tests.tiny_models import make_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILIES = {"llama": "causal", "flan_t5": "seq2seq"}


class Probing(ModelRunner):
    """Tries an adapter out before every step."""

    newcomer: Path | None = None
    num_probes = 0

    def step(self, plan: SchedulerOutput):  # type: ignore[no-untyped-def]
        if self.newcomer is not None:
            self.dry_run("newcomer", self.read_adapter(self.newcomer))
            self.num_probes += 1
        return super().step(plan)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def decoder(family: str, tiny_catalogs: dict[str, tuple[Path, Path]]) -> Probing:
    base_dir, catalog = tiny_catalogs[family]
    base = load_pretrained(base_dir, FAMILIES[family], device=DEVICE, dtype="float32")  # type: ignore[arg-type]
    base = dataclasses.replace(base, eos_ids=frozenset({-1}))
    folders = {name: catalog / "weights" / name for name in TINY_ADAPTERS}
    built = build_decoder(base, "fast", FastLimits(3, 64, 4), folders)
    assert isinstance(built, ModelRunner)
    built.__class__ = Probing
    for name, folder in folders.items():
        built.load_adapter(name, folder)
    return built  # type: ignore[return-value]


def requests() -> list[Request]:
    sides = [None, *TINY_ADAPTERS]
    prompts = [tuple(5 + i + 3 * j for j in range(4 + 3 * i)) for i in range(3)]
    return [
        Request(f"r{i}", prompt, sides[i % len(sides)], SamplingParams(6))
        for i, prompt in enumerate(prompts)
    ]


def test_a_probe_changes_no_answer(
    decoder: Probing, family: str, tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base_dir = tiny_catalogs[family][0]
    before = run_rows(decoder, requests()).answers
    assert len({tuple(answer) for answer in before}) == 3, "answers do not differ"
    decoder.newcomer = make_adapter(base_dir, tmp_path / "new", base_name="b", seed=31)
    assert run_rows(decoder, requests()).answers == before
    assert decoder.num_probes >= 6
    assert "newcomer" not in decoder.lora_pool.names


def test_its_effect_is_the_same_each_time_and_nothing_for_an_idle_adapter(
    decoder: Probing, family: str, tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    slots = [decoder.lora_pool.acquire(name) for name in TINY_ADAPTERS]
    effects = [decoder._probe.effect(slot) for slot in slots]
    assert len(set(effects)) == len(effects)
    assert all(effect > 100 * NOISE for effect in effects)
    run_rows(decoder, requests())
    again = [decoder._probe.effect(slot) for slot in slots]
    assert again == pytest.approx(effects, rel=NOISE)
    launched = slots if DEVICE == "cpu" else []  # a GPU's probe runs by captured graphs alone
    for slot, effect in zip(launched, effects, strict=bool(launched)):
        base = decoder._probe._launched(0)
        changed = (decoder._probe._launched(slot) - base).abs().max() / base.abs().max()
        assert float(changed) == pytest.approx(effect, rel=1e-3)
    base_dir = tiny_catalogs[family][0]
    idle = make_adapter(base_dir, tmp_path / "idle", base_name="b", seed=5, std=0.0)
    with pytest.raises(AdapterHasNoEffect, match=r"'idle' does not change"):
        decoder.load_adapter("idle", idle)
