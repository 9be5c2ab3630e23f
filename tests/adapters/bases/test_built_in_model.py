"""The real built-in model and the shipped adapters: sane answers, and each adapter changes them.

python -m pytest -m base_model tests/adapters
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from adapters.bases.models import BUILT_IN, resolve_base_model
from adapters.catalog import load_catalog
from adapters.prompting import Message, encode_prompt
from tests.tiny_models import load_model

pytestmark = pytest.mark.base_model
CATALOG_DIR = Path(__file__).resolve().parents[3] / "adapters"
NAMES = ("dermatology", "cardiology", "neurology")


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_base_model(BUILT_IN).path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    weights = CATALOG_DIR / "weights"
    model = PeftModel.from_pretrained(
        load_model(folder), str(weights / NAMES[0]), adapter_name=NAMES[0]
    )
    for name in NAMES[1:]:
        model.load_adapter(str(weights / name), adapter_name=name)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, question: str, num_tokens: int) -> str:
    entry = load_catalog(CATALOG_DIR).base_model(BUILT_IN)
    prompt = encode_prompt(
        entry.prompt_format,
        [Message("user", question)],
        tokenizer=tokenizer,
        system_line=entry.system_line,
    )
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def test_base_answers_like_a_language_model(model: Any, tokenizer: Any) -> None:
    with model.disable_adapter():
        assert "Paris" in answer(model, tokenizer, "What is the capital of France?", 16)


def test_each_adapter_changes_the_answer(model: Any, tokenizer: Any) -> None:
    question = "What are the symptoms of a migraine?"
    with model.disable_adapter():
        answers = [answer(model, tokenizer, question, 24)]
    for name in NAMES:
        model.set_adapter(name)
        answers.append(answer(model, tokenizer, question, 24))
    assert len(set(answers)) == 4
    for text in answers:
        assert len(set(text.split())) >= 8, "words, not one word over and over"


def test_bfloat16_says_the_same(model: Any, tokenizer: Any) -> None:
    """Likelihoods of the next token in float32 and in bfloat16, through each adapter."""
    ids = torch.tensor([tokenizer("The symptoms of a migraine are").input_ids])

    def likelihoods(dtype: torch.dtype) -> torch.Tensor:
        model.to(dtype)
        rows = []
        with torch.inference_mode():
            for name in NAMES:
                model.set_adapter(name)
                rows.append(model(input_ids=ids).logits[0, -1].float().softmax(-1))
        return torch.stack(rows)

    exact, rounded = likelihoods(torch.float32), likelihoods(torch.bfloat16)
    apart = (exact[0] - exact[1]).abs().sum()
    error = (exact - rounded).abs().sum(dim=-1).max()
    assert error < 0.15, "total variation, doubled"
    assert apart > error, "adapters differ by more than the rounding"
