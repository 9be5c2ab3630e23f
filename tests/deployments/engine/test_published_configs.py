"""The fast decoder takes the configurations of the checkpoints that people bring, as published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from adapters.bases.models import family_of
from deployments.engine.model_loader import wrap_pretrained
from deployments.engine.models.choice import unsupported_base
from tests.published_configs import PUBLISHED
from tests.tiny_tokenizers import byte_pair_tokenizer

NUM_POSITIONS = 2048


def obstacle(
    fields: dict[str, Any], folder: Path, num_positions: int = NUM_POSITIONS
) -> str | None:
    """Why a model with this config.json is not fast, without any weights."""
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").write_bytes(b"")
    family = family_of(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    auto = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    with torch.device("meta"):
        model = auto.from_config(config)
    base = wrap_pretrained(
        model, byte_pair_tokenizer(), family, dtype_name="float32", dtype_reason="a test"
    )
    return unsupported_base(base, num_positions)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_fast(name: str, tmp_path: Path) -> None:
    assert obstacle(PUBLISHED[name], tmp_path) is None


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("Gemma 2 9B", {"sliding_window_size": 8}, "sliding_window_size is 8 in its config, a f"),
        ("Gemma 1.1 2B", {"hidden_activation": "relu"}, "hidden_activation is 'relu' in its con"),
        ("Qwen2.5 7B 1M", {"dual_chunk_attention_config": {"size": 3}}, "names no chunk_size"),
        ("Llama 3.1 8B", {"rope_interleaved": True}, "rope_interleaved is True in its config"),
        ("Phi-4 mini", {"full_attn_mod": 2}, "full_attn_mod is 2 in its config"),
    ],
)
def test_what_would_ask_for_something_is_not(
    name: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in str(obstacle(PUBLISHED[name] | fields, tmp_path))


def test_a_million_positions_are_fast_within_one_chunk(tmp_path: Path) -> None:
    fields = PUBLISHED["Qwen2.5 7B 1M"]
    assert obstacle(fields, tmp_path, 253_952) is None
    found = str(obstacle(fields, tmp_path, 253_953))
    assert "cuts a text into chunks of 253952 positions" in found
    assert "lower engine.max_input_tokens" in found
