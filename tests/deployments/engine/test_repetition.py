"""Ending at a loop: where the text is cut, that a stream says the same, and who is not touched."""

import random

import pytest

from deployments.engine.repetition import LoopStop, without_loop
from scripts.evaluation.metrics import repeats

LOOP = "It may cause pain. It may cause a rash. " + "See a doctor about it soon. " * 5


def in_pieces(text: str, seed: int, num_words: int = 4) -> tuple[str, bool]:
    draw, stop = random.Random(seed), LoopStop(num_words)
    said, at = "", 0
    while at < len(text) and not stop.is_looping:
        size = draw.randint(1, 9)
        said += stop.extend(text[at : at + size])
        at += size
    said += stop.finish()
    return said, stop.is_looping


def test_an_answer_ends_before_the_third_repetition() -> None:
    cut = without_loop(LOOP, 4)
    assert cut == LOOP[: LOOP.index("See") + 2 * len("See a doctor about it soon. ") - 1]
    assert repeats(LOOP)
    assert not repeats(cut)


@pytest.mark.parametrize(
    "text", ["", " ", "One sentence, no loop.", "a b c d a b c d", "x\n\ny  z "]
)
def test_what_does_not_loop_is_unchanged(text: str) -> None:
    for seed in range(5):
        assert in_pieces(text, seed) == (text, False)
    assert without_loop(LOOP, 0) == LOOP


@pytest.mark.parametrize(
    "text", [LOOP, "no " * 40, "a b c d. " * 3, "A B c d e a b C D f a b c d g"]
)
def test_a_stream_ends_where_a_whole_answer_does(text: str) -> None:
    whole = without_loop(text, 4)
    for seed in range(20):
        said, is_looping = in_pieces(text, seed)
        assert is_looping
        assert said == whole
    assert text.startswith(whole)
    assert not repeats(whole)


def test_random_texts_never_keep_a_loop() -> None:
    draw = random.Random(1)
    for _ in range(300):
        text = " ".join(draw.choices("ab", k=60))
        assert not repeats(without_loop(text, 4))
        assert without_loop(text, 4) == in_pieces(text, draw.randint(0, 99))[0]


def test_nothing_waits_before_something_is_repeated() -> None:
    stop = LoopStop(4)
    for piece in ("Ecz", "ema is", " a ski", "n disease."):
        assert stop.extend(piece) == piece
