"""Filled vocabularies: every id has a text, and the special tokens stay where the shapes say."""

from collections.abc import Callable
from typing import Any

import pytest

from scripts.benchmarks.models import byte_pair_tokenizer, unigram_tokenizer


@pytest.mark.parametrize(
    ("make", "eos", "pad"), [(byte_pair_tokenizer, 2, 2), (unigram_tokenizer, 1, 0)]
)
def test_every_id_of_a_filled_vocabulary_has_a_text(
    make: Callable[..., Any], eos: int, pad: int
) -> None:
    tokenizer = make(1000)
    assert len(tokenizer) == 1000
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (eos, pad)
    assert tokenizer.decode([998, 999]).strip() == "w998 w999"


def test_filling_changes_no_id_of_a_text() -> None:
    text = "What is eczema?"
    for make in (byte_pair_tokenizer, unigram_tokenizer):
        assert make(1000)(text).input_ids == make()(text).input_ids
