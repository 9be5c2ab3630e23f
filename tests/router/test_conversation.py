"""Which turns of a conversation say what it is about, by their words."""

import pytest

from router.conversation import Content, content_of, thread
from router.preparation.prepare import prepare
from router.text import normalise, words_of


def content(text: str) -> Content:
    prepared = prepare(text)
    words = words_of(prepared.text)
    written = [normalise(prepared.edited.original(word.start, word.end)) for word in words]
    return content_of(prepared.text, words, written, is_mute=prepared.only_denies)


ANSWERS = (
    "male|femme|42|42 ans|about two weeks ago|depuis lundi|only at night|on my left arm|le gauche|"
    "yes|je ne sais pas|ibuprofen|atorvastatine 20 le soir|120/80|CRP 12, Hb 11.2|PSA 14|no fever|"
    "thanks|10 minutes or so|when I climb the stairs|mael|2 weaks ago|my mother had it too|"
    "I smoke 5 a day|"
    "what does that mean?|is it contagious?|can I take ibuprofen with it?|does it leave scars?|"
    "c'est grave ?|combien de temps ?|sorry, back to the pain"
)
TOPICS = (
    "My knee hurts|J'ai mal au genou|et mes yeux ?|and my back?|And what about my eczema?|"
    "I also have chest pain|ça me brûle quand j'urine|my left eye is red|j'ai aussi de l'asthme|"
    "I have diabetes|What is glaucoma?|qu'est-ce que le psoriasis ?|et ma tension ?"
)


@pytest.mark.parametrize("text", ANSWERS.split("|"))
def test_an_answer_names_no_topic(text: str) -> None:
    assert not content(text).has_topic


@pytest.mark.parametrize("text", TOPICS.split("|"))
def test_a_complaint_or_a_disease_is_a_topic(text: str) -> None:
    assert content(text).has_topic


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who won the world cup in 2018?", True),
        ("écris-moi un poème sur l'automne", True),
        ("I want to book a flight to the moon", True),
        ("should I go to the ER?", False),
        ("puis-je conduire ?", False),
        ("I work in a bakery", False),
    ],
)
def test_a_request_that_the_lists_do_not_explain(text: str, expected: bool) -> None:
    assert content(text).is_request is expected


TELLS = Content(has_signal=True, has_place=False, has_topic=True, is_request=False)
ANSWER = Content(has_signal=True, has_place=False, has_topic=False, is_request=False)
MUTE = Content(has_signal=False, has_place=False, has_topic=False, is_request=False)
Turn = tuple[str, Content]


def told(*turns: Turn) -> list[str]:
    def settled(some: list[Turn]) -> str | None:
        names = {name.split("-")[0] for name, _ in some} - {"vague"}
        return names.pop() if len(names) == 1 else None

    found = thread(
        turns,
        content=lambda turn: turn[1],
        settled=lambda some: settled(list(some)),
        is_outside=lambda turn: turn[0].startswith("football"),
    )
    return [name for name, _ in found]


def test_the_thread_begins_anew_with_each_sure_topic() -> None:
    assert told(("skin", TELLS), ("x", ANSWER), ("knee", TELLS), ("y", ANSWER)) == ["knee"]
    assert told(("skin", TELLS), ("skin-too", TELLS)) == ["skin", "skin-too"]


def test_an_unsure_turn_joins_only_what_is_unsure() -> None:
    assert told(("vague", TELLS), ("vague-too", TELLS)) == ["vague", "vague-too"]
    assert told(("skin", TELLS), ("vague", TELLS)) == ["skin"]


def test_what_is_not_for_a_clinic_and_what_says_nothing_do_not_count() -> None:
    assert told(("football", TELLS), ("skin", TELLS), ("football", TELLS)) == ["skin"]
    assert told(("hello", MUTE), ("skin", ANSWER)) == ["skin"]
    assert told(("hello", MUTE), ("thanks", MUTE)) == ["hello", "thanks"]
