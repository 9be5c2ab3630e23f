"""From sources to a prepared folder: split by disease, counted repairs, leaks, refusals by line."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import prepare_medical_dataset
from scripts.datasets import prepared_folder
from scripts.datasets.record import plain_words
from scripts.datasets.split import topic_of

NUM_DISEASES = 40  # of dermatology, three questions each
ANSWER = (
    "It makes the skin of the {place} red and dry, and a cream from the {shop} helps with that."
)


def name(number: int) -> str:
    """A made-up disease that shares no word with another: "bakarix"."""
    syllables = "ba ka de fo gu hi lo me nu pa".split()
    return syllables[number // 10] + syllables[number % 10] + "rix"


def item(question: str, answer: str, **more: Any) -> dict[str, Any]:
    fields = {"specialty": "dermatology", "source": "MedQuAD/GHR", "lang": "en"}
    return {"input": question, "output": answer, **fields, **more}


def items() -> list[dict[str, Any]]:
    """The source's own split has one disease in validation."""
    return [
        item(
            f"{kind} {name(i)}?",
            ANSWER.format(place=f"{kind} {name(i)}", shop=f"shop{i}"),
            id=f"{i}-{kind}",
            focus=name(i),
            split="validation" if i == 0 else "train",
        )
        for i in range(NUM_DISEASES)
        for kind in ("What is", "Who treats", "Who gets")
    ]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.parent


def run(out: Path, *arguments: str) -> int:
    return prepare_medical_dataset.main(["--out", str(out), *arguments])


def prepared(out: Path, *arguments: str) -> dict[str, Any]:
    """The manifest."""
    assert run(out, *arguments) == 0
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source" / "dermatology.jsonl", items())


def test_a_folder_of_json_lines(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    manifest = prepared(out, "--source", f"jsonl:{source}")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["num_pairs"] == 3 * NUM_DISEASES
    assert told["validation"] == {"dermatology": 30}
    assert told["moved_to_validation"] == {"dermatology": 27}
    for split, num in (("train", 90), ("validation", 30)):
        pairs = json.loads((out / "dermatology" / f"{split}.json").read_text())
        assert len(pairs) == num
        assert all(set(pair) == {"input", "output"} for pair in pairs)
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest
    given = (source / "dermatology.jsonl").read_bytes()
    assert manifest["sources"][0]["sha256"] == {
        "dermatology.jsonl": hashlib.sha256(given).hexdigest()
    }
    assert "CC BY 4.0" in manifest["attribution"]["MedQuAD"]
    report = (out / "report.md").read_text()
    assert "| dermatology | 90 (30) | 30 (10) | 27 |" in report
    assert "cream" not in report, "no text of the data"


def test_no_disease_is_in_two_splits(source: Path, tmp_path: Path) -> None:
    """Synonyms of order, subtype and plural go together, and router questions follow."""
    more = [
        item("What is type 2?", "Two.", id="s1", focus=f"{name(0)} disease, type II"),
        item("Who has it?", "Three.", id="s2", focus=f"familial {name(0)}", split="train"),
    ]
    write(source / "dermatology.jsonl", items() + more)
    asked = [
        item("Itchy skin", "", id="r1", focus=f"{name(0)}", split="train"),
        item("What is " + name(0), "", id="r2", split="train"),
    ]
    write(source / "router_only.jsonl", asked)
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{source}")
    found = rows(tmp_path / "out" / "dermatology.jsonl")
    split_of: dict[str, set[str]] = {}
    for row in found:
        split_of.setdefault(row["focus"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {row["id"]: row["split"] for row in found if row["id"] in ("s1", "s2")} == {
        "s1": "validation",
        "s2": "validation",
    }
    asked = rows(tmp_path / "out" / "router_only.jsonl")
    assert [row["split"] for row in asked] == ["validation"] * 2, "the second by its words"
    assert manifest["split"]["reunited"] == 3
    assert not (tmp_path / "out" / "router_only").exists()


def test_the_same_sources_and_seed_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    call = ("--source", f"jsonl:{source}")
    one, two, other = (tmp_path / folder for folder in ("one", "two", "other"))
    assert prepared(one, *call)["files"] == prepared(two, *call)["files"]
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert (
        prepared(other, *call, "--seed", "1")["files"]
        != prepared(two, "--overwrite", *call)["files"]
    )


def test_planted_duplicates_are_counted(source: Path, tmp_path: Path) -> None:
    """Dropped where the question repeats; reported as contamination where the answer does."""
    planted = items()
    copied = next(row["output"] for row in planted if row["split"] == "train")
    validation = [row for row in planted if row["split"] == "validation"]
    validation[0]["output"] = copied
    eight = " ".join(copied.split()[:8])
    validation[1]["output"] = f"Quite {eight}. " + " ".join(f"other{i}" for i in range(40))
    again = [
        planted[5] | {"id": "again"},
        planted[6] | {"id": "other", "output": "Another answer."},
    ]
    write(source / "dermatology.jsonl", planted + again)
    rule = ("--min_validation", "3")
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{source}", *rule)
    assert manifest["cleaning"]["exact_duplicates"] == 1
    assert manifest["cleaning"]["repeated_questions"] == 1
    found = manifest["checks"]["dermatology"]["contamination"]
    seen = {"num_answers": 3, "any_8gram": 3, "most_8grams": 1}
    assert {key: found[key] for key in seen} == seen, "the third has ANSWER's second half"
    assert "| dermatology | 3 | 3 | 1 | 3 | 1 |" in (tmp_path / "out" / "report.md").read_text()


def test_boilerplate_is_counted_and_cut(source: Path, tmp_path: Path) -> None:
    shared = "These resources address the diagnosis or management of this disease."
    given = [row | {"output": row["output"] + " " + shared} for row in items()]
    write(source / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source}")
    kept = prepared(tmp_path / "kept", *call)["checks"]["dermatology"]
    assert kept["boilerplate_answers"] == len(given)
    cut = prepared(tmp_path / "cut", *call, "--drop_boilerplate")
    assert cut["cleaning"]["boilerplate_cut"] == len(given)
    assert cut["checks"]["dermatology"]["boilerplate_answers"] == 0
    assert shared not in (tmp_path / "cut" / "dermatology.jsonl").read_text()


def test_mojibake_languages_notes_and_lengths(tmp_path: Path) -> None:
    given = [
        item("What is it?", "SjÃ¶gren syndrome of the skin"),
        item("Qu'est-ce que c'est ?", "Une maladie de la peau avec des plaques", note="drop"),
        item("Wie?", "Rot", lang="de"),
    ]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source}")
    manifest = prepared(tmp_path / "out", *call)
    assert manifest["cleaning"]["mojibake_repaired"] == 1
    assert rows(tmp_path / "out" / "dermatology.jsonl")[0]["output"].startswith("Sjögren")
    checks = manifest["checks"]["dermatology"]
    assert checks["language"] == {"en": 1, "fr": 1, "und": 1}
    assert checks["answer_words"] == {"min": 1, "median": 5, "p90": 7, "max": 8}
    dropped = prepared(tmp_path / "less", *call, "--drop_note", "drop")
    assert dropped["cleaning"]["dropped"] == {"note drop": 1}


def test_sources_are_named_behind_answers(tmp_path: Path) -> None:
    given = [
        item("A?", "One."),
        item("B?", "Two.", source="own", url="https://www.example.org/b"),
        item("C?", "Three.", source="own"),
    ]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    manifest = prepared(
        tmp_path / "out", "--source", f"jsonl:{source},licence=own", "--with_sources"
    )
    answers = [row["output"] for row in rows(tmp_path / "out" / "dermatology.jsonl")]
    assert answers == [
        "One.\n\nSource: Genetics Home Reference",
        "Two.\n\nSource: example.org",
        "Three.",
    ]
    assert manifest["without_publisher"] == 1


def test_pairs_that_name_no_disease_are_split_by_what_they_ask_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No topic is in both splits, and the report says what is not known."""
    kinds = ("What is {}?", "How is {} treated?", "What are the symptoms of {}?", "Who gets {}?")
    pairs = [
        item(kind.format(name(i)), f"Answer {i} {j}.", id=f"{i}-{j}")
        for i in range(30)
        for j, kind in enumerate(kinds)
    ]
    folder = write(tmp_path / "source" / "dermatology.jsonl", pairs)
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{folder}")
    assert manifest["split"]["diseases"] == 30
    assert manifest["split"]["pairs_without_focus"] == len(pairs)
    assert "120 pairs do not say which disease" in (tmp_path / "out" / "report.md").read_text()
    splits: dict[str, set[str]] = {}
    for row in rows(tmp_path / "out" / "dermatology.jsonl"):
        splits.setdefault(row["id"].partition("-")[0], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert "validation pairs" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("What is (are) eczema?", "eczema"),
        ("How is eczema treated?", "eczema"),
        ("Quels sont les symptômes de l'eczéma ?", "eczema"),
        ("What should I know about it?", ""),
    ],
)
def test_what_a_question_is_about(question: str, topic: str) -> None:
    assert topic_of(question) == topic


def test_too_few_questions_for_the_gate_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "source" / "dermatology.jsonl", items()[:60])
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{folder}")
    num = manifest["checks"]["dermatology"]["validation"]
    assert num < 30
    told = capsys.readouterr().err
    assert "fewer than the 30 validation pairs that scripts.promote_adapter asks for" in told
    assert f"dermatology {num}" in told


def test_the_language_is_told_from_the_text(tmp_path: Path) -> None:
    (tmp_path / "faq.tsv").write_text(
        "question\tanswer\nQuelle est la maladie ?\tElle est dans le sang.\n"
        "Is it red?\tYes, the skin is.\nOh?\tAh.\n"
    )
    call = ("--source", f"table:{tmp_path / 'faq.tsv'},all=dermatology,licence=own")
    prepared(tmp_path / "out", *call)
    assert [row["lang"] for row in rows(tmp_path / "out" / "dermatology.jsonl")] == [
        "fr",
        "en",
        "und",
    ]


def test_what_does_not_fit_together(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(*arguments: str) -> str:
        assert run(out, *arguments) == 2
        assert not out.exists()
        return capsys.readouterr().err

    good = f"jsonl:{source}"
    assert "KIND one of jsonl, medquad" in refused("--source", "csv:x")
    assert "no such file or folder" in refused("--source", "jsonl:/nowhere")
    assert "--min_validation 0" in refused("--source", good, "--min_validation", "0")
    assert "between 0 and 1" in refused("--source", good, "--validation_share", "1")
    write(tmp_path / "own" / "dermatology.jsonl", [item("A?", "B.", source="mine")])
    assert "the licence of mine is not known" in refused("--source", f"jsonl:{tmp_path / 'own'}")
    write(
        tmp_path / "mixed" / "dermatology.jsonl",
        [item("A?", "B."), item("C?", "D.", specialty="x")],
    )
    told = refused("--source", f"jsonl:{tmp_path / 'mixed'}")
    assert "line 2: specialty 'x' in the file of dermatology" in told
    write(tmp_path / "all" / "everything.jsonl", [item("A?", "B.")])
    assert "1 questions and no pair" in refused("--source", f"jsonl:{tmp_path / 'all'}")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<Document>")
    assert "xml/a.xml: not XML" in refused("--source", f"medquad:{tmp_path / 'xml'}")
    (tmp_path / "a.csv").write_text("condition_label,medical_abstract\n6,Title. Text.\n")
    assert "condition_label '6'" in refused("--source", f"abstracts:{tmp_path / 'a.csv'}")


def test_only_its_own_folder_is_overwritten(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    call = ("--source", f"jsonl:{source}")
    assert run(out, *call) == 2
    assert "it exists" in capsys.readouterr().err
    assert run(out, *call, "--overwrite") == 2
    assert "this script did not write it" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_earlier_folder(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    prepared(out, "--source", f"jsonl:{source}")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_folder, "render", full)
    assert run(out, "--source", f"jsonl:{source}", "--overwrite", "--seed", "1") == 2
    assert "No space left" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_words_ignore_case_accents_and_possessives() -> None:
    assert plain_words("Crohn's Café, 2nd") == ["crohn", "cafe", "2nd"]
