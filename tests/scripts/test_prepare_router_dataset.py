"""Sources to splits: no group in two, nothing held out in training, the same bytes each time."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from scripts.prepare_router_dataset import is_terminology, main, split_entries
from scripts.router.dataset import Entry
from tests.scripts.router.tiny_sources import make_tiny_sources, write_lines

Row = dict[str, Any]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_tiny_sources(tmp_path_factory.mktemp("prepare") / "all")


def prepare(sources: dict[str, str], out: Path, *more: str) -> list[Row]:
    given = [word for text in sources.values() for word in ("--source", text)]
    assert main([*given, "--out", str(out), *more]) == 0
    lines = (out / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def splits_of_groups(rows: list[Row]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for row in rows:
        found[row["group"]].add(row["split"])
    return found


def test_rows_have_what_training_reads(sources: dict[str, str], tmp_path: Path) -> None:
    rows = prepare(sources, tmp_path)
    assert {row["split"] for row in rows} <= {"encoder", "head", "validation"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        fields = {"id", "input", "specialty", "lang", "source", "split", "kind", "group"}
        assert set(row) == fields
        assert all(isinstance(value, str) and value for value in row.values())
    by_id = {row["id"]: row for row in rows}
    assert by_id["m-10"]["split"] == "validation"
    assert by_id["casi-casi-1-en"]["split"] == "validation"
    assert by_id["clinc-oos_val-0"]["split"] == "validation"
    assert {row["split"] for row in rows if row["source"] in ("HPO", "ICD-10-CM", "glossary")} == {
        "encoder"
    }


def test_the_manifest_and_the_last_line(
    sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = prepare(sources, tmp_path)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert report["num_entries"] == len(rows)
    counted = sum(n for split in manifest["counts"].values() for n in split.values())
    assert counted == len(rows)
    assert manifest["sources"][1] == "hpo:hp.obo"  # no path of this machine
    assert str(tmp_path.parent) not in text
    assert "CC BY" in manifest["attribution"]["MedQuAD"]
    assert not [
        name for name, says in manifest["attribution"].items() if says.startswith("licence")
    ]


def test_the_same_sources_give_the_same_bytes(sources: dict[str, str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(sources, tmp_path / name)
    for name in ("questions.jsonl", "manifest.json"):
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def many(folder: Path) -> dict[str, str]:
    """Questions about 60 diseases, two of each, a tenth of the diseases in validation."""
    rows = [
        {
            "id": f"{number}-{which}",
            "input": f"{start} disease number{number}?",
            "output": f"Text {which} of number{number}.",
            "specialty": "neurology",
            "source": "MedQuAD/GARD" if number % 2 else "MedQuAD/NIDDK",
            "lang": "en",
            "split": "validation" if number % 10 == 0 and which == 0 else "train",
            "focus": f"Disease number{number}q",
        }
        for number in range(60)
        for which, start in enumerate(("What is", "How to treat"))
    ]
    (folder / "many").mkdir(parents=True)
    write_lines(folder / "many" / "neurology.jsonl", rows)
    terms = [
        {"input": f"number{number}q disease", "specialty": "neurology", "lang": "en"}
        for number in range(60)
    ]
    write_lines(folder / "terms.jsonl", terms)
    return {
        "prepared": f"prepared:{folder / 'many'}",
        "glossary": f"glossary:{folder / 'terms.jsonl'}",
    }


def test_no_group_of_questions_is_in_two_splits(tmp_path: Path) -> None:
    rows = [r for r in prepare(many(tmp_path), tmp_path / "out") if r["source"] != "glossary"]
    assert {row["split"] for row in rows} == {"encoder", "head", "validation"}
    assert {len(found) for found in splits_of_groups(rows).values()} == {1}
    validation = {row["group"] for row in rows if row["split"] == "validation"}
    assert len(validation) == 6  # the second question of each follows the first
    head = {row["group"] for row in rows if row["split"] == "head"}
    assert 2 <= len(head) <= 20


def test_terminologies_train_whatever_the_questions_are_about(tmp_path: Path) -> None:
    rows = prepare(many(tmp_path), tmp_path / "out")
    terms = [row for row in rows if row["source"] == "glossary"]
    assert len(terms) == 60
    assert {row["split"] for row in terms} == {"encoder"}


def test_unseen_names_drops_exactly_the_names_of_head_and_validation(tmp_path: Path) -> None:
    seen = prepare(many(tmp_path), tmp_path / "seen")
    unseen = prepare(many(tmp_path / "again"), tmp_path / "unseen", "--unseen_names")
    questions = [row for row in seen if row["source"] != "glossary"]
    assert [row for row in unseen if row["source"] != "glossary"] == questions
    held = {row["group"] for row in questions if row["split"] in ("head", "validation")}
    kept = {row["group"] for row in unseen if row["source"] == "glossary"}
    everything = {row["group"] for row in seen if row["source"] == "glossary"}
    assert everything - kept == held
    assert kept
    assert json.loads((tmp_path / "unseen" / "manifest.json").read_text())["unseen_names"] is True


def test_names_in_another_language_are_dropped_by_their_group(
    sources: dict[str, str], tmp_path: Path
) -> None:
    """A French question about a sign takes the sign's English names with it."""
    seen = {row["id"] for row in prepare(sources, tmp_path / "seen")}
    unseen = {row["id"] for row in prepare(sources, tmp_path / "unseen", "--unseen_names")}
    assert {"HP:0001250/0", "HP:0001250/1", "HP:0001250/definition", "HP:0001250/fr"} <= seen
    assert not {name for name in unseen if name.startswith("HP:0001250")}
    assert "HP:0001337/0" not in unseen  # Tremor: validation asks about it
    assert "HP:0000988/0" in unseen


def test_a_whole_source_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = many(tmp_path)
    rows = prepare(sources, tmp_path / "out", "--hold_out", "MedQuAD/NIDDK")
    assert {row["split"] for row in rows if row["source"] == "MedQuAD/NIDDK"} == {"held_out"}
    assert "held_out" not in {row["split"] for row in rows if row["source"] != "MedQuAD/NIDDK"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["hold_out"] == ["MedQuAD/NIDDK"]
    capsys.readouterr()
    given = [word for text in sources.values() for word in ("--source", text)]
    assert main([*given, "--out", str(tmp_path / "x"), "--hold_out", "MedQuAD/nowhere"]) == 2
    error = capsys.readouterr().err
    assert "--hold_out MedQuAD/nowhere: no such source" in error
    assert "MedQuAD/NIDDK" in error
    assert not (tmp_path / "x").exists()


def test_a_text_comes_once_and_with_two_labels_never(tmp_path: Path) -> None:
    rows = [
        {"input": "my skin itches", "specialty": "dermatology", "lang": "en"},
        {"input": "My  SKIN itches", "specialty": "dermatology", "lang": "en"},
        {"input": "it hurts", "specialty": "dermatology", "lang": "en"},
        {"input": "It hurts", "specialty": "cardiology", "lang": "en"},
    ]
    file = write_lines(tmp_path / "w.jsonl", rows)
    found = prepare({"glossary": f"glossary:{file}"}, tmp_path / "out")
    assert [row["input"] for row in found] == ["my skin itches"]


def entry(number: int, split: str, *, group: str, source: str = "s") -> Entry:
    return Entry(str(number), f"t{number}", "neurology", "en", source, group, "question", (), split)


def test_a_group_follows_its_validation_question() -> None:
    given = [entry(0, "train", group="a"), entry(1, "validation", group="a")]
    assert [e.split for e in split_entries(given, frozenset(), unseen_names=False)] == [
        "validation",
        "validation",
    ]


def test_our_own_questions_go_to_the_head_a_little_more_often() -> None:
    def share(source: str) -> float:
        given = [entry(n, "train", group=f"g{n}", source=source) for n in range(4000)]
        found = split_entries(given, frozenset(), unseen_names=False)
        return sum(e.split == "head" for e in found) / 4000

    assert share("MedQuAD/GARD") == pytest.approx(0.15, abs=0.02)
    assert share("written") == pytest.approx(0.20, abs=0.02)


def test_what_has_no_split_of_its_own_is_a_terminology() -> None:
    assert is_terminology(entry(0, "", group="a"))
    assert not is_terminology(entry(0, "train", group="a"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tarot:x", "--source tarot:x: expected KIND:PATH"),
        ("hpo:nowhere.obo", "--source hpo:nowhere.obo: no such file"),
    ],
)
def test_a_bad_source_is_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    assert main(["--source", source, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
