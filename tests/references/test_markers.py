"""Markers in an answer as it is written: whole or in any pieces, the checked ones and no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from references.markers import MarkedText
from tests.references.passages import ECZEMA, HAIR, STONES

PASSAGES = (ECZEMA, HAIR, STONES)
TRUE = "Eczema is characterized by scaly lesions"
FALSE = "It is cured by lemons"


def marked(text: str, *sizes: int) -> MarkedText:
    """The text in pieces of these sizes, over and over; without sizes, whole."""
    written, said, at, turn = MarkedText(PASSAGES), "", 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)] if sizes else len(text)
        said += written.add(text[at : at + size])
        at, turn = at + size, turn + 1
    said += written.end()
    assert said == written.text
    return written


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{TRUE}.", f"{TRUE}. [1]"),
        (f"{TRUE}. {FALSE}.", f"{TRUE}. [1] {FALSE}."),
        (f"{FALSE}. {TRUE}", f"{FALSE}. {TRUE} [1]"),
        (f"{TRUE} [1]. {FALSE} [1].", f"{TRUE} [1]. {FALSE}."),
        (f"{TRUE}. [1] {FALSE}. [1]", f"{TRUE}. [1] {FALSE}."),
        (f"{TRUE} [7].", f"{TRUE}. [1]"),
        (f"{TRUE} [3].", f"{TRUE}. [1]"),
        (f"{TRUE} [1][2] [3].", f"{TRUE}. [1]"),
        (f"[1] {TRUE}.", f"[1] {TRUE}."),
        (f"[2] {TRUE}.", f"{TRUE}. [1]"),
        ("Yes [1]. [2]", "Yes."),
        ("[1]", ""),
        (f"- {TRUE}\n- {FALSE}\n", f"- {TRUE} [1]\n- {FALSE}\n"),
        (f'"{TRUE}." {FALSE}!', f'"{TRUE}." [1] {FALSE}!'),
        ("See [0, 1] and a[2020].", "See [0, 1] and a."),
        (
            "The presence of calculi in the kidney, e.g. 2.",
            "The presence of calculi in the kidney, e.g. 2.",
        ),
        ("", ""),
        ("   ", "   "),
        (
            "L'eczéma a des lésions squameuses. C'est rare.",
            "L'eczéma a des lésions squameuses. [1] C'est rare.",
        ),
    ],
)
def test_a_marker_stands_where_the_check_supports_the_sentence(written: str, shown: str) -> None:
    assert marked(written).text == shown


def test_support_says_where_sentences_stand_in_the_text_with_markers() -> None:
    found = marked(f" {FALSE} [2].  {TRUE}.\n\nBeaded hair shafts break [2].")
    said = {found.text[s.start : s.end]: s.citation for s in found.support}
    assert said == {
        f"{FALSE}.": None,
        f"{TRUE}. [1]": 1,
        "Beaded hair shafts break [2].": 2,
    }


def test_text_is_shown_before_its_sentence_ends() -> None:
    """Only what may yet belong to a marker or to the sentence before it waits."""
    written = MarkedText(PASSAGES)
    assert [
        written.add(piece) for piece in ("Eczema", " is scaly", " lesions", ".", " ", "It")
    ] == [
        "Eczema",
        " is scaly",
        " lesions",
        ".",
        "",
        " [1] It",
    ]
    assert written.add(" x [") == " x"
    assert written.add("a]") == " [a]"


PARTS = (
    TRUE,
    FALSE,
    ". ",
    ".",
    " ",
    "\n",
    "[1]",
    "[",
    "]",
    "9",
    '"',
    "(",
    "e.g. ",
    "Hair",
    "\u2026",
    "[12",
)


@given(st.lists(st.sampled_from(PARTS), max_size=14), st.lists(st.integers(1, 9), min_size=1))
def test_pieces_make_no_difference(parts: list[str], sizes: list[int]) -> None:
    whole, pieces = marked("".join(parts)), marked("".join(parts), *sizes)
    assert (pieces.text, pieces.support) == (whole.text, whole.support)
