"""Streams and whole answers are the same text: any tokens, any grouping, every tokenizer kind."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.detokenizer import hidden_ids, text_decoder
from deployments.engine.output import IncrementalDetokenizer
from tests.tiny_tokenizers import TOKENIZER_KINDS

KINDS = sorted(TOKENIZER_KINDS)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
TEXTS = (
    "What is eczema? Blood pressure (120/80), 37 \u00b0C.",
    "Quels sont les sympt\u00f4mes ?  Deux  espaces\n\tet \u20ac 5 \U0001f600\U0001f600!",
    " \u6f22\u5b57 na\u00efve caf\u00e9 ",
)


@functools.cache
def tokenizer_of(kind: str) -> Any:
    return TOKENIZER_KINDS[kind]()


def streamed(
    decode: Callable[[Sequence[int]], str], groups: Sequence[Sequence[int]], *stop: str
) -> str:
    stream = IncrementalDetokenizer(decode, stop)
    text = "".join([stream.extend(group) for group in groups if not stream.is_stopped])
    return text + stream.finish()


def grouped(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    ends = sorted({cut for cut in cuts if cut < len(ids)} | {len(ids)})
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def answers(kind: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, ids without a token as well; and runs of special and of byte tokens."""
    tokenizer = tokenizer_of(kind)
    special = sorted(hidden_ids(tokenizer))
    vocabulary = tokenizer.get_vocab()
    single = sorted(i for token, i in vocabulary.items() if len(token) == 1 or "<0x" in token)
    any_id = st.integers(0, len(tokenizer) + 2)
    return st.lists(st.one_of(any_id, st.sampled_from(special), st.sampled_from(single)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_joined_stream_is_the_whole_answer(kind: str, data: st.DataObject) -> None:
    ids = data.draw(answers(kind))
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=30))
    decode = text_decoder(tokenizer_of(kind))
    whole = streamed(decode, [ids])
    assert whole == decode(ids).rstrip(UNFINISHED)
    for groups in (grouped(ids, cuts), [[id_] for id_ in ids]):
        assert streamed(decode, groups) == whole
        assert streamed(decode, groups, "no such text", "nor this one") == whole
    seen = [id_ for id_ in ids if id_ not in hidden_ids(tokenizer_of(kind))]
    assert streamed(decode, [[id_] for id_ in seen]) == whole, "as the engine hands them over"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stop_string_ends_at_the_same_place_in_any_grouping(
    kind: str, data: st.DataObject
) -> None:
    ids = data.draw(answers(kind))
    decode = text_decoder(tokenizer_of(kind))
    whole = streamed(decode, [ids])
    places = st.integers(0, max(len(whole) - 1, 0))
    stops = [whole[at : at + 3] for at in data.draw(st.lists(places, min_size=1, max_size=3))]
    stop = tuple(filter(None, stops))
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=30))
    expected = streamed(decode, [[id_] for id_ in ids], *stop)
    assert streamed(decode, grouped(ids, cuts), *stop) == expected
    assert not stop or not any(s in expected for s in stop)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_the_tokenizers_own(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(text).input_ids
    own = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert streamed(text_decoder(tokenizer), [[id_] for id_ in ids]) == own
    assert len(own) >= len(text.split()), "there is something to compare"


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_tokens_between_two_words_leave_the_space(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    words = tokenizer("blood pressure", add_special_tokens=False).input_ids
    decode = text_decoder(tokenizer)
    for hidden in sorted(hidden_ids(tokenizer)):
        for at in range(len(words) + 1):
            ids = [*words[:at], hidden, hidden, *words[at:]]
            assert streamed(decode, [[id_] for id_ in ids]) == decode(words)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind])
def test_an_answer_cut_inside_a_character_ends_before_it(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("b \U0001f600", add_special_tokens=False).input_ids
    decode = text_decoder(tokenizer)
    for cut in range(1, 4):
        text = streamed(decode, [[id_] for id_ in ids[:-cut]])
        assert text.strip() == "b"
        assert streamed(decode, [ids[:-cut]]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_decodes_a_few_tokens(kind: str) -> None:
    """Long answers of the worst tokens: bytes that make no character, spaces, the same word."""
    tokenizer = tokenizer_of(kind)
    vocabulary = tokenizer.get_vocab()
    worst = {
        vocabulary.get(token) for token in ("<0xFF>", "<0xE2>", "\u00e2", "\u2581", "##s", "b")
    }
    decode = text_decoder(tokenizer)
    for id_ in worst - {None}:
        lengths: list[int] = []

        def counted(ids: Sequence[int], lengths: list[int] = lengths) -> str:
            lengths.append(len(ids))
            return decode(ids)

        stream = IncrementalDetokenizer(counted)
        for _ in range(400):
            stream.extend([id_])
        assert max(lengths) <= 40, tokenizer.convert_ids_to_tokens(id_)
