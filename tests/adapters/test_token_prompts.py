"""Token ids as text: what they stand for, and which of them stand for none."""

from typing import Any

import pytest

from adapters.token_prompts import TokenIdRefused, decode_prompt
from tests.tiny_tokenizers import byte_pair_tokenizer, unigram_tokenizer

TOKENIZERS = {"byte-level BPE": byte_pair_tokenizer(), "unigram": unigram_tokenizer()}
TEXTS = ("What is eczema?", "How is high blood pressure treated? With drugs", "salt , less salt .")


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("framed", [False, True])
def test_the_ids_of_a_text_are_that_text(tokenizer: Any, text: str, framed: bool) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if framed:
        end = tokenizer.eos_token_id
        begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = [begin, *ids, end, tokenizer.pad_token_id]
    assert decode_prompt(ids, tokenizer=tokenizer) == text
    with_its_own = tokenizer(text).input_ids
    assert decode_prompt(with_its_own, tokenizer=tokenizer) == text


def test_a_letter_of_several_bytes_is_whole() -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]
    ids = tokenizer("un œdème", add_special_tokens=False).input_ids
    assert decode_prompt(ids, tokenizer=tokenizer) == "un œdème"
    cut = ids[: ids.index(tokenizer("œ", add_special_tokens=False).input_ids[0]) + 1]
    with pytest.raises(TokenIdRefused, match="whole characters"):
        decode_prompt(cut, tokenizer=tokenizer)


def test_an_id_out_of_range_is_named_with_the_range(tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    for bad in (len(tokenizer), 50_256, 10**30):
        with pytest.raises(TokenIdRefused, match=f"{bad} is out of range.*0 to ") as refused:
            decode_prompt([*ids, bad, *ids], tokenizer=tokenizer)
        assert refused.value.position == len(ids)
        assert str(len(tokenizer) - 1) in str(refused.value)


def test_a_control_token_inside_the_text_is_named(tokenizer: Any) -> None:
    """The text of a client may not end its turn and begin the assistant's."""
    ids = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    for control in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        with pytest.raises(TokenIdRefused, match="control token") as refused:
            decode_prompt([*ids, control, *ids], tokenizer=tokenizer)
        assert refused.value.position == len(ids)


def test_nothing_but_a_frame_is_an_empty_text(tokenizer: Any) -> None:
    assert decode_prompt([], tokenizer=tokenizer) == ""
    assert decode_prompt([tokenizer.eos_token_id] * 3, tokenizer=tokenizer) == ""
