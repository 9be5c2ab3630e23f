"""The words of the training texts, marked by what they point to."""

from pathlib import Path

import pytest

from scripts.list_router_words import main, word_lines

TEXTS = [
    *[("eczéma et prurit", "dermatology")] * 8,
    *[("the bakery", "out_of_scope")] * 2,
    ("exzéma", "dermatology"),  # it sounds like a frequent word: a slip
    ("chaleur", "dermatology"),
]


def test_words_are_marked_and_slips_left_out() -> None:
    lines = word_lines(TEXTS, ["ibuprofen"])
    assert lines[:2] == ["eczéma", "prurit"]
    assert {"ibuprofen", "bakery everyday", "chaleur known"} <= set(lines)
    assert not any(line.startswith("exz") for line in lines)


@pytest.mark.slow
def test_the_committed_list_is_what_the_command_writes(tmp_path: Path) -> None:
    out = tmp_path / "words.txt"
    assert main(["--out", str(out)]) == 0
    committed = Path(__file__).resolve().parents[2] / "router" / "words.txt"
    assert out.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
