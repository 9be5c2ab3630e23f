"""Planted inventions and negations, in both languages, against two passages."""

from dataclasses import replace

import pytest

from references.support import support, unsupported_share
from tests.references.passages import ECZEMA

PASSAGES = [
    replace(
        ECZEMA,
        title="Eczema",
        text="Eczema is a form of dermatitis that is characterized by scaly, pruritic, "
        "erythematous lesions located on flexural surfaces. It is not contagious. Inheritance: "
        "Autosomal dominant inheritance. Frequent (30-79 %): Fever; Cough.",
    ),
    replace(
        ECZEMA,
        title="Asthma",
        synonyms=(),
        text="Asthma is characterized by increased responsiveness of the tracheobronchial tree "
        "to multiple stimuli, leading to narrowing of the air passages with resultant dyspnea, "
        "cough, and wheezing. It affects 8 percent of children without atopy.",
    ),
]


def citation(sentence: str, language: str | None = None) -> int | None:
    (found,) = support(sentence, PASSAGES, language=language)
    return found.citation


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Eczema is a dermatitis with scaly, pruritic lesions on flexural surfaces [1].", 1),
        ("It is not contagious.", 1),
        ("It isn't contagious.", 1),
        ("Eczema is inherited in an autosomal dominant way.", 1),
        ("Asthma causes dyspnea, cough and wheezing [2].", 2),
        ("Asthma narrows the air passages.", 2),
        ("8 percent of children are affected.", 2),
        ("Eight percent of children are affected.", 2),
        ("L'eczéma est une dermatite avec des lésions squameuses et érythémateuses.", 1),
        ("Il n'est pas contagieux.", 1),
        ("L'asthme provoque une dyspnée et une toux.", 2),
    ],
)
def test_what_a_passage_says_is_supported(sentence: str, passage: int) -> None:
    assert citation(sentence) == passage


@pytest.mark.parametrize(
    "sentence",
    [
        # inventions
        "Eczema is cured by a daily spoon of honey.",
        "Asthma was first described by Marie Curie in Paris.",
        "Eczema is treated with methotrexate and phototherapy.",
        "L'eczéma se soigne avec du miel.",
        "L'asthme guérit grâce à la chirurgie du genou.",
        # inventions behind something true
        "Eczema is a scaly dermatitis and is cured by honey.",
        "Eczema is a scaly dermatitis, which daily honey cures.",
        "Eczema is a scaly, pruritic dermatitis with erythematous lesions and kills old men.",
        "Eczema is a scaly dermatitis. it is cured by honey.",
        "Eczema is a scaly dermatitis \U0001f34b Honey cures it",
        "L'eczéma est une dermatite avec des lésions squameuses et se soigne avec du miel.",
        # codes
        "Eczema is a scaly dermatitis of FLNB.",
        "Eczema, a scaly dermatitis, is characterized by pruritic MC1R lesions.",
        # numbers
        "It affects 15 percent of children.",
        "Asthma affects 80 percent of children.",
        "It affects nine percent of children.",
        # negations
        "It is contagious.",
        "Eczema is contagious [1].",
        "Eczema is not pruritic.",
        "Eczema doesn't cause scaly lesions.",
        "Asthma never causes wheezing.",
        "Asthma presents without cough or wheezing.",
        "Il est contagieux.",
        "L'asthme ne provoque pas de toux.",
        "L'asthme évolue sans dyspnée.",
        "Most cases of eczema are not inherited from neighbours.",
        "Eczema is a scaly dermatitis without fractures.",
        "L'asthme provoque une toux sans fracture.",
        # opposites
        "Eczema is inherited in an autosomal recessive way.",
        "Asthma is characterized by decreased responsiveness of the tracheobronchial tree.",
    ],
)
def test_inventions_and_negations_are_not_supported(sentence: str) -> None:
    assert citation(sentence) is None


LONG = replace(
    ECZEMA,
    title="Lattice dystrophy type II",
    synonyms=(),
    text="Lattice dystrophy type II clouds the cornea. Deposits form in the skin of adults. The "
    "parents carry one mutated gene. Erosions are painful in bright light. Types 2 and 4 are rare. "
    "In many cases, the cause of blindness remains unknown. Scars may thicken the eyelids.",
)


@pytest.mark.parametrize(
    ("sentence", "is_supported"),
    [
        # one sentence of the passage
        ("Deposits form in the skin of adults.", True),
        ("It clouds the cornea, and deposits form in the skin of adults.", False),
        ("Painful erosions cloud the cornea of adults.", False),
        # what is said with reserve
        ("In many cases, the cause of blindness is unknown.", True),
        ("The cause of blindness is unknown.", False),
        ("Some scars thicken the eyelids.", True),
        ("Scars thicken the eyelids.", False),
        # beside the names
        ("The cause of lattice dystrophy type II is unknown.", False),
        ("Lattice dystrophy type II is a mutated gene of farmers.", False),
        ("Lattice dystrophy type II clouds the cornea.", True),
        # types
        ("Lattice dystrophy type 2 clouds the cornea.", True),
        ("Lattice dystrophy type I clouds the cornea.", False),
        ("Lattice dystrophy types I and II cloud the cornea.", False),
        ("Types II and IV are rare.", True),
        # cut, or an item of a list
        ("Deposits form in the skin of adults", True),
        ("Deposits form in the skin of farmers", False),
        ("- Erosions painful in bright light", True),
        ("- Erosions painful in bright winters", False),
        ("The number is 2.", False),
        ("It is 2.", False),
    ],
)
def test_words_stand_together_and_say_more_than_the_name(sentence: str, is_supported: bool) -> None:
    (found,) = support(sentence, [LONG])
    assert (found.citation == 1) is is_supported


@pytest.mark.parametrize(
    "sentence",
    [
        *("Lattice dystrophy: its signs include:", "The symptoms of lattice dystrophy include"),
        *("The types are:", "1. Treatment:", "What clouds the cornea?", "3. The cornea,"),
        *(
            "Lattice dystrophy",
            "- Cornea",
            "Blindness.",
            "2. Painful erosions.",
            "The skin of a",
            "La cornée :",
            "Cornea;",
        ),
    ],
)
def test_what_announces_asks_or_names_states_nothing(sentence: str) -> None:
    assert support(sentence, [LONG]) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Signs of lattice dystrophy include: fever, cough, abnormal nails, abnormal teeth,",
        "Resources about the cornea: - A registry of rare diseases: - A clinic of Boston:",
        "Erosions of the cornea, painful nails, abnormal teeth, red hair, blue lips, short legs:",
        "Fever, cough, chills;",
    ],
)
def test_a_list_that_was_cut_states_what_it_lists(sentence: str) -> None:
    (found,) = support(sentence, [LONG])
    assert found.citation is None


def test_spans_and_numbers_of_a_whole_answer() -> None:
    answer = "Eczema is a scaly dermatitis [1]. It is cured by honey.\nAsthma causes cough [2]."
    found = support(answer, PASSAGES)
    assert [(answer[s.start : s.end], s.citation) for s in found] == [
        ("Eczema is a scaly dermatitis [1].", 1),
        ("It is cured by honey.", None),
        ("Asthma causes cough [2].", 2),
    ]
    assert 0.2 < unsupported_share(found) < 0.4


def test_a_short_invention_counts_as_one() -> None:
    answer = (
        "Asthma causes dyspnea, cough and wheezing of the tracheobronchial tree. It cures honey."
    )
    assert unsupported_share(support(answer, PASSAGES)) == 0.5
    answer = (
        "Asthma causes cough. It is cured by a daily spoon of warm honey from the high mountains."
    )
    assert unsupported_share(support(answer, PASSAGES)) > 0.7


def test_a_wrong_marker_is_corrected_and_a_right_one_preferred() -> None:
    assert citation("Asthma causes wheezing [1].") == 2
    assert citation("Cough is seen [2].") == 2
    assert citation("Cough is seen [1].") == 1
    assert citation("Eczema is a scaly dermatitis [7].") == 1


def test_sentences_that_state_nothing_are_not_listed() -> None:
    assert support("Yes. [1]", PASSAGES) == []
    assert support("3.", PASSAGES) == []
    assert support("", PASSAGES) == []
    assert unsupported_share([]) == 0.0


def test_without_passages_nothing_is_supported() -> None:
    (found,) = support("Eczema is a scaly dermatitis.", [])
    assert found.citation is None
    assert unsupported_share([found]) == 1.0


def test_an_enumerator_is_no_number_of_the_sentence() -> None:
    assert citation("3. Eczema is a scaly dermatitis.") == 1
