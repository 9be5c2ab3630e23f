"""What a base model's generation_config.json asks for and is not followed is said at the start."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.model_loader import load_pretrained


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"repetition_penalty": 1.3}, ["repetition_penalty 1.3"]),
        ({"num_beams": 4, "suppress_tokens": [5]}, ["num_beams 4", "suppress_tokens [5]"]),
        ({"bad_words_ids": [[5]]}, ["bad_words_ids [[5]]"]),
        ({"forced_eos_token_id": 1, "min_new_tokens": 3},
         ["forced_eos_token_id 1", "min_new_tokens 3"]),
        ({"guidance_scale": 1.5}, ["guidance_scale 1.5"]),
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
