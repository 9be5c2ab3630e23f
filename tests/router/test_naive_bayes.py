"""The evidence of words: what it sums, how it is shared among words, how it is trained."""

import numpy as np
import pytest

from router.naive_bayes import FULL_ENTRIES, NaiveBayes, key_of
from router.text import words_of
from router.training.examples import OUT_OF_SCOPE, LabelledText, Recipe
from router.training.ngrams import WORD_BOUNDS, train_words

LABELS = ("cardiology", "pulmonology")


def model() -> NaiveBayes:
    entries = {"hemopt": (-1.0, 2.0), "angina": (3.0, -2.0)}
    names = sorted(entries, key=key_of)
    keys = np.array([key_of(name) for name in names], dtype=np.uint32)
    return NaiveBayes(keys, np.array([entries[name] for name in names], dtype=np.float32))


def test_forms_of_a_word_in_both_languages_share_an_entry() -> None:
    for text in ("hemoptysis", "Hémoptysie", "HEMOPTYSES hemoptysis"):
        assert model().score(words_of(text)).tolist() == [-1.0, 2.0], text


def test_entries_are_counted_once_and_unknown_words_dilute_them() -> None:
    found = model().score(words_of("angina hemoptysis unknown angina"))
    assert found == pytest.approx(np.array([2.0, 0.0]) / np.sqrt(3))
    assert model().score(words_of("nothing known")).tolist() == [0.0, 0.0]
    assert model().score([]).tolist() == [0.0, 0.0]


def test_a_long_text_is_not_surer_for_its_length() -> None:
    filler = " ".join(f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(4 * FULL_ENTRIES))
    found = model().score(words_of(f"angina {filler}"))
    assert found[0] == pytest.approx(3.0 * FULL_ENTRIES**0.5 / (4 * FULL_ENTRIES + 1))


@pytest.mark.parametrize("text", ["angina hemoptysis x angina", "x y", "angina"])
def test_the_shares_of_the_words_sum_to_the_score(text: str) -> None:
    words, direction = words_of(text), np.array([1.0, -0.5], dtype=np.float32)
    shares = model().by_word(words, direction)
    assert shares.shape == (len(words),)
    assert shares.sum() == pytest.approx(float(model().score(words) @ direction), abs=1e-6)
    assert all(share == 0 for share, word in zip(shares, words, strict=True) if word.normal == "x")


def trained(count: int) -> NaiveBayes:
    texts = [("angina at rest", "cardiology"), ("wheezing at rest", "pulmonology")] * count
    texts.append(("angina", OUT_OF_SCOPE))
    examples = [LabelledText(text, label, "en", "any") for text, label in texts]
    return train_words(examples, LABELS, Recipe(min_word_count=count))


def test_training_gives_log_ratios_within_bounds() -> None:
    found = trained(6)
    assert list(found.keys) == sorted(found.keys)
    cardiology, pulmonology = found.score(words_of("angina")).tolist()
    assert WORD_BOUNDS[0] <= pulmonology < 0 < cardiology <= WORD_BOUNDS[1]
    assert found.score(words_of("rest")).tolist() == [0.0, 0.0]  # as likely in both
    assert key_of("at") not in found.keys.tolist()  # too short


def test_a_rare_word_has_no_entry() -> None:
    examples = [LabelledText("angina", "cardiology", "en", "any")]
    examples += [LabelledText("wheezing", "pulmonology", "en", "any")] * 6
    found = train_words(examples, LABELS, Recipe())
    assert found.keys.tolist() == [key_of("wheezi")]
