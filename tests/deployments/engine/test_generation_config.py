"""What a base model's generation_config.json asks for and is not followed is said at the start."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from deployments.engine import model_loader
from deployments.engine.model_loader import load_pretrained

# Followed: the ids. Each request's to say: how to draw, how long. Of beams alone, or of another
# model's guesses; then what has no effect on tokens.
OTHERS = set(
    "pad_token_id bos_token_id eos_token_id decoder_start_token_id do_sample temperature top_k "
    "top_p min_p top_h typical_p epsilon_cutoff eta_cutoff max_length max_new_tokens max_time "
    "num_return_sequences early_stopping length_penalty diversity_penalty num_beam_groups use_mtp "
    "is_assistant num_assistant_tokens num_assistant_tokens_schedule prompt_lookup_num_tokens "
    "assistant_confidence_threshold max_matching_ngram_size assistant_early_exit speculation_type "
    "assistant_lookbehind target_lookbehind assistant_ensemble_weight use_cache cache_config "
    "cache_implementation max_cache_len renormalize_logits remove_invalid_values low_memory "
    "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
    "compile_config disable_compile continuous_batching_config prefill_chunk_size "
    "_from_model_config transformers_version".split()
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"repetition_penalty": 1.3}, ["repetition_penalty 1.3"]),
        ({"num_beams": 4, "suppress_tokens": [5]}, ["num_beams 4", "suppress_tokens [5]"]),
        ({"bad_words_ids": [[5]]}, ["bad_words_ids [[5]]"]),
        ({"forced_eos_token_id": 1, "min_new_tokens": 3},
         ["forced_eos_token_id 1", "min_new_tokens 3"]),
        ({"guidance_scale": 1.5}, ["guidance_scale 1.5"]),
        ({"stop_strings": ["User:"]}, ["stop_strings ['User:']"]),
        ({"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "min_length": 0}, []),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "max_length": 9}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_named(
    tiny_llama_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    our_log_propagates: None,
    asked: dict[str, Any],
    said: list[str],
) -> None:
    """How to draw is each request's to say, and an answer's length too."""
    for file in tiny_llama_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **asked}))
    with caplog.at_level(logging.WARNING, "deployments"):
        load_pretrained(tmp_path, "causal", device="cpu", dtype="float32")
    found = [r.getMessage() for r in caplog.records if "generation_config" in r.getMessage()]
    assert len(found) == bool(said)
    assert all(part in found[0] for part in said)


@pytest.fixture
def base_dir(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))


def ends(base: Path, eos: object) -> None:
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))


@pytest.mark.parametrize("eos", [-1, 99_999, "2", [-1, 99_999], ["2"]])
def test_ends_that_the_model_has_not_are_refused(base_dir: Path, eos: object) -> None:
    ends(base_dir, eos)
    with pytest.raises(ValueError, match=r"eos_token_id is .*: its answers would never end"):
        load_pretrained(base_dir, "causal", device="cpu", dtype="float32")


def test_some_ends_of_a_base_may_be_unknown_and_an_empty_list_names_none(base_dir: Path) -> None:
    ends(base_dir, [5, 99_999])
    loaded = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    assert loaded.eos_ids == {5, 99_999}
    ends(base_dir, [])
    loaded = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    assert loaded.eos_ids == {loaded.model.config.eos_token_id}


def test_padding_of_the_tokenizer_alone_is_not_the_models(base_dir: Path) -> None:
    """A `[PAD]` that was added without resizing the embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base_dir)
    loaded = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    assert loaded.tokenizer.pad_token_id == loaded.num_token_ids
    assert loaded.pad_id < loaded.num_token_ids


def test_every_field_of_transformers_is_one_that_we_know() -> None:
    named = {*model_loader._FACTORS, *model_loader._RULES, *model_loader._FORCED}
    assert not named & OTHERS
    assert set(vars(GenerationConfig())) <= named | OTHERS
