"""Signs that are over, long past or small, and the emergencies that are worded nearly like them."""

import pytest

from router.urgency.red_flags import load_red_flags

RULES = load_red_flags()


@pytest.mark.parametrize(
    "question",
    [
        "The wound isn't bleeding any longer and looks clean",
        "her fever has gone and the cough is nearly over",
        "The nosebleed stopped after two minutes and is over",
        "He didn't faint at the blood test, he was just pale",
        "My toddler has a cold and 37.8",
        "I had a seizure when I was five, can I drive now?",
        "I had a stroke when I was 40, may I fly today?",
        "j'ai eu une crise d'épilepsie à sept ans, est-ce que je peux plonger aujourd'hui ?",
        "la plaie ne saigne plus et elle est propre",
        "je n'ai plus de fièvre et la toux s'en va",
        "saigné du nez hier, deux minutes, c'est fini",
        "il ne s'est pas évanoui à la prise de sang, il était juste pâle",
        "petit rhume et 37,8 mais elle joue et boit bien",
        "j'ai convulsé quand j'avais quatre ans, puis-je conduire maintenant ?",
    ],
)
def test_what_is_over_or_small_is_not_urgent(question: str) -> None:
    for language in ("en", "fr"):
        assert RULES.find([question], language).flags == ()


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        ("I don't want to live any more and I know how I'd do it", "suicide"),
        ("she does not want to be here any longer", "suicide"),
        ("I do not wish to go on living", "suicide"),
        ("The inhaler does nothing any more, she can only say one word at a time", "breathing"),
        ("asthma attack, single words between breaths", "breathing"),
        ("I had a seizure as a child and I am having one now, can I drive now?", "seizure"),
        ("Tension à 22/13 avec des troubles de la vision", "hypertensive_crisis"),
        ("tension 23/12, la vision se trouble", "hypertensive_crisis"),
    ],
)
def test_what_is_worded_nearly_like_it_is(question: str, flag: str) -> None:
    assert flag in RULES.find([question], "en").flags


@pytest.mark.parametrize(
    "question",
    [
        "the bleeding had stopped and now it pours again, three towels are soaked",
        "he no longer vomits but I can't wake him",
        "il ne vomit plus mais je n'arrive pas à le réveiller",
        "ça saignait moins et maintenant ça coule à flots, le drap est trempé",
    ],
)
def test_what_ended_and_came_back_worse_is_urgent(question: str) -> None:
    assert RULES.find([question], "en").flags
