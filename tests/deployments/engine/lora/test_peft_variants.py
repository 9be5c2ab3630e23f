"""Kinds of adapters that PEFT saves, on every architecture: all in one decoder, PEFT's tokens.

The oracle is a model of its own for each adapter: PEFT's `set_adapter` + `generate`, float32.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

from adapters.validation import check_adapter
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.invariance import BatchInvariant
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_architectures import loaded_from
from tests.deployments.engine.test_parity import GAP, one_thread
from tests.deployments.engine.test_peft_decoder import ListSink
from tests.oracle import Oracle
from tests.tiny_architectures import RECIPES, family_of, make_tiny
from tests.tiny_models import make_adapter

__all__ = ["one_thread"]  # a fixture

MAX_TOKENS = 10
INVOKED = [9, 17]
# Kinds of which every pair is batched: ranks 1 to 64, rescaled or not, in other layers.
PAIRED = (
    "every layer",
    "rank 1",
    "rank 64",
    "stabilised",
    "one layer",
    "dora",
    "dora by patterns",
    "blocks of A",
    "embedding, dora",
    "output layer",
    "ends",
)
Kinds = Mapping[str, dict[str, Any]]
Expected = list[tuple[list[int], list[float]]]
# Modules of a layer: of attention, of the MLP, and those that give their outputs.
MODULES: Mapping[str, tuple[list[str], list[str], list[str]]] = {
    "t5": (["q", "v"], ["wi_0", "wi_1"], ["o", "wo"]),
    "bart": (["q_proj", "v_proj"], ["fc1"], ["out_proj", "fc2"]),
    "phi": (["qkv_proj"], ["gate_up_proj"], ["o_proj", "down_proj"]),
    "llama": (["q_proj", "v_proj"], ["gate_proj", "up_proj"], ["o_proj", "down_proj"]),
}


def modules_of(name: str) -> tuple[list[str], list[str], list[str]]:
    if name.endswith("t5"):
        return MODULES["t5"]
    if name.startswith("phi"):
        return MODULES["phi"]
    is_bart = family_of(name) == "seq2seq" and "gemma" not in name
    return MODULES["bart" if is_bart else "llama"]


def layer_kinds(name: str) -> Kinds:
    """Those that change linear layers only, which the fast decoder serves everywhere."""
    attention, mlp, after = modules_of(name)
    every = [*attention, *mlp, *after]
    layers = "block" if name.endswith("t5") else "layers"
    in_rows = BdLoraConfig(target_modules_bd_b=attention, nblocks=2, match_strict=False)
    in_columns = BdLoraConfig(target_modules_bd_a=mlp, nblocks=4, match_strict=False)
    return {
        "attention": {},
        "every layer": {"targets": every},
        "all-linear": {"target_modules": "all-linear"},
        "a pattern": {"target_modules": rf".*\.1\..*\.({attention[0]}|{after[0]})"},
        "but names": {"target_modules": "all-linear", "exclude_modules": [after[0]]},
        "but a pattern": {"targets": every, "exclude_modules": r".*\.0\..*"},
        "one layer": {"layers_to_transform": 1, "targets": every},
        "some layers": {"layers_to_transform": [0], "layers_pattern": layers},
        "rank 1": {"rank": 1},
        "rank 64": {"rank": 64, "targets": every, "std": 0.1},
        "stabilised": {"use_rslora": True, "rank": 16, "std": 0.3},
        "patterns": {
            "targets": every,
            "rank_pattern": {after[0]: 2, mlp[-1]: 7},
            "alpha_pattern": {attention[0]: 32, after[1]: 1},
        },
        "patterns of a layer": {
            "targets": every,
            "use_rslora": True,
            "rank_pattern": {rf"^.*\.{layers}\.1\..*{attention[-1]}": 9},
            "alpha_pattern": {r".*\.0\..*": 3},
        },
        "a negative alpha": {"lora_alpha": -8},
        "dora": {"use_dora": True},
        "dora everywhere": {"use_dora": True, "use_rslora": True, "targets": every, "std": 0.3},
        "dora by patterns": {
            "use_dora": True,
            "targets": every,
            "rank_pattern": {after[0]: 2, mlp[-1]: 7},
        },
        "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        "orthogonal": {"init_lora_weights": "orthogonal"},
        "mica": {"init_lora_weights": "mica"},
        "velora": {"velora_config": VeloraConfig(num_groups=8, init_type="random")},
        "monteclora": {"monteclora_config": MontecloraConfig()},
        "blocks of B": {"use_bdlora": in_rows, "targets": [*attention, after[0]]},
        "blocks of A": {"use_bdlora": in_columns, "targets": [*mlp, attention[0]]},
    }


def end_kinds(name: str) -> Kinds:
    """Those of the embedding and of the output layer, which are fast in a decoder-only model."""
    if name == "t5gemma2":  # PEFT saves a weight of its embedding that no check here knows
        return {}
    embedding = "embed_tokens" if family_of(name) == "causal" or "gemma" in name else "shared"
    attention, *_ = modules_of(name)
    ends = {
        "embedding": {"targets": [embedding, *attention], "std": 0.2},
        "embedding, dora": {"targets": [embedding, *attention], "use_dora": True, "std": 0.2},
    }
    if "t5gemma" in name:  # PEFT does not know the module of their output layer
        return ends
    return ends | {
        "output layer": {"targets": ["lm_head", attention[0]], "std": 0.2},
        "output layer, dora": {"targets": ["lm_head"], "use_dora": True, "std": 0.2},
        "ends": {
            "targets": [embedding, "lm_head", *attention],
            "use_rslora": True,
            "rank_pattern": {embedding: 6, "lm_head": 3},
            "std": 0.2,
        },
    }


def whole_kinds(name: str) -> Kinds:
    """Those with more than A and B, which the reference decoder serves."""
    embedding = "embed_tokens" if family_of(name) == "causal" or "gemma" in name else "shared"
    attention, mlp, after = modules_of(name)
    kinds: dict[str, dict[str, Any]] = {
        "biases": {"bias": "all"},
        "biases of its layers": {"bias": "lora_only", "targets": [*attention, *mlp, *after]},
        "a bias of B": {"lora_bias": True},
        "dora and biases": {"use_dora": True, "bias": "all"},
        "a whole layer": {"modules_to_save": [mlp[-1]]},
        "the embedding": {"modules_to_save": [embedding]},
        "tokens": {"trainable_token_indices": [5, 9, 17]},
        "tokens by module": {"trainable_token_indices": {embedding: [5, 9, 17, 30]}},
    }
    if family_of(name) == "causal":
        some = [17, *range(40, 100)]
        kinds |= {
            "the output layer": {"modules_to_save": ["lm_head"]},
            "both ends": {"modules_to_save": [embedding, "lm_head"]},
            "the embedding, a pair of the output layer": {
                "modules_to_save": [embedding],
                "targets": ["lm_head", attention[0]],
                "std": 0.2,
            },
            "the output layer, a pair of the embedding": {
                "modules_to_save": ["lm_head"],
                "targets": [embedding, attention[0]],
                "std": 0.2,
            },
            "tokens of the output layer": {"trainable_token_indices": {"lm_head": some}},
            "tokens of both ends": {
                "trainable_token_indices": {embedding: [5, 9], "lm_head": some},
                "use_dora": True,
            },
            "both ends, tied": {
                "modules_to_save": [embedding, "lm_head"],
                "ensure_weight_tying": True,
            },
            "tokens, tied": {"trainable_token_indices": [5, 9], "ensure_weight_tying": True},
            "invoked": {"alora_invocation_tokens": INVOKED},
        }
    return kinds


def saved(base: Path, name: str, folder: Path, seed: int, **options: Any) -> Path:
    """An adapter of which every weight has been trained; equal ones stay equal."""
    usual = {"std": 0.5, "targets": modules_of(name)[0]}
    make_adapter(base, folder, base_name="b", seed=seed, **usual | options)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(tensor.shape, generator=generator)
        if ".lora_A." in name and options.get("init_lora_weights") == "mica":
            tensors[name] = noise * 0.3  # zeros at first, in place of B
        elif ".lora_B.bias" in name or ("lora_" not in name and "base_layer" not in name):
            tensors[name] = tensor + 0.2 * noise
    save_file(tensors, file)
    return folder


def prompts_of(base: Path) -> list[list[int]]:
    """Two prompts with the tokens that some adapters wait for."""
    rng, size = random.Random(3), int(loaded_from(base).model.config.get_text_config().vocab_size)
    return [
        [*(rng.randrange(3, size) for _ in range(length)), *INVOKED, 5, rng.randrange(3, size)]
        for length in (14, 3)
    ]


def oracles(
    base: Path, adapters: Mapping[str, Path], prompts: Sequence[list[int]]
) -> dict[str | None, Expected]:
    expected: dict[str | None, Expected] = {}
    for name, folder in adapters.items():
        oracle = Oracle(base, {name: folder})
        for side in (name, None) if not expected else (name,):
            expected[side] = [oracle.generate_with_gaps(ids, side, MAX_TOKENS) for ids in prompts]
    without = [name for name in adapters if tokens(expected[name]) == tokens(expected[None])]
    assert not without, "these adapters change nothing"
    return expected


def tokens(expected: Expected) -> list[list[int]]:
    return [answer for answer, _ in expected]


def differing(found: Sequence[list[int]], expected: Expected) -> list[str]:
    """Where tokens differ, but for those whose two largest logits are closer than GAP."""
    problems = []
    for number, (answer, (right, gaps)) in enumerate(zip(found, expected, strict=True)):
        first = next((i for i, (a, b) in enumerate(zip(answer, right, strict=False)) if a != b), -1)
        if (first < 0 and len(answer) != len(right)) or (first >= 0 and gaps[first] >= GAP):
            problems.append(f"prompt {number}: {answer} instead of {right}")
    return problems


def requests_of(prompts: Sequence[list[int]], side: str | None) -> list[Request]:
    return [Request("r", tuple(ids), side, SamplingParams(MAX_TOKENS)) for ids in prompts]


def prepared(
    base: Path, name: str, folder: Path, kinds: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Path], list[list[int]], dict[str | None, Any], Any]:
    """Return an adapter of each kind, prompts, what PEFT answers with each and with a plain one,
    and the decoder that `auto` takes for them.

    The base's answers are those beside the plain one: PEFT leaves an adapter's biases in the base.
    """
    folders = {
        kind: saved(base, name, folder / kind, seed, **options)
        for seed, (kind, options) in enumerate(kinds.items(), start=1)
    }
    assert [problem for each in folders.values() for problem in check_adapter(each, "b")] == []
    prompts = prompts_of(base)
    limits = FastLimits(8, 96, max_adapters=len(folders))
    decoder = build_decoder(loaded_from(base), "auto", limits, folders)
    plain = {"plain": saved(base, name, folder / "plain", 99)}
    return folders, prompts, oracles(base, plain | folders, prompts), decoder


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_kinds_of_linear_layers(name: str, tmp_path: Path) -> None:
    base = make_tiny(name, tmp_path / "base")
    kinds = {**layer_kinds(name), **(end_kinds(name) if family_of(name) == "causal" else {})}
    folders, prompts, expected, decoder = prepared(base, name, tmp_path, kinds)
    assert isinstance(decoder, ModelRunner), decoder.info.reason
    for kind, folder in folders.items():
        decoder.load_adapter(kind, folder)
    assert wrong_together(decoder, [None, *folders], prompts, expected) == {}


def wrong_together(
    decoder: ModelRunner,
    sides: Sequence[str | None],
    prompts: Sequence[list[int]],
    expected: Mapping[str | None, Expected],
    prefill_tokens: int = 200,
) -> dict[str | None, list[str]]:
    """What differs from `expected`, by side, where all are asked at once."""
    asked = [request for side in sides for request in requests_of(prompts, side)]
    answers = run_rows(decoder, asked, prefill_tokens=prefill_tokens).answers
    per_side = zip(*[iter(answers)] * len(prompts), strict=True)
    wrong = {
        side: differing(found, expected[side]) for side, found in zip(sides, per_side, strict=True)
    }
    return {side: problems for side, problems in wrong.items() if problems}


@pytest.mark.long
@pytest.mark.parametrize("rows", ["auto", False])
@pytest.mark.parametrize("name", ["mistral", "gemma3", "phi3", "nllb"])
def test_pairs_in_one_batch(name: str, rows: BatchInvariant, tmp_path: Path) -> None:
    """Each pair alone in a batch with the base, in slots that other kinds had before."""
    base = make_tiny(name, tmp_path / "base")
    kinds = {**layer_kinds(name), **(end_kinds(name) if family_of(name) == "causal" else {})}
    folders, prompts, expected, _ = prepared(
        base, name, tmp_path, {kind: kinds[kind] for kind in PAIRED if kind in kinds}
    )
    limits = FastLimits(6, 96, max_adapters=2)
    decoder = build_decoder(loaded_from(base), "fast", limits, folders, batch_invariant=rows)
    assert isinstance(decoder, ModelRunner)
    assert decoder.info.batch_invariant is (rows == "auto")
    rng, pairs = random.Random(5), list(itertools.combinations(folders, 2))
    rng.shuffle(pairs)
    wrong = {}
    for pair in pairs:
        for kind in decoder.info.adapters - {*pair}:
            decoder.evict(kind)
        for kind in {*pair} - decoder.info.adapters:
            decoder.load_adapter(kind, folders[kind])
        sides = [*pair, None]
        rng.shuffle(sides)
        wrong[pair] = wrong_together(decoder, sides, prompts, expected, rng.choice([9, 200]))
    assert {at: problems for at, problems in wrong.items() if problems} == {}


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_kinds_of_more_than_linear_layers(name: str, tmp_path: Path) -> None:
    """One after the other, beside a plain one: PEFT wraps a module for one kind at a time."""
    base = make_tiny(name, tmp_path / "base")
    kinds = {**whole_kinds(name), **(end_kinds(name) if family_of(name) == "seq2seq" else {})}
    if not any(path.endswith("bias") for path, _ in loaded_from(base).model.named_parameters()):
        kinds = {kind: options for kind, options in kinds.items() if "bias" not in options}
    folders, prompts, expected, decoder = prepared(base, name, tmp_path, kinds)
    assert isinstance(decoder, PeftDecoder)
    decoder.load_adapter("plain", tmp_path / "plain")
    wrong = {}
    for kind, folder in folders.items():
        decoder.load_adapter(kind, folder)
        for side in (kind, None, "plain", kind):
            found = answers_of(decoder, prompts, side)
            wrong[f"{kind}: {side}"] = differing(found, expected[side])
        decoder.evict(kind)
    wrong["after all"] = differing(answers_of(decoder, prompts, None), expected[None])
    assert {at: problems for at, problems in wrong.items() if problems} == {}


def answers_of(
    decoder: PeftDecoder, prompts: Sequence[list[int]], side: str | None
) -> list[list[int]]:
    sink = ListSink([MAX_TOKENS] * len(prompts), decoder.info.eos_ids)
    decoder.set_adapter(side)
    decoder.generate(requests_of(prompts, side), sink)
    return sink.rows
