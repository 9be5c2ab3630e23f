"""Each architecture against PEFT's `set_adapter` + `generate`, adapters mixed.

As test_parity.py, on a smaller scale: the same tokens in float32. Prompts are longer than the
sliding windows, and some answers cross them.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.model_loader import Family, Pretrained, load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.architectures import ARCHITECTURES
from deployments.engine.models.bart import BART_MODELS
from deployments.engine.models.t5 import T5_MODELS
from deployments.engine.models.t5gemma import T5GEMMA_MODELS
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import Request, SamplingParams
from scripts.benchmarks.in_process.rounding_errors import Recorder
from tests.deployments.engine.captured_on_host import captured
from tests.deployments.engine.planted_guesses import know, note_drafts
from tests.deployments.engine.prefix_runs import Driver
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_parity import GAP, INTERPRETED, Case, one_thread
from tests.oracle import Oracle
from tests.tiny_architectures import RECIPES, WINDOW, family_of, make_tiny
from tests.tiny_models import load_model, make_adapter

pytestmark = pytest.mark.slow

__all__ = ["one_thread"]  # a fixture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the oracle stays on the CPU
MAX_TOKENS = 12
NUM_ROWS = 5
LIMITS = FastLimits(NUM_ROWS, 96, max_adapters=5)
# Some begin within a window and end behind it.
LENGTHS = (WINDOW - 6, 40, WINDOW, 1, WINDOW + 1, 27, 3, WINDOW - 1, 9, 18)


def modules_of(name: str) -> tuple[list[str], list[str], list[str]]:
    """Return the linear layers before attention and before the activation, and those after each."""
    if name.endswith("t5"):
        return ["q", "k", "v"], ["wi_0", "wi_1"], ["o", "wo"]
    if family_of(name) == "seq2seq" and "gemma" not in name:
        return ["q_proj", "k_proj", "v_proj"], ["fc1"], ["out_proj", "fc2"]
    if name.startswith("phi"):
        return ["qkv_proj"], ["gate_up_proj"], ["o_proj", "down_proj"]
    attention, mlp = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]
    return attention, mlp, ["o_proj", "down_proj"]


def make_adapters(name: str, base: Path, folder: Path) -> dict[str, Path]:
    attention, mlp, after = modules_of(name)
    kinds: dict[str, dict[str, Any]] = {
        "small": {"rank": 4, "targets": [attention[-1], after[-1]], "std": 0.5},
        "dora": {
            "rank": 6,
            "targets": [*attention, *mlp, *after],
            "std": 0.3,
            "use_dora": True,
            "exclude_modules": rf".*\.0\..*{mlp[0]}",
        },
        "wide": {"rank": 64, "targets": [*attention, *mlp, *after], "std": 0.1},
        "patterns": {
            "rank": 16,
            "targets": [*attention, *mlp],
            "std": 0.3,
            "use_rslora": True,
            "rank_pattern": {mlp[0]: 5},
        },
        "ends": {"rank": 8, "targets": ["embed_tokens", attention[0], "lm_head"], "std": 0.2},
    }
    if family_of(name) == "seq2seq":
        kinds["ends"]["targets"] = attention[:1]
    return {
        kind: make_adapter(base, folder / kind, base_name=str(base), seed=seed, **options)
        for seed, (kind, options) in enumerate(kinds.items(), start=1)
    }


@pytest.fixture(scope="module", params=sorted(RECIPES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    folder = tmp_path_factory.mktemp(f"architecture-{name}")
    base = make_tiny(name, folder / "base")
    adapters = make_adapters(name, base, folder)
    decoder = fast(base, adapters)
    for kind, directory in adapters.items():
        decoder.load_adapter(kind, directory)
    return Case(name, base, adapters, decoder, Oracle(base, adapters))


def loaded_from(base: Path, device: str = "cpu") -> Pretrained:
    config = json.loads((base / "config.json").read_text())
    family: Family = "seq2seq" if config.get("is_encoder_decoder") else "causal"
    return load_pretrained(base, family, device=device, dtype="float32")


def fast(base: Path, adapters: dict[str, Path]) -> ModelRunner:
    loaded = loaded_from(base, DEVICE)
    decoder = build_decoder(loaded, "fast", LIMITS, adapters)
    assert isinstance(decoder, ModelRunner)
    return decoder


def requests_of(case: Case, lengths: tuple[int, ...], num_tokens: int) -> list[Request]:
    rng = random.Random(5)
    sides = case.sides
    return [
        Request(
            f"r{i}",
            tuple(rng.randrange(3, case.decoder.vocab_size) for _ in range(length)),
            sides[i % len(sides)],
            SamplingParams(num_tokens),
        )
        for i, length in enumerate(lengths)
    ]


def assert_same(
    case: Case,
    requests: list[Request],
    answers: list[list[int]],
    hidden_ids: frozenset[int] = frozenset(),
) -> None:
    """The same tokens, but where the oracle's two largest logits are closer than GAP.

    Args:
        hidden_ids: not among the answers' tokens.
    """
    for asked, answer in zip(requests, answers, strict=True):
        expected, gaps = case.oracle.generate_with_gaps(
            asked.prompt_ids, asked.adapter, asked.sampling.max_tokens
        )
        expected = [token for token in expected if token not in hidden_ids]
        differs = [i for i, (a, b) in enumerate(zip(answer, expected, strict=False)) if a != b]
        if differs:
            assert gaps[differs[0]] < GAP, f"{asked.adapter}: token {differs[0]} differs"
        else:
            assert len(answer) == len(expected)


def test_the_adapters_differ_from_the_base_and_from_each_other(case: Case) -> None:
    ids = requests_of(case, (20,), 1)[0].prompt_ids
    answers = [tuple(case.oracle.generate(ids, side, MAX_TOKENS)) for side in case.sides]
    assert len(set(answers)) == len(case.sides), "nothing would be tested"


def test_mixed_adapters_answer_as_peft_does_alone(case: Case) -> None:
    requests = requests_of(case, LENGTHS, MAX_TOKENS)
    run = run_rows(case.decoder, requests, prefill_tokens=200)
    assert run.most_rows == run.most_adapters == NUM_ROWS
    assert_same(case, requests, run.answers)


def test_prompts_in_pieces_of_seven_tokens(case: Case) -> None:
    requests = requests_of(case, (40, 17, 9, 30), 4)
    run = run_rows(case.decoder, requests, arrivals=[0, 1, 2, 9], prefill_tokens=7)
    if case.decoder.can_split_prompts:
        assert any(not chunk.is_last for plan in run.plans for chunk in plan.prefill)
    assert_same(case, requests, run.answers)


@pytest.mark.parametrize("on_host", [False, True])
def test_guessed_tokens_are_those_of_peft(
    case: Case, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows whose guesses are right for some tokens, and then wrong.

    on_host: by steps as a GPU has them, of a stand-in.
    """
    if not case.decoder.can_try_drafts:
        pytest.skip("this decoder guesses nothing")
    if on_host:
        if DEVICE == "cuda" or not case.decoder.info.batch_invariant:
            pytest.skip("of a CPU, and of sums in one order")
        captured(case.decoder, monkeypatch)
    requests = requests_of(case, (WINDOW - 6, 20, 3), MAX_TOKENS)
    plain = run_rows(case.decoder, requests).answers
    lines = note_drafts(case.decoder, monkeypatch)
    know(monkeypatch, {asked.prompt_ids: own for asked, own in zip(requests, plain, strict=True)})
    driver = Driver(case.decoder, reuses_prefixes=False, tries_drafts=True)
    found = driver.run(requests, arrivals=[0, 0, 9])
    assert max(map(len, lines)) == 2, "nothing would be tested"
    assert max(len(own) for line in lines for own in line.values()) > 2
    assert_same(case, requests, found.tokens, case.decoder.info.eos_ids)


@torch.inference_mode()
def test_the_logits_are_transformers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales and caps of the logits change no greedy token."""
    asked = requests_of(case, (40,), 4)[0]
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(NUM_ROWS)}
    with monkeypatch.context() as patch:
        patch.setattr(case.decoder, "_sampler", Recorder(case.decoder._sampler, seen))
        answer = run_rows(case.decoder, [asked]).answers[0]
    model, prompt = load_model(case.base), torch.tensor([asked.prompt_ids])
    if case.name == "umt5" and not model.decoder.block[0].layer[0].SelfAttention.is_causal:
        pytest.skip("this transformers lets umT5's decoder see what follows")
    if family_of(case.name) == "seq2seq":
        fed = torch.tensor([[loaded_from(case.base).decoder_start_id, *answer[:-1]]])
        expected = model(input_ids=prompt, decoder_input_ids=fed).logits[0]
    else:
        fed = torch.cat([prompt, torch.tensor([answer[:-1]], dtype=torch.long)], 1)
        expected = model(fed).logits[0, 39:]
    found = torch.stack(next(logits for logits in seen.values() if logits))
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.long
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 and Triton")
def test_the_kernels_in_tritons_interpreter(case: Case) -> None:
    requests = requests_of(case, (WINDOW - 2, WINDOW + 3, 3, WINDOW), 4)
    assert_same(case, requests, run_rows(case.decoder, requests, prefill_tokens=200).answers)


def test_every_architecture_has_a_recipe() -> None:
    assert {model.__name__ for _, model, _ in RECIPES.values()} == {
        *ARCHITECTURES,
        *T5_MODELS,
        *BART_MODELS,
        *T5GEMMA_MODELS,
    }


def chosen(base: Path) -> PeftDecoder | ModelRunner:
    return build_decoder(loaded_from(base), "auto", LIMITS, {})


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_field_that_nobody_knows_goes_to_the_reference_decoder(name: str, tmp_path: Path) -> None:
    base = make_tiny(name, tmp_path / "base")
    file = base / "config.json"
    config = json.loads(file.read_text())
    neutral: dict[str, Any] = {"use_gates": False, "extra_norm": None, "z_loss": 0.0, "taps": []}
    file.write_text(json.dumps(config | neutral))
    assert isinstance(chosen(base), ModelRunner)
    file.write_text(json.dumps(config | {"value_gate": 0.5}))
    decoder = chosen(base)
    assert isinstance(decoder, PeftDecoder)
    assert "value_gate is 0.5 in its config, a field" in decoder.info.reason


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
        ("llama", {"sliding_window": 8}, "sliding_window is 8 in its config"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0 in its config"),
        ("olmo2", {"sliding_window": 0}, "sliding_window is 0 in its config"),
        ("phi3", {"sliding_window": -1}, "sliding_window is -1 in its config"),
        ("gemma3", {"sliding_window": None}, "sliding_window is None in its config"),
        ("qwen3", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
         "sliding_window is None in its config"),
        ("llama", {"attention_multiplier": 0.3}, "attention_multiplier is 0.3 in its config"),
        ("qwen3", {"hidden_act": "tanh"}, "its activation is 'tanh'"),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_not_fast(
    name: str, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    decoder = chosen(make_tiny(name, tmp_path / "base", **options))
    assert isinstance(decoder, PeftDecoder)
    assert named in decoder.info.reason


def test_a_rope_that_moves_with_the_length_is_fast_where_it_cannot_move(tmp_path: Path) -> None:
    loaded = loaded_from(make_tiny("phi4_mini", tmp_path / "base"))
    long = build_decoder(loaded, "auto", FastLimits(2, 129, max_adapters=1), {})
    assert isinstance(long, PeftDecoder)
    assert "frequencies change beyond 128 positions, and an answer may take 129" in long.info.reason
    assert isinstance(
        build_decoder(loaded, "auto", FastLimits(2, 128, max_adapters=1), {}), ModelRunner
    )


def test_queries_that_are_scaled_from_a_position_on_are_fast_before_it(tmp_path: Path) -> None:
    loaded = loaded_from(make_tiny("ministral3", tmp_path / "base"))
    long = build_decoder(loaded, "auto", FastLimits(2, 129, max_adapters=1), {})
    assert isinstance(long, PeftDecoder)
    assert "llama_4_scaling_beta scales queries from position 128 on" in long.info.reason
    assert "lower engine.max_input_tokens" in long.info.reason


@pytest.mark.skipif(are_fused("cpu"), reason="the interpreter runs the steps")
def test_a_window_that_no_answer_is_longer_than_is_none(tmp_path: Path) -> None:
    """As in Mistral 7B v0.1 and what was made of it, of 4,096 positions: also in eight bits."""
    from deployments.engine.decoder_factory import unsupported_in_bytes

    loaded = loaded_from(make_tiny("mistral_window", tmp_path / "base"))
    assert unsupported_in_bytes(loaded, WINDOW) is None
    assert f"sliding_window {WINDOW}" in str(unsupported_in_bytes(loaded, WINDOW + 1))
    limits = FastLimits(2, WINDOW, max_adapters=1)
    build_decoder(loaded, "fast", limits, {}, weights="int8")
    with pytest.raises(FastDecoderImpossible, match="has a sliding window"):
        build_decoder(loaded, "fast", LIMITS, {}, weights="int8")


@pytest.mark.skipif(are_fused("cpu"), reason="the interpreter runs the steps")
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_only_plain_layers_are_compiled_for_eight_bits(name: str, tmp_path: Path) -> None:
    from deployments.engine.decoder_factory import unsupported_in_bytes

    base = make_tiny(name, tmp_path / "base")
    reason = unsupported_in_bytes(loaded_from(base))
    named = {"mistral_window": f"MistralForCausalLM has a sliding window (sliding_window {WINDOW})"}
    if name in ("llama", "llama_dynamic", "mistral", "ministral3"):
        assert reason is None
    elif family_of(name) == "seq2seq":
        assert reason == "the base is an encoder-decoder"
    else:
        assert "only plain Llama layers are compiled" in str(reason)
        assert named.get(name, " has ") in str(reason)
