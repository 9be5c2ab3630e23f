"""Broken encodings are repaired, and nothing else is touched."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.text import clean

NBSP = "\u00a0"
UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}  # in Windows-1252
LOWER = "abcdefghijklmnopqrstuvwxyzàâæçéèêëîïôùûüÿ"
PUNCTUATION = " ,.;:!?'-()0123456789\n"
# "œ", "Œ" and "Ÿ" are continuation bytes: behind a capital like "Î" they could be Greek.
CAPITALS = LOWER.upper().replace("Ÿ", "")
FRENCH = st.text(LOWER + "œ" + PUNCTUATION) | st.text(LOWER + CAPITALS + PUNCTUATION)


def as_cp1252(text: str) -> str:
    """UTF-8 that a program has read as Windows-1252, undefined bytes passed through."""
    return "".join(
        chr(byte) if byte in UNDEFINED else bytes([byte]).decode("cp1252")
        for byte in text.encode("utf-8")
    )


@given(FRENCH)
def test_french_text_survives_the_round_trip(text: str) -> None:
    assert clean(as_cp1252(text)) == text
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "J'ai de l'eczéma à l'œil, où ça gratte",
        "L’ÉTAT DE MON PÈRE S’AGGRAVE À NOËL",
        f"«{NBSP}Est-ce grave{NBSP}?{NBSP}»",
        "“quoted” – and — dashed… ‘so’",
        "β-bloquant, ≥ 38 °C, 5 µg, ½, 10 €",
        "🤒 fièvre",
    ],
)
def test_typical_text_survives_the_round_trip(text: str) -> None:
    broken = as_cp1252(text)
    assert broken != text
    assert clean(broken) == text
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "rash",
        "Ménière, Sjögren, Guillain-Barré",
        "SÃO PAULO",
        "naïveté",
        f"«{NBSP}opéré{NBSP}»",  # E9 A0 BB is valid UTF-8 too
        f"OPÉRÉ{NBSP}? L'ÉTÉ…",
        "«PRIORITÉ»",
        "مرحبا",
        "湿疹",
    ],
)
def test_what_is_no_broken_utf_8_stays(text: str) -> None:
    assert clean(text) == text


def test_a_no_break_space_that_became_a_blank_is_put_back() -> None:
    broken = as_cp1252("mal à la tête")
    assert NBSP in broken
    assert clean(broken.replace(NBSP, " ")) == "mal à la tête"


def test_accents_are_composed() -> None:
    decomposed = unicodedata.normalize("NFD", "eczéma à l'œil")
    assert decomposed != "eczéma à l'œil"
    assert clean(decomposed) == "eczéma à l'œil"


@given(st.text(st.characters(blacklist_categories=())))
def test_any_text_can_be_encoded_afterwards(text: str) -> None:
    """Lone surrogates too: JSON may hold them, and no tokenizer takes them."""
    clean(text).encode("utf-8")


def test_a_lone_surrogate_is_one_character_still() -> None:
    assert clean("\ud800 rash \udfff") == "\ufffd rash \ufffd"
