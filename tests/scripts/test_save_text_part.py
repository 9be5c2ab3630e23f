"""The text part of a model that reads images is the same model of text, or is not written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from adapters.bases.check import check_folder
from adapters.bases.models import BaseModelError, family_of
from scripts.save_text_part import main
from tests.tiny_models import llama_fields
from tests.tiny_tokenizers import byte_pair_tokenizer

pytestmark = pytest.mark.slow

IMAGES: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    image_size=8, patch_size=4,
)  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """As Gemma 3 4B is published: two configurations, the chat template a file of its own."""
    folder, tokenizer = tmp_path / "whole", byte_pair_tokenizer()
    text = llama_fields(tokenizer) | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6}
    config = Gemma3Config(
        text_config=text, vision_config=IMAGES, mm_tokens_per_image=1, image_token_index=399
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [1, 2]
    model.save_pretrained(folder)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_the_part_is_served_as_the_model_of_text_that_it_is(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BaseModelError, match=r"reads images .* scripts\.save_text_part") as refused:
        check_folder(whole)
    assert f"--base_model {whole}" in str(refused.value)
    out = tmp_path / "text"
    words = ["--base_model", str(whole), "--out", str(out)]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "Gemma3ForCausalLM"
    assert report["parameters"] < report["of"]
    check_folder(out)
    assert family_of(out) == "causal"
    text = AutoModelForCausalLM.from_pretrained(out)
    assert text.generation_config.eos_token_id == [1, 2]
    assert (out / "chat_template.jinja").is_file()
    ids = torch.arange(40)[None] * 7 % 390
    full = AutoModelForImageTextToText.from_pretrained(whole)
    assert torch.equal(text(input_ids=ids).logits, full(input_ids=ids).logits)
    assert main(words) == 2, "an existing folder is left alone"


def test_a_model_of_text_alone_has_no_text_part(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--base_model", str(tiny_llama_dir), "--out", str(tmp_path / "text")]) == 2
    assert "save_text_part: " in capsys.readouterr().err
    assert not (tmp_path / "text").exists()


def test_a_part_with_other_logits_is_not_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = Gemma3ForConditionalGeneration.forward

    def other(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.logits = output.logits + 1
        return output

    monkeypatch.setattr(Gemma3ForConditionalGeneration, "forward", other)
    assert main(["--base_model", str(whole), "--out", str(tmp_path / "text")]) == 2
    assert "has other logits than within Gemma3ForConditionalGeneration" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()
