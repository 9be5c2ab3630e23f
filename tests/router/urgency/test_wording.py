"""The model of urgent wording: what it reads, what it decides beside the rules, and its limits."""

import numpy as np
import pytest

from router.preparation.reading import read
from router.urgency.red_flags import GENERAL, load_red_flags
from router.urgency.wording import (
    NUM_BUCKETS,
    PIECE_WORDS,
    SIGN_FROM,
    URGENT_FROM,
    Wording,
    features,
    pieces,
)

RULES = load_red_flags()
SIGNS = load_red_flags(with_wording=False)


def flags(question: str, language: str) -> tuple[str, ...]:
    return RULES.find([question], language).flags


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "My teenage boy has such pain in his left nut that he is on the floor crying"),
        ("en", "There was something in the curry, my lips tingle and my throat feels narrow"),
        ("fr", "Papa est blanc comme un linge, dans l'escalier, il se frotte le sternum"),
        ("fr", "On l'a repêché dans la mare, il est blanc et vomit de l'eau"),
    ],
)
def test_urgent_wording_without_a_listed_sign_is_flagged_by_name(
    language: str, question: str
) -> None:
    assert SIGNS.by_signs(question).flags == {}
    assert flags(question, language) == (GENERAL,)
    assert RULES.find([question], language).advice.startswith(
        {"en": "This may", "fr": "Il peut"}[language]
    )


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "I'm afraid of flying, does that harm my heart?"),
        ("en", "Compare thrombolysis and thrombectomy"),
        ("en", "Which sport is good after a heart attack?"),
        ("fr", "Mon fils de 18 mois ne parle pas encore"),
        ("fr", "Je n'arrive plus à ouvrir les bocaux avec l'arthrose"),
        ("fr", "Que mettre dans une trousse de secours ?"),
    ],
)
def test_calm_wording_is_not_flagged(language: str, question: str) -> None:
    assert flags(question, language) == ()


def test_a_sign_in_calm_wording_is_dropped() -> None:
    question = (
        "she was unconscious for a minute when she was seven, could this affect her memory now"
    )
    assert SIGNS.find([question], "en").flags == ("unconscious",)
    assert max(Wording.load().log_odds(read(question, {}))) < SIGN_FROM < URGENT_FROM
    assert flags(question, "en") == ()


def test_several_signs_together_stand_whatever_the_wording() -> None:
    question = "newborn 12 days, fever 38.3, should I wait till tomorrow?"
    assert SIGNS.by_signs(question).is_sure
    assert flags(question, "en") == ("infant_fever",)


def test_a_long_text_is_read_in_pieces_that_end_with_a_sentence() -> None:
    calm = "I like to walk my dog in the park every day. "
    reading = read(calm * 9 + "Is he ok?", {})
    found = list(pieces(reading))
    assert len(found) == 1 + len(reading.words) // (PIECE_WORDS + 5)
    assert all(piece[0] == "^" for piece in found)
    assert [piece[-1] for piece in found] == ["$"] * (len(found) - 1) + ["?"]
    wording = Wording.load()
    urgent = "My father collapsed and does not breathe, his lips are blue."
    assert max(wording.log_odds(read(calm * 9 + urgent, {}))) > max(wording.log_odds(reading))


def test_a_number_counts_by_its_digits_or_as_a_fever() -> None:
    counted = [
        next(pieces(read(f"he is {number}", {})))[3] for number in ("39.2", "38,5", "61", "9")
    ]
    assert counted == ["#hot", "#hot", "#2", "#1"]


def test_a_short_text_is_not_stretched() -> None:
    rows, values = features(["^", "pain", "$"])
    many_rows, many_values = features(
        ["^", *"my father has a strong pain in the chest".split(), "$"]
    )
    assert rows.max() < NUM_BUCKETS
    assert len(rows) == len(values) < len(many_rows)
    assert np.linalg.norm(values) < np.linalg.norm(many_values)


def test_nothing_to_read_is_not_urgent() -> None:
    assert Wording.load().log_odds(read("!!!", {})) == []
    assert not Wording.load().is_urgent(read("!!!", {}), URGENT_FROM)
