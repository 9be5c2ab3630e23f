"""prepare_medical_dataset --with_passages: right passages among others, markers, and no source."""

from pathlib import Path
from typing import Any

from tests.scripts.test_prepare_medical_dataset import item, prepared, rows, write

ORGANS = "skin heart lung liver kidney brain eye ear nose throat hand foot knee hip spine".split()
NO_SOURCE = "No source was found for this question."


def pairs() -> list[dict[str, Any]]:
    """Two pairs of each disease: what it is, and what helps."""
    found = []
    for number, organ in enumerate(ORGANS):
        disease = f"{organ}itis"
        split = "train" if number < 10 else "validation"
        about = {"focus": disease, "split": split, "source": "own"}
        found += [
            item(
                f"What is {disease} disease?", f"{disease} is a swollen {organ}. It hurts.", **about
            ),
            item(f"What helps against {disease}?", f"Cold {organ} packs help.", **about),
        ]
    return found


def test_questions_come_with_passages(tmp_path: Path) -> None:
    source = write(tmp_path / "source" / "dermatology.jsonl", pairs())
    call = ("--source", f"jsonl:{source},licence=own", "--with_passages", "--min_validation", "5")
    manifest = prepared(tmp_path / "out", *call)
    assert manifest["options"]["with_passages"] is True
    assert manifest["without_passages"] == 0
    found = rows(tmp_path / "out" / "dermatology.jsonl")
    assert len(found) == 30
    foci = {row["focus"]: row["split"] for row in found}
    answered = [row for row in found if row["output"] != NO_SOURCE]
    assert 15 <= len(answered) <= 29
    for row in found:
        assert row["input"].startswith("Passages:\n[1] ")
        assert row["input"].endswith(f"\n\n{row['asked']}")
        assert {foci[title] for title in row["passages"]} == {row["split"]}
        assert any(title != row["focus"] for title in row["passages"])
        assert (row["focus"] in row["passages"]) == (row in answered)
    numbers = set()
    for row in answered:
        title = row["focus"]
        number = row["output"][-2]
        numbers.add(number)
        assert row["output"].endswith(f". [{number}]")
        assert row["passages"][int(number) - 1] == title
    assert numbers == {"1", "2", "3"}
    assert len({row["asked"] for row in found}) == 30
    again = prepared(tmp_path / "again", *call)
    assert again["files"] == manifest["files"]
    plain = prepared(tmp_path / "plain", *call[:2], *call[3:])
    assert plain["without_passages"] == 0
    assert not plain["options"]["with_passages"]


def test_a_pair_without_others_stays_as_it_is(tmp_path: Path) -> None:
    given = [item("What is skinitis?", "It is red.", focus="skinitis", source="own")]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source},licence=own", "--with_passages")
    assert prepared(tmp_path / "out", *call)["without_passages"] == 1
    (row,) = rows(tmp_path / "out" / "dermatology.jsonl")
    assert (row["input"], row["output"]) == ("What is skinitis?", "It is red.")


def test_a_disease_with_one_pair_gets_passages(tmp_path: Path) -> None:
    given = [pair for pair in pairs() if pair["input"].startswith("What is")]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source},licence=own", "--with_passages", "--min_validation", "5")
    assert prepared(tmp_path / "out", *call)["without_passages"] == 0
    for row in rows(tmp_path / "out" / "dermatology.jsonl"):
        assert (row["output"] == NO_SOURCE) == (row["focus"] not in row["passages"])
