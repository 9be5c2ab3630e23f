"""BLEU from summed statistics is sacrebleu's; intervals cover what they should."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from scripts.evaluation.bootstrap import corpus_bleu, draws, estimate, interval, mean, wilson
from scripts.evaluation.metrics import bleu_statistics

REFERENCES = [
    "Eczema makes the skin red, dry and itchy.",
    "Drugs, less salt and more walking help.",
    "Stress, light, noise and some foods can trigger it.",
    "A cough.",
]
ANSWERS = {
    "close": [
        "Eczema makes the skin dry and red.",
        "Less salt and more walking help.",
        "Noise.",
        "",
    ],
    "equal": REFERENCES,
    "no word in common": ["one two three four five"] * 4,
    "too short for 4-grams": ["the skin", "salt", "light, noise", "cough"],
    "longer": [f"{text} And it goes on for a while after that." for text in REFERENCES],
    "one match of each length but four": ["Eczema makes the bone blue", "x", "y", "z"],
}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS.keys())
def test_corpus_bleu_is_sacrebleus(answers: list[str]) -> None:
    ours = corpus_bleu(bleu_statistics(REFERENCES, answers).sum(axis=0))
    assert ours == pytest.approx(BLEU().corpus_score(answers, [REFERENCES]).score, abs=1e-9)


def test_corpus_bleu_of_many_resamples_at_once() -> None:
    rows = bleu_statistics(REFERENCES, ANSWERS["close"])
    counts = draws(4, seed=1, num_resamples=50)
    scores = corpus_bleu(counts @ rows)
    assert scores.shape == (50,)
    for count, score in zip(counts[:10], scores, strict=False):
        picked = [i for i, num in enumerate(count) for _ in range(int(num))]
        theirs = BLEU().corpus_score(
            [ANSWERS["close"][i] for i in picked], [[REFERENCES[i] for i in picked]]
        )
        assert score == pytest.approx(theirs.score, abs=1e-9)


def test_draws_are_resamples_of_the_same_size() -> None:
    counts = draws(30, seed=0, num_resamples=200)
    assert (counts.sum(axis=1) == 30).all()
    assert counts.mean() == pytest.approx(1)
    assert (counts == draws(30, seed=0, num_resamples=200)).all()
    assert (counts != draws(30, seed=1, num_resamples=200)).any()


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    """At n = 400 the percentile interval is within 10 % of mean +- 1.96 standard errors."""
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = interval(mean(values, draws(400, seed=0)))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_pairing_makes_a_small_steady_difference_certain() -> None:
    """Each alone varies by much more than they differ."""
    base = np.random.default_rng(0).normal(0, 10, size=100)
    counts = draws(100, seed=0)
    base_draws, better_draws = mean(base, counts), mean(base + 0.5, counts)
    assert interval(base_draws)[1] > interval(better_draws)[0]
    found = estimate(0.5, better_draws - base_draws)
    assert found["value"] == 0.5
    assert found["interval"] == pytest.approx([0.5, 0.5])


def test_wilsons_interval() -> None:
    """As in Newcombe (1998), Table I: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
