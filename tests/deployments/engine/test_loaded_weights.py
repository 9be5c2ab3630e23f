"""A base with a weight missing, left over or of another shape is refused, never half read."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.model_loader import load_pretrained
from tests.tiny_architectures import make_tiny

Weights = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def base(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))


def rewrite(base: Path, change: Callable[[Weights], Any]) -> None:
    file = base / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def configure(base: Path, **fields: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refusal(base: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(base))) as refused:
        load_pretrained(base, "causal", device="cpu", dtype="float32")
    return str(refused.value)


def test_a_weight_that_is_missing(base: Path) -> None:
    """transformers draws it at random, and says so on stderr alone."""
    rewrite(base, lambda weights: weights.pop(UP))
    assert f"its files lack {UP}, where LlamaForCausalLM would have random numbers" in refusal(base)


def test_weights_under_other_names(base: Path) -> None:
    def rename(weights: Weights) -> None:
        for name in list(weights):
            weights[f"base_model.model.{name}"] = weights.pop(name)

    rewrite(base, rename)
    assert re.search(r"lack .* \(and \d+ more\)", refusal(base))


def test_a_shape_that_config_json_does_not_say(base: Path) -> None:
    configure(base, intermediate_size=96)
    said = refusal(base)
    assert "has the shape" in said
    assert "correct config.json" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_position_embeddings": 512.0}, "'max_position_embeddings' expected int, got float"),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 4.0}}, "KeyError: 'ntk'"),
        ({"hidden_act": "swish_glu"}, "KeyError: 'swish_glu'"),
        ({"pad_token_id": 5000}, "AssertionError: Padding_idx"),
        ({"model_type": "lama"}, "lama"),
    ],
)
def test_a_value_that_transformers_has_no_case_for(
    fields: dict[str, Any], said: str, base: Path
) -> None:
    configure(base, **fields)
    found = refusal(base)
    assert said in found
    assert "cannot make a model by its config.json" in found


@pytest.mark.parametrize(
    ("change", "left_over"),
    [
        (lambda w: w.update({UP + "_scale": torch.ones(1)}), UP + "_scale"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            "model.layers.0.self_attn.q_proj.bias",
        ),
        (lambda w: w.update({UP.replace("1", "2"): w[UP].clone()}), UP.replace("1", "2")),
    ],
    ids=["a scale", "a bias", "a layer more"],
)
def test_a_weight_that_would_be_left_out(
    change: Callable[[Weights], Any], left_over: str, base: Path
) -> None:
    rewrite(base, change)
    assert f"its files hold {left_over}, which LlamaForCausalLM would leave out" in refusal(base)


def test_what_the_model_computes_nothing_with_is_no_matter(base: Path) -> None:
    """Frequencies as the first Llamas saved them, a part for images, another head."""
    rewrite(
        base,
        lambda weights: weights.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                "vision_tower.layers.0.q_proj.weight": torch.ones(2, 2),
                "score.weight": torch.ones(2, 64),
                "model.version": torch.ones(1),
            }
        ),
    )
    load_pretrained(base, "causal", device="cpu", dtype="float32")


def test_one_dtype_at_every_depth(tmp_path: Path) -> None:
    """As T5Gemma 2 is published: the configurations within its halves name bfloat16."""
    base = make_tiny("t5gemma2", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    halves = (config["encoder"], config["encoder"]["text_config"], config["decoder"], config)
    for half in halves:
        half["dtype"] = "bfloat16"
    configure(base, **config)
    model = load_pretrained(base, "seq2seq", device="cpu", dtype="float32").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_padding_token_below_zero_is_none(base: Path) -> None:
    """The first Llama's config.json has one."""
    configure(base, pad_token_id=-1)
    file = base / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("pad_token")
    file.write_text(json.dumps(config))
    loaded = load_pretrained(base, "causal", device="cpu", dtype="float32")
    assert loaded.pad_id == min(loaded.eos_ids)
