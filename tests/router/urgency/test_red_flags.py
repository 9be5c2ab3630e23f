"""Red flags: what is urgent, what takes an urgency back, conversations, advice, and bad rules."""

import sys
import time

import pytest

from router.urgency.red_flags import RedFlags, load_red_flags
from scripts.evaluate_red_flags import QUESTIONS, cases

RULES = load_red_flags()
MIN_RECALL = 0.95
MAX_FALSE_ALARMS = 0.03


def flags(*turns: str, language: str = "en") -> tuple[str, ...]:
    return RULES.find(turns, language).flags


def test_the_written_questions() -> None:
    verdicts = [(c.is_urgent, bool(flags(c.text, language=c.language))) for c in cases(QUESTIONS)]
    urgent = [found for is_urgent, found in verdicts if is_urgent]
    calm = [found for is_urgent, found in verdicts if not is_urgent]
    assert (len(urgent) >= 150, len(calm) >= 300) == (True, True)
    assert sum(urgent) / len(urgent) >= MIN_RECALL
    assert sum(calm) / len(calm) <= MAX_FALSE_ALARMS


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        ("Is it a stroke? His face droops.", "stroke"),
        ("A three-year-old with 40 degrees of fever and a stiff neck", "meningitis"),
        ("40 de fièvre et la nuque raide chez mon fils", "meningitis"),
        ("crushing chest pain, I am sweating", "heart_attack"),
        ("throat closing after a peanut", "anaphylaxis"),
        ("my 6 week old has 38.5 C", "infant_fever"),
        ("she swallowed bleach", "poisoning"),
        ("i want to kill myself", "suicide"),
        ("je veux me suicider", "suicide"),
        ("bleach in my eye", "eye"),
        ("j'ai reçu de l'acide dans les yeux", "eye"),
        ("sudden severe pain in a testicle", "testicular_torsion"),
        ("il convulse depuis dix minutes", "seizure"),
        ("hit his head, keeps vomiting", "head_injury"),
        ("diabetic, vomiting, fruity breath", "diabetic_emergency"),
        ("sat 82% en air ambiant", "breathing"),
    ],
)
def test_each_kind_of_emergency(question: str, flag: str) -> None:
    assert flag in flags(question)


@pytest.mark.parametrize(
    "question",
    [
        "no chest pain, no sweating",
        "denies chest pain, dyspnoea, sweating",
        "pas de douleur thoracique ni de sueurs",
        "chest pain: none. Sweating: none.",
        "Heart attack was ruled out",
        "I don't feel suicidal",
        "je ne m'étouffe pas",
        "What are the signs of a stroke?",
        "Quels sont les signes d'un AVC ?",
        "My grandfather died of a heart attack in 1990",
        "Il y a dix ans j'ai fait un infarctus",
        "how does naloxone work?",
        "If someone has chest pain and sweats, what happens?",
        "In the novel the hero has chest pain and sweats",
        "My dog swallowed bleach",
        "I'm afraid of having a heart attack",
    ],
)
def test_denied_past_supposed_or_general_is_not_urgent(question: str) -> None:
    assert flags(question) == ()


@pytest.mark.parametrize(
    "question",
    [
        "No fever. But he can't breathe.",
        "no fever but chest pain with sweating",
        "My grandfather died of a heart attack in 1990, and now I have chest pain and sweats",
        "not sure, but I think she is having a stroke",
        "the bleeding won't stop",
        "I don't want to live anymore",
        "je n'arrive pas à respirer",
        "il ne respire plus",
        "pas de fièvre mais il convulse",
    ],
)
def test_a_denial_ends_where_something_else_begins(question: str) -> None:
    assert flags(question)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("my son swallowed bleach", "my son swalowed bleech"),
        ("seizure for ten minutes, she is convulsing", "siezure for ten minutes, she is convulsng"),
        ("J'ai perdu brutalement la vue d'un œil", "jai perdu brutalment la vue dun oeil"),
        ("I can't breathe", "I cant breathe"),
        ("58-year-old man with chest pain and diaphoresis", "58M w/ CP, diaphoretic"),
    ],
)
def test_misspelled_shortened_or_without_accents(right: str, wrong: str) -> None:
    assert flags(right)
    assert set(flags(right)) & set(flags(wrong))


def test_a_conversation_is_flagged_when_its_last_turn_makes_it_urgent() -> None:
    turns = ["My baby has a fever", "He is six weeks old", "Which nappies are best?"]
    assert flags(*turns[:1]) == ()
    assert flags(*turns[:2]) == ("infant_fever",)
    assert flags(*turns) == (), "advice is not repeated with each later question"
    assert flags("she swallowed bleach", "thank you", "now she can't breathe") == ("breathing",)
    assert flags("she swallowed bleach", "she swallowed bleach again")


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "local emergency number"), ("fr", "numéro d'urgence"), ("de", "emergency number")],
)
def test_the_advice_is_in_the_questions_language(language: str, words: str) -> None:
    found = RULES.find(["I want to kill myself"], language)
    assert words in found.advice
    assert ("crisis lines" in found.advice) == (language != "fr")
    assert ("lignes d'écoute" in found.advice) == (language == "fr")
    assert found.advice.endswith("\n\n")


def test_without_a_known_language_the_signs_say_which() -> None:
    assert RULES.find(["je veux mourir"], "und").advice.startswith("Il peut")
    assert RULES.find(["What is eczema?"], "en").advice == ""


@pytest.mark.parametrize("text", ["", " ", "!!!", "42", "\ud800", "a" * 8000, "n't 't ' -> /"])
def test_odd_texts(text: str) -> None:
    assert flags(text) == ()


def test_a_page_of_text_takes_milliseconds() -> None:
    page = "She has crushing chest pain and a fever, no cough, and her arm is numb. " * 120
    started = time.thread_time()
    assert flags(page)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flags": [{"name": "x", "any": [{"all": ["absent"]}]}]}, "no concept is named absent"),
        ({"concepts": {"pain": {"en": ["a?"]}}}, "begins and ends with a word"),
        ({"concepts": {"pain": {"en": ["Pain"]}}}, "is not a folded word"),
        ({"concepts": {"pain": {"en": ["$none x"]}}}, "no list is named"),
        ({"concepts": {"pain": {"de": ["weh"]}}}, "is not one of en, fr, numbers"),
    ],
)
def test_a_malformed_rule_is_named(change: dict[str, object], message: str) -> None:
    from router.urgency.context import GROUPS

    rules = {"lists": {}, "concepts": {"pain": {"en": ["pain"]}}, "flags": [], "advice": {}}
    context: dict[str, object] = {
        "lists": {},
        "shorthand": {},
        "groups": {name: {} for name in GROUPS},
    }
    RedFlags(rules, context)
    with pytest.raises(ValueError, match=message):
        RedFlags({**rules, **change}, context)


def calls_in(text: str) -> int:
    """How many calls the rules make for a text: work that no other work on the machine moves."""
    count = 0

    def seen(*about: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(seen)
    try:
        load_red_flags().by_signs(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "repeated",
    ["don't suddenly", "yesterday suddenly", "no cold but", "je ne vomis pas", "if cold"],
)
def test_the_work_grows_with_the_words_of_a_text_not_with_their_square(repeated: str) -> None:
    load_red_flags().by_signs(repeated)  # what is loaded once
    once, twice = (calls_in(" ".join([repeated] * times)) for times in (200, 400))
    assert twice < 2.5 * once
