"""The command that trains the router: its files, its last line, its refusals."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from router.classifier import Classifier
from router.training import Question
from scripts.train_router import load_questions, main
from tests.router.small_questions import LABELS, small_questions


def write(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def item(question: Question, split: str | None = None) -> dict[str, Any]:
    fields = {
        "input": question.text,
        "specialty": question.specialty,
        "lang": question.language,
        "source": "MedQuAD/GARD",
    }
    return fields | ({"split": split} if split else {})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(data folder, our own questions, where the artefact goes)."""
    data = tmp_path / "data"
    data.mkdir()
    write(data / "a.jsonl", [item(q, "train") for q in small_questions(0)])
    write(data / "b.jsonl", [item(q, "validation") for q in small_questions(1)])
    written = write(tmp_path / "written.jsonl", [item(q) for q in small_questions(2)])
    return data, written, tmp_path / "model"


def arguments(folders: tuple[Path, Path, Path], out: Path | None = None) -> list[str]:
    data, written, model = folders
    return [
        *("--data", str(data), "--written", str(written), "--date", "2026-01-02"),
        *("--out", str(out or model)),
    ]


def test_it_writes_an_artefact_that_loads_and_prints_json_last(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folders)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    classifier = Classifier.load(folders[2])
    assert classifier.specialties == LABELS
    assert classifier.version == report["version"]
    manifest = json.loads((folders[2] / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["data"]) == {"a.jsonl", "b.jsonl", "written.jsonl"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["data"].values())
    assert "scripts.train_router" in manifest["command"]
    assert str(folders[0]) not in manifest["command"]  # no path of this machine
    assert any("MedQuAD (CC BY 4.0)" in line for line in manifest["attribution"])


def test_the_same_command_gives_the_same_weights(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        assert main(arguments(folders, tmp_path / name)) == 0
    one, two = ((tmp_path / name / "weights.npz").read_bytes() for name in ("one", "two"))
    assert one == two


def test_validation_and_a_part_of_the_written_questions_are_held_out(
    folders: tuple[Path, Path, Path],
) -> None:
    training, calibration, _ = load_questions(folders[0], folders[1])
    public = [q for q in training if q.source != "written"]
    assert {q.text for q in public} == {q.text for q in small_questions(0)}
    held_out = {q.text for q in calibration if q.source == "written"}
    kept = {q.text for q in training if q.source == "written"}
    assert held_out
    assert not held_out & kept
    assert len(held_out) < len(kept)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "bad.jsonl, line 2: not JSON"),
        ("[1]", "bad.jsonl, line 2: a JSON object"),
        ('{"input": "", "specialty": "x", "lang": "en"}', "bad.jsonl, line 2: 'input' must be"),
        ('{"input": "rash", "lang": "en"}', "bad.jsonl, line 2: 'specialty' must be"),
        (
            '{"input": "rash", "specialty": "dermatology", "lang": "en", "split": "test"}',
            "bad.jsonl, line 2: split 'test'; expected train or validation",
        ),
        (
            '{"input": "rash", "specialty": "astrology", "lang": "en", "split": "train"}',
            "unknown label(s) astrology",
        ),
    ],
)
def test_a_bad_line_is_named(
    folders: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    good = json.dumps(item(small_questions(0)[0], "train"))
    (folders[0] / "bad.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    assert main(arguments(folders)) == 2
    assert message in capsys.readouterr().err
    assert not folders[2].exists()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_input_is_named(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], missing: int
) -> None:
    absent = folders[missing].with_name("absent")
    changed = (absent, *folders[1:]) if missing == 0 else (folders[0], absent, folders[2])
    assert main(arguments(changed)) == 2
    assert str(absent) in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--data" in capsys.readouterr().out
