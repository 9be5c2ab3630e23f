"""The fast decoders against PEFT's `set_adapter` + `generate`: the same tokens, in float32.

A token may differ only where the oracle's two largest logits are closer than GAP; the comparison
of that answer ends there, and such places are counted and printed.
"""

import dataclasses
import functools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.kernels.backend import are_fused
from deployments.engine.model_loader import Family, load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.rows_by_hand import Run, run_rows
from tests.oracle import Oracle
from tests.tiny_models import (
    make_adapter,
    make_tiny_flan_t5,
    make_tiny_llama,
    make_tiny_qwen2,
    make_tiny_relu_t5,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and are_fused("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the oracle stays on the CPU
GAP = 1e-4
MAX_TOKENS = 16
NUM_ROWS = 5
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BASES: dict[str, Any] = {
    "llama": make_tiny_llama,
    "llama3_rope": lambda folder: make_tiny_llama(
        folder, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, head_dim=24
    ),
    "qwen2": make_tiny_qwen2,
    "flan_t5": make_tiny_flan_t5,
    "relu_t5": make_tiny_relu_t5,
}
ATTENTION = {"causal": ["q_proj", "k_proj", "v_proj", "o_proj"], "seq2seq": ["q", "k", "v", "o"]}
MLP = {
    "llama": ["gate_proj", "up_proj", "down_proj"],
    "llama3_rope": ["gate_proj", "up_proj", "down_proj"],
    "qwen2": ["gate_proj", "up_proj", "down_proj"],
    "flan_t5": ["wi_0", "wi_1", "wo"],
    "relu_t5": ["wi", "wo"],
}


@dataclass
class Case:
    name: str
    base: Path
    adapters: dict[str, Path]
    decoder: ModelRunner
    oracle: Oracle

    @property
    def sides(self) -> list[str | None]:
        return [None, *self.adapters]


def family_of(name: str) -> Family:
    return "seq2seq" if name.endswith("t5") else "causal"


def make_adapters(name: str, base: Path, folder: Path) -> dict[str, Path]:
    """Ranks 3 to 64, every target, patterns, rank stabilisation."""
    attention, mlp = ATTENTION[family_of(name)], MLP[name]
    first, last = attention[0], mlp[-1]
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"rank": 8, "std": 0.5},
        "small": {"rank": 3, "targets": [attention[2], attention[3], *mlp[-2:]], "std": 0.5},
        "wide": {"rank": 64, "targets": [*attention, *mlp], "std": 0.1},
        "stabilised": {"rank": 16, "targets": attention, "std": 0.3, "use_rslora": True},
        "patterns": {
            "rank": 4,
            "targets": [*attention, *mlp],
            "std": 0.4,
            "rank_pattern": {first: 13, last: 24},
            "alpha_pattern": {first: 5, attention[2]: 40},
        },
        "feed_forward": {"rank": 5, "targets": mlp, "std": 0.5, "layers_to_transform": [1]},
    }
    if family_of(name) == "seq2seq":  # T5's layers are blocks
        kinds["feed_forward"]["layers_pattern"] = "block"
    return {
        kind: make_adapter(base, folder / kind, base_name=str(base), seed=seed, **options)
        for seed, (kind, options) in enumerate(kinds.items(), start=1)
    }


@pytest.fixture(scope="module", params=sorted(BASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    folder = tmp_path_factory.mktemp(f"parity-{name}")
    base = BASES[name](folder / "base")
    adapters = make_adapters(name, base, folder)
    decoder = load_fast(name, base, adapters)
    return Case(name, base, adapters, decoder, Oracle(base, adapters))


def load_fast(
    name: str, base: Path, adapters: dict[str, Path], kv_positions: int | None = None
) -> ModelRunner:
    """`kv_positions`: of all rows together; None: every row has full length."""
    loaded = load_pretrained(base, family_of(name), device=DEVICE, dtype="float32")
    limits = FastLimits(NUM_ROWS, 96, max_adapters=8)
    if kv_positions is not None:
        config = loaded.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_heads
        size = 2 * 2 * heads * (getattr(config, "head_dim", None) or 16) * 4
        limits = replace(limits, kv_memory_bytes=kv_positions * size)
    decoder = build_decoder(loaded, "fast", limits, adapters)
    assert isinstance(decoder, ModelRunner)
    for kind, directory in adapters.items():
        decoder.load_adapter(kind, directory)
    return decoder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits for the first."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


def prompt(rng: random.Random, case: Case, longest: int = 40) -> tuple[int, ...]:
    size = rng.randint(1, longest)
    return tuple(rng.randrange(3, case.decoder.vocab_size) for _ in range(size))


def request(ids: tuple[int, ...], adapter: str | None, tokens: int = MAX_TOKENS) -> Request:
    return Request("r", ids, adapter, SamplingParams(tokens))


def assert_parity(case: Case, requests: list[Request], run: Run) -> None:
    num_close = num_tokens = 0
    for asked, answer in zip(requests, run.answers, strict=True):
        limit = asked.sampling.max_tokens
        expected, gaps = case.oracle.generate_with_gaps(asked.prompt_ids, asked.adapter, limit)
        num_tokens += len(expected)
        differs = [i for i, (a, b) in enumerate(zip(answer, expected, strict=False)) if a != b]
        if not differs:
            assert len(answer) == len(expected)
            continue
        gap = gaps[differs[0]]
        assert gap < GAP, f"{asked.adapter}: token {differs[0]} differs, the gap is {gap:.3g}"
        num_close += 1
    print(f"{case.name}: {num_tokens} tokens, {num_close} answers part at a gap below {GAP}")
    assert num_close <= 1 + len(requests) // 20, "too many to be chance"


def test_the_adapters_differ_from_the_base_and_from_each_other(case: Case) -> None:
    ids = prompt(random.Random(1), case)
    answers = [tuple(case.oracle.generate(ids, side, MAX_TOKENS)) for side in case.sides]
    assert len(set(answers)) == len(case.sides), "nothing would be tested"


def test_each_adapter_alone(case: Case) -> None:
    rng = random.Random(2)
    for side in case.sides:
        requests = [request(prompt(rng, case), side)]
        assert_parity(case, requests, run_rows(case.decoder, requests))


@pytest.mark.long
@pytest.mark.skipif(
    not INTERPRETED, reason="needs TRITON_INTERPRET=1 and Triton: no GPU, the kernels all the same"
)
def test_the_kernels_in_tritons_interpreter(case: Case) -> None:
    """The steps that a GPU captures, uncaptured: minutes for a few tokens."""
    rng = random.Random(5)
    requests = [request(prompt(rng, case, 6), side, 4) for side in case.sides[:NUM_ROWS]]
    run = run_rows(case.decoder, requests)
    assert run.most_adapters >= 4
    assert_parity(case, requests, run)


def test_all_adapters_in_one_batch(case: Case) -> None:
    rng = random.Random(3)
    requests = [request(prompt(rng, case), side) for side in case.sides for _ in range(2)]
    run = run_rows(case.decoder, requests, prefill_tokens=400)
    assert run.most_rows == NUM_ROWS
    assert run.most_adapters >= 4
    assert_parity(case, requests, run)


@pytest.mark.parametrize("seed", range(3))
def test_any_composition_at_any_time(case: Case, seed: int) -> None:
    """Staggered arrivals, answers of different lengths, prompts in pieces, some given up."""
    rng = random.Random(100 + seed)
    requests = [
        request(prompt(rng, case), rng.choice(case.sides), rng.randint(1, MAX_TOKENS))
        for _ in range(18)
    ]
    given_up = {i: 2 for i in range(0, 18, 5) if requests[i].sampling.max_tokens > 2}
    run = run_rows(
        case.decoder,
        requests,
        arrivals=[rng.randint(0, 25) for _ in requests],
        prefill_tokens=[5, 16, 64][seed],
        cancel_after=given_up,
    )
    kept = [i for i in range(18) if i not in given_up]
    assert run.most_adapters > 1
    assert_parity(case, [requests[i] for i in kept], Run([run.answers[i] for i in kept]))
    if case.decoder.can_split_prompts and seed == 0:
        assert any(not chunk.is_last for plan in run.plans for chunk in plan.prefill)


def test_rows_of_different_capacities(case: Case) -> None:
    """Short rows and one long row in the same step."""
    decoder = load_fast(case.name, case.base, case.adapters, kv_positions=4 * 32 + 96)
    assert sorted(decoder.capacities) == [32, 32, 32, 32, 96]
    rng = random.Random(7)
    long = [request(prompt(rng, case, 40) + (5,) * 30, side, 8) for side in case.sides[:2]]
    short = [request(prompt(rng, case, 16), side, 12) for side in case.sides]
    requests = [*long, *short]
    run = run_rows(decoder, requests, prefill_tokens=200)
    assert run.most_rows == NUM_ROWS
    assert_parity(case, requests, run)


def test_sampling_is_of_the_same_distribution(case: Case) -> None:
    """top_k 1 is greedy whatever the temperature; a repetition penalty is transformers' own."""
    ids = prompt(random.Random(9), case)
    side = case.sides[1]
    hot = Request("r", ids, side, SamplingParams(MAX_TOKENS, temperature=3.0, top_k=1, seed=1))
    mixed = [hot, request(ids, None)]
    run = run_rows(case.decoder, mixed)
    assert_parity(case, [request(ids, side), mixed[1]], run)
    penalised = SamplingParams(MAX_TOKENS, repetition_penalty=1.6, min_tokens=6)
    run = run_rows(case.decoder, [Request("r", ids, side, penalised)])
    expected = case.oracle.generate(ids, side, MAX_TOKENS, repetition_penalty=1.6, min_new_tokens=6)
    assert run.answers == [expected]
    assert expected != case.oracle.generate(ids, side, MAX_TOKENS), "the penalty changed nothing"
    once = SamplingParams(MAX_TOKENS, no_repeat_ngram_size=1)
    run = run_rows(case.decoder, [Request("r", ids, side, once)])
    assert run.answers == [case.oracle.generate(ids, side, MAX_TOKENS, no_repeat_ngram_size=1)]


def test_no_answer_ends_before_its_minimum(
    case: Case, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Beside rows that may end at once; the end of sequence is a token of the greedy answer."""
    decoder, side = case.decoder, case.sides[1]
    ids = prompt(random.Random(9), case)
    eos = case.oracle.generate(ids, side, MAX_TOKENS)[1]
    monkeypatch.setattr(
        decoder, "_info", dataclasses.replace(decoder.info, eos_ids=frozenset({eos}))
    )
    monkeypatch.setattr(decoder._sampler, "_eos_ids", [eos])
    if decoder._graphs is not None:  # captured ones read where it lies
        ends = decoder._graphs._eos_ids
        request.addfinalizer(functools.partial(ends.copy_, ends.clone()))
        ends.fill_(eos)
    free = Request("r", ids, side, SamplingParams(MAX_TOKENS))
    held = Request("r", ids, side, SamplingParams(MAX_TOKENS, min_tokens=6))
    run = run_rows(decoder, [free, held, free])
    options = {"eos_token_id": eos, "max_new_tokens": MAX_TOKENS}
    early = case.oracle.generate(ids, side, **options)
    late = case.oracle.generate(ids, side, min_new_tokens=6, **options)
    assert run.answers == [early, late, early]
    assert len(early) <= 2 < 6 <= len(late)
