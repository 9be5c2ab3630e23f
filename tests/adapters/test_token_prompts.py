"""Token ids as text: what they stand for, and which of them stand for none."""

from typing import Any

import pytest

from adapters.token_prompts import BadTokenId, decode_prompts
from tests.tiny_tokenizers import byte_pair_tokenizer, unigram_tokenizer

TOKENIZERS = {"byte-level BPE": byte_pair_tokenizer(), "unigram": unigram_tokenizer()}


def decode_prompt(ids: list[int], *, tokenizer: Any) -> str:
    decoded = decode_prompts([ids], tokenizer=tokenizer)
    assert not isinstance(decoded, BadTokenId), decoded
    return decoded[0]


def refused(ids: list[int], tokenizer: Any) -> BadTokenId:
    bad = decode_prompts([[], ids], tokenizer=tokenizer)
    assert isinstance(bad, BadTokenId), bad
    assert bad.prompt == 1
    return bad


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
    assert "whole characters" in refused(cut, tokenizer).reason


def test_an_id_out_of_range_is_named_with_the_range(tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    for bad in (len(tokenizer), 50_256, 10**30):
        found = refused([*ids, bad, *ids], tokenizer)
        assert found.position == len(ids)
        assert f"{bad} is out of range" in found.reason
        assert f"0 to {len(tokenizer) - 1}" in found.reason


def test_a_control_token_inside_the_text_is_named(tokenizer: Any) -> None:
    """The text of a client may not end its turn and begin the assistant's."""
    ids = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    for control in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        found = refused([*ids, control, *ids], tokenizer)
        assert (found.position, "control token" in found.reason) == (len(ids), True)


def test_nothing_but_a_frame_is_an_empty_text(tokenizer: Any) -> None:
    assert decode_prompt([], tokenizer=tokenizer) == ""
    assert decode_prompt([tokenizer.eos_token_id] * 3, tokenizer=tokenizer) == ""
