"""Hashed n-grams: the same on every machine, blind to case and accents."""

import subprocess
import sys

import numpy as np
import pytest

from router.features import Vocabulary, char_features, vectorise, word_features
from router.text import MAX_WORDS, words_of


def keys(text: str) -> list[int]:
    words = words_of(text)
    return [key for block in (word_features, char_features) for key, *_ in block(words)]


def vocabulary(*texts: str) -> Vocabulary:
    kept = np.unique(np.array([key for text in texts for key in keys(text)], dtype=np.uint32))
    return Vocabulary(kept, np.ones(len(kept), dtype=np.float32))


def test_golden_keys() -> None:
    """CRC-32 of b"w:skin" and of the n-grams of " skin ": an artefact depends on these."""
    assert keys("Skin") == [
        1867090943,
        1629042240,
        1677090780,
        3717290549,
        3175435,
        2429644503,
        4144941938,
        3204618812,
        1613706699,
        1469108638,
    ]


def test_the_keys_do_not_depend_on_the_process() -> None:
    code = (
        "from router.features import *;from router.text import words_of;"
        "print([k for k, *_ in word_features(words_of('itchy red rash'))])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "[" in outputs.pop()


@pytest.mark.parametrize("variant", ["ECZÉMA", "eczema", "eczéma", "ecze\u0301ma", "Eczema,"])
def test_case_accents_and_punctuation_cost_nothing(variant: str) -> None:
    assert keys(variant) == keys("eczéma")
    assert keys("asthme") != keys("eczéma")


def test_a_french_article_is_a_word_of_its_own_and_positions_point_into_the_text() -> None:
    text = "J'ai de l’eczéma"
    words = words_of(text)
    assert [word.normal for word in words] == ["j", "ai", "de", "l", "eczema"]
    assert [text[word.start : word.end] for word in words] == ["J", "ai", "de", "l", "eczéma"]


def test_each_block_has_unit_length() -> None:
    words = words_of("itchy red rash, itchy elbows")
    known = vocabulary("itchy red rash, itchy elbows")
    vector = vectorise(words, known)
    word_keys = {key for key, *_ in word_features(words)}
    is_word = np.isin(known.keys[vector.rows], np.array(sorted(word_keys), dtype=np.uint32))
    assert np.linalg.norm(vector.values[is_word]) == pytest.approx(1)
    assert np.linalg.norm(vector.values[~is_word]) == pytest.approx(1)


def test_a_word_that_comes_back_counts_sublinearly_and_is_found_at_each_place() -> None:
    known = vocabulary("rash skin")
    vector = vectorise(words_of("rash skin rash"), known)
    values = dict(zip(known.keys[vector.rows].tolist(), vector.values.tolist(), strict=True))
    [(rash, *_)] = list(word_features(words_of("rash")))
    [(skin, *_)] = list(word_features(words_of("skin")))
    assert values[rash] / values[skin] == pytest.approx(1 + np.log(2))
    row = known.keys[vector.rows].tolist().index(rash)
    assert vector.origins[vector.starts[row] : vector.starts[row + 1]].tolist() == [0, 2]


def test_features_that_were_not_kept_are_left_out() -> None:
    assert len(vectorise(words_of("football"), vocabulary("rash")).rows) == 0
    empty = Vocabulary(np.array([], dtype=np.uint32), np.array([], dtype=np.float32))
    assert len(vectorise(words_of("rash"), empty).rows) == 0
    assert len(vectorise([], vocabulary("rash")).rows) == 0


def test_work_on_a_long_text_is_bounded() -> None:
    assert len(words_of("rash " * 50_000)) == MAX_WORDS
    assert len(keys("a" * 50_000)) < 200
