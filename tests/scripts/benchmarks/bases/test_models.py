"""Tokenizers of random models: every id has a text, special tokens are where the shapes say."""

import pytest

from deployments.engine.model_loader import Family
from scripts.benchmarks.bases.models import word_tokenizer


@pytest.mark.parametrize(("family", "eos", "pad"), [("causal", 2, 2), ("seq2seq", 1, 0)])
def test_every_id_has_a_text(family: Family, eos: int, pad: int) -> None:
    tokenizer = word_tokenizer([f"w{number}" for number in range(3, 1000)], family)
    assert len(tokenizer) == 1000
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (eos, pad)
    assert tokenizer.decode([998, 999]).strip() == "w998 w999"
    assert tokenizer("w5 unheard")["input_ids"][:2] == [5, tokenizer.unk_token_id]
