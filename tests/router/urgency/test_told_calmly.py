"""Emergencies told calmly or beside an animal, and what looks like them and is none."""

import pytest

from router.urgency.red_flags import load_red_flags
from router.urgency.wording import CALM_SIGN_FROM, SIGN_FROM, URGENT_FROM

RULES = load_red_flags()
SIGNS = load_red_flags(with_wording=False)


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        (
            "I swallowed about 30 paracetamol last night, I feel OK now, is it a problem",
            "poisoning",
        ),
        ("J'ai pris deux plaquettes de paracétamol hier soir, je me sens bien", "poisoning"),
        ("A bat scratched me on holiday two days ago, what cream do I put on", "rabies"),
        ("griffé par une chauve-souris au Pérou avant-hier, quelle pommade ?", "rabies"),
        ("My gran is choking on a bit of meat, she can't speak or cough", "cardiac_arrest"),
        ("He couldn't find words for ten minutes, he seems ok now", "stroke"),
        ("elle enchaîne les crises d'épilepsie sans reprendre connaissance", "seizure"),
        ("I sliced the tip of my thumb clean off", "bleeding"),
        ("le cordon est sorti avant le bébé, la sage-femme n'est pas là", "pregnancy"),
        ("I can no longer move my legs after the dive into the pool", "trauma"),
    ],
)
def test_a_calm_teller_is_still_in_danger(question: str, flag: str) -> None:
    assert flag in RULES.find([question], "en").flags


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        (
            "we all have headaches at home, the boiler was acting up, and the dog collapsed",
            "poisoning",
        ),
        ("on a tous mal à la tête, la chaudière fume et le chien est malade", "poisoning"),
        ("mon fils a une toux de chien qui aboie, il fait un bruit en inspirant", "breathing"),
        (
            "his scrotum is swollen and he's doubled over with pain, it started in class",
            "testicular_torsion",
        ),
    ],
)
def test_a_pet_or_a_class_does_not_make_it_a_story(question: str, flag: str) -> None:
    assert flag in SIGNS.find([question], "en").flags


@pytest.mark.parametrize(
    "question",
    [
        "I'm choking up every time I watch that film, is crying good for you",
        "nosebleed last Sunday for 3 minutes, stopped by itself and hasn't come back",
        "petit j'ai fait des convulsions avec la fièvre, mon fils risque-t-il d'en faire",
        "no breathing issue, which antihistamine won't make me drowsy",
        "my flatmate studies medicine and faints when he sees blood",
        "My dog swallowed bleach",
        "the signs of a stroke as taught in class",
        "Sleepy after lunch every day, no snoring, sugar normal, any tricks?",
        "a cold with a slight fever, blood pressure of 108 over 70, is that ok",
        "une cystite traitée, tension à 13/8, tout va bien",
    ],
)
def test_what_only_looks_like_it(question: str) -> None:
    assert RULES.find([question], "en").flags == ()


def test_one_word_is_one_sign() -> None:
    """A rule of three signs is not fulfilled by two words, one of which is two of the signs."""
    assert SIGNS.find(["Sleepy after lunch, my sugar, any tricks?"], "en").flags == (
        "diabetic_emergency",
    ), "a diabetic who is drowsy"
    assert SIGNS.find(["My glucose at lunch and a bit of acetone smell"], "en").flags == ()
    assert "diabetic_emergency" in SIGNS.find(["My glucose, acetone breath, vomiting"], "en").flags


def test_what_is_told_calmly_needs_least() -> None:
    assert CALM_SIGN_FROM < SIGN_FROM < URGENT_FROM
    assert SIGNS.by_signs("she took 40 paracetamol").urgent_from == CALM_SIGN_FROM
    assert SIGNS.by_signs("she is unconscious").urgent_from == SIGN_FROM
    assert SIGNS.by_signs("my knee clicks").urgent_from == URGENT_FROM
