"""The measures of answers with passages, and who answers which question from which passages."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from references.shelf import Shelf, build
from scripts.references_evaluation import answers
from scripts.references_evaluation.answer_measures import (
    Answered,
    bounds,
    measures,
    nearest_sentences,
    supported_sentences,
)
from tests.references.passages import ECZEMA, HAIR

TRUE = "Eczema is characterized by scaly lesions."
FALSE = "It is cured by eating forty lemons at midnight."


def answered(number: int, answer: str, system: str = "cite") -> Answered:
    passages = (ECZEMA, HAIR)
    return Answered(system, str(number), "What is eczema?", TRUE, passages, answer, 9, "stop")


def test_what_the_check_lets_stand() -> None:
    found = measures([answered(1, TRUE), answered(2, f"{TRUE} {FALSE}"), answered(3, FALSE)])
    assert found["unsupported_sentences"]["value"] == 0.5
    assert found["unsupported_sentences"]["n"] == 4
    after = found["after_the_check"]
    assert [after[t]["stands"]["value"] for t in ("0", "0.2", "0.5")] == [1 / 3] * 3
    assert after["0.2"]["unsupported"]["value"] == 0
    assert after["0.2"]["sentences"] == 1
    assert found["rouge_l"]["value"] > found["rouge_l_quoted"]["value"]
    assert measures([]) == {}


@pytest.mark.parametrize("answer", ["Yes.", "Treatment:", "What is eczema?", "", "[1]"])
def test_what_states_nothing_does_not_stand(answer: str) -> None:
    """As in the service, which quotes the passages in its place."""
    after = measures([answered(1, TRUE), answered(2, answer)])["after_the_check"]
    assert [after[t]["stands"]["value"] for t in ("0", "0.2", "0.5")] == [0.5] * 3
    assert after["0.5"]["sentences"] == 1


def test_the_nearest_sentences_are_the_passages_own() -> None:
    reference = "Eczema has scaly lesions on the flexural surfaces, and hair shafts break easily."
    found = nearest_sentences(reference, (ECZEMA, HAIR))
    assert found == f"{ECZEMA.text} Beaded hair shafts that break easily."
    assert nearest_sentences("It is not contagious.", (ECZEMA, HAIR)) == "It is not contagious."
    assert nearest_sentences(reference, ()) == ""


def test_bounds_of_what_passages_can_support() -> None:
    row = replace(answered(1, "Yes.", "off"), reference=f"{TRUE} {FALSE}")
    found = bounds([row])
    assert found["references"]["unsupported_sentences"]["value"] == 0.5
    assert found["references"]["rouge_l"]["value"] == 100
    assert found["references"]["stands"]["value"] == 0
    assert found["nearest_sentences"]["unsupported_sentences"]["value"] == 0
    assert found["nearest_sentences"]["stands"]["value"] == 1
    assert 0 < found["nearest_sentences"]["rouge_l"]["value"] < 100
    assert bounds([]) == {}


def test_sentences_to_read() -> None:
    rows = [answered(1, f"{TRUE} {FALSE}"), answered(2, TRUE, "off")]
    (text,) = supported_sentences(rows, 9)
    assert f"SAYS {TRUE} [1]\n  [1] {ECZEMA.text}" in text


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    row, file = answered(1, TRUE), tmp_path / "answers.jsonl"
    file.write_text(json.dumps(asdict(row)) + "\n")
    assert answers._read(file) == [row]
    assert answers._read(tmp_path / "none.jsonl") == []


def test_a_question_never_gets_its_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = build(tmp_path / "built.db", [HAIR])
    lines = [
        {
            "id": f"{focus}{n}",
            "input": f"What is {focus} {ask}?",
            "output": f"{focus} {ask} is {n}.",
        }
        | {"specialty": "dermatology", "source": "own", "split": split, "focus": focus}
        for focus, split in (("eczema", "validation"), ("acne", "validation"), ("gout", "train"))
        for n, ask in enumerate(("itch", "cause"))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "dermatology.jsonl").write_text(text)
    args = argparse.Namespace(data=tmp_path, shelf=shelf.path, each=10)
    monkeypatch.setattr(answers, "open_shelf", Shelf)  # without word vectors
    (tmp_path / "copy").mkdir()
    asked = list(answers._questions(args, ["dermatology"], tmp_path / "copy"))
    assert sorted(one.pair.id for one in asked) == ["acne0", "acne1", "eczema0", "eczema1"]
    for one in asked:
        ids = [passage.id for passage in one.passages]
        assert f"PAIR:{one.pair.id}" not in ids
        assert any(id_.startswith(f"PAIR:{one.pair.focus}") for id_ in ids)
        assert "gout" not in " ".join(ids)
