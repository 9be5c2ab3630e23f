"""The reference decoder against PEFT run by hand, for both families, on tiny models."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from adapters.bases.models import resolve_base_model
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterHasNoEffect
from deployments.engine.model_loader import choose_precision, load_pretrained
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import Request, SamplingParams
from tests.conftest import TINY_ADAPTERS
from tests.oracle import Oracle
from tests.tiny_architectures import make_tiny
from tests.tiny_models import make_adapter

FAMILIES = ("llama", "flan_t5", "relu_t5")
MAX_TOKENS = 20
Catalogs = dict[str, tuple[Path, Path]]


@dataclass
class ListSink:
    """Collects tokens; a row is done at its limit, at an end token, or when told so."""

    limits: Sequence[int]
    eos_ids: frozenset[int]
    rows: list[list[int]] = field(init=False)
    cancelled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.limits]

    def push(self, row: int, token_id: int) -> None:
        assert not self.is_done(row), "a token for a row that is done"
        self.rows[row].append(token_id)

    def is_done(self, row: int) -> bool:
        tokens = self.rows[row]
        ended = bool(tokens) and (tokens[-1] in self.eos_ids or len(tokens) >= self.limits[row])
        return ended or row in self.cancelled


def request(prompt_ids: Sequence[int], adapter: str | None, **sampling: float) -> Request:
    params = SamplingParams(**{"max_tokens": MAX_TOKENS, **sampling})  # type: ignore[arg-type]
    return Request("r", tuple(prompt_ids), adapter, params)


def prompts_for(decoder: PeftDecoder) -> list[list[int]]:
    """Three prompts of different lengths, so that a batch needs padding."""
    texts = ("What is eczema?", "How is high blood pressure treated with drugs?", "My rash")
    return [list(decoder.tokenizer(text).input_ids) for text in texts]


def run(decoder: PeftDecoder, group: Sequence[Request]) -> list[list[int]]:
    sink = ListSink([r.sampling.max_tokens for r in group], decoder.info.eos_ids)
    decoder.set_adapter(group[0].adapter)
    decoder.generate(group, sink)
    return sink.rows


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits for the first."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def decoder(family: str, tiny_catalogs: Catalogs) -> PeftDecoder:
    base, catalog = tiny_catalogs[family]
    kind = "causal" if family == "llama" else "seq2seq"
    loaded = load_pretrained(base, kind, device="cpu", dtype="float32")  # type: ignore[arg-type]
    decoder = PeftDecoder(loaded)
    for name in TINY_ADAPTERS:
        decoder.load_adapter(name, catalog / "weights" / name)
    return decoder


@pytest.fixture(scope="module")
def oracle(family: str, tiny_catalogs: Catalogs) -> Oracle:
    base, catalog = tiny_catalogs[family]
    return Oracle(base, {name: catalog / "weights" / name for name in TINY_ADAPTERS})


def test_adapters_differ_and_each_equals_peft(decoder: PeftDecoder, oracle: Oracle) -> None:
    sides = (None, *TINY_ADAPTERS)
    for prompt in prompts_for(decoder):
        expected = {side: oracle.generate(prompt, side, MAX_TOKENS) for side in sides}
        distinct = {tuple(answer) for answer in expected.values()}
        assert len(distinct) == len(sides), "the oracle's answers do not differ: nothing is tested"
        for side in sides:
            assert run(decoder, [request(prompt, side)]) == [expected[side]]


def test_a_padded_group_equals_each_alone(decoder: PeftDecoder, oracle: Oracle) -> None:
    prompts = prompts_for(decoder)
    for side in (None, *TINY_ADAPTERS):
        group = [
            request(prompt, side, max_tokens=MAX_TOKENS - 3 * i) for i, prompt in enumerate(prompts)
        ]
        expected = [
            oracle.generate(prompt, side, r.sampling.max_tokens)
            for prompt, r in zip(prompts, group, strict=True)
        ]
        assert run(decoder, group) == expected


def test_a_group_ends_with_its_last_row(decoder: PeftDecoder) -> None:
    group = [request(prompt, None, max_tokens=3) for prompt in prompts_for(decoder)]
    sink = ListSink([3, 3, 3], decoder.info.eos_ids, cancelled={0})
    decoder.set_adapter(None)
    decoder.generate(group, sink)
    assert sink.rows[0] == []
    assert all(1 <= len(row) <= 3 for row in sink.rows[1:])


def test_a_seed_repeats_a_sampled_answer(decoder: PeftDecoder) -> None:
    prompt = prompts_for(decoder)[0]

    def sampled(seed: int) -> list[int]:
        return run(decoder, [request(prompt, "derm", temperature=2.0, seed=seed)])[0]

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(6)}) > 1


def test_sampled_requests_do_not_share_a_group(decoder: PeftDecoder) -> None:
    group = [request([5, 6], None, temperature=1.0)] * 2
    with pytest.raises(ValueError, match="must be greedy"):
        run(decoder, group)


def test_an_adapter_without_effect_is_refused(
    decoder: PeftDecoder, family: str, tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    base, _ = tiny_catalogs[family]
    idle = make_adapter(base, tmp_path / "idle", base_name=str(base), seed=5, std=0.0)
    with pytest.raises(AdapterHasNoEffect, match=r"'idle'.*does not change"):
        decoder.load_adapter("idle", idle)
    assert decoder.info.adapters == set(TINY_ADAPTERS)


def test_an_unknown_adapter_is_named(decoder: PeftDecoder) -> None:
    with pytest.raises(KeyError, match="'zebra' is not resident"):
        decoder.set_adapter("zebra")


def test_the_flan_like_head_is_its_own(tiny_catalogs: Catalogs) -> None:
    """The trap of MODEL_NOTES: loaded untied, although the config may say otherwise."""
    from tests.tiny_models import load_model

    flan, relu = (load_model(tiny_catalogs[name][0]) for name in ("flan_t5", "relu_t5"))
    assert not torch.equal(flan.lm_head.weight, flan.shared.weight)
    assert not flan.config.scale_decoder_outputs
    assert torch.equal(relu.lm_head.weight, relu.shared.weight)
    assert relu.config.scale_decoder_outputs


@pytest.mark.parametrize(
    ("dtype", "device", "expected", "why"),
    [
        ("float32", "cuda", torch.float32, "asked for"),
        ("bfloat16", "cpu", torch.bfloat16, "asked for"),
        ("auto", "cuda", torch.bfloat16, "GPU"),
    ],
)
def test_precision_says_why(dtype: str, device: str, expected: torch.dtype, why: str) -> None:
    chosen = choose_precision(dtype, device)  # type: ignore[arg-type]
    assert chosen.dtype == expected
    assert why in chosen.reason


def test_auto_precision_on_a_cpu_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_precision("auto", "cpu").dtype == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose_precision("auto", "cpu").dtype == torch.float32


@pytest.mark.parametrize("architecture", ["t5gemma", "t5gemma2"])
def test_an_encoder_decoder_that_is_not_fast_is_served(architecture: str, tmp_path: Path) -> None:
    """It names no token for its answers to begin with: bos it is."""
    base = make_tiny(architecture, tmp_path / "base")
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value_gate": 0.5}))
    resolved = resolve_base_model(str(base))
    assert resolved.family == "seq2seq"
    folders = {
        name: make_adapter(base, tmp_path / name, base_name="b", seed=seed, targets=["q_proj"])
        for seed, name in enumerate(("a", "b"), start=1)
    }
    loaded = load_pretrained(base, "seq2seq", device="cpu", dtype="float32")
    decoder = build_decoder(loaded, "auto", FastLimits(4, 96, max_adapters=2), folders)
    assert isinstance(decoder, PeftDecoder)
    assert "value_gate is 0.5" in decoder.info.reason
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    oracle, prompts = Oracle(base, folders), prompts_for(decoder)
    for side in (None, "a", "b"):
        group = [request(ids, side) for ids in prompts]
        expected = [oracle.generate(ids, side, MAX_TOKENS) for ids in prompts]
        assert run(decoder, group) == expected
