"""The command that evaluates the router: its report, its last line, its refusals."""

import contextlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from router.training.examples import OUT_OF_SCOPE, LabelledText
from scripts.evaluate_router import main
from scripts.router_evaluation import metrics, perturbations, speed
from scripts.router_evaluation.perturbations import PERTURBATIONS
from tests.router.small_questions import LABELS, small_questions

SECTIONS = (
    "Targets",
    "What was measured, and how",
    "Which specialist",
    "Without the names, and on sources never seen (strict)",
    "Recall by specialty",
    "Confusion",
    "Calibration",
    "Selective accuracy",
    "In scope or not",
    "Perturbations",
    "Follow-ups",
    "Speed and size",
    "Most confident errors",
)
FOLLOW_UP = {"input": "and the treatment?", "specialty": "none", "lang": "en", "kind": "follow_up"}
Files = dict[str, Path]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def entry(example: LabelledText, number: int, split: str, source: str) -> dict[str, Any]:
    fields = {"input": example.text, "specialty": example.specialty, "lang": example.language}
    told = {"split": split, "source": source, "kind": "question", "group": example.group}
    return {"id": f"{split}-{number}", **fields, **told}


def make_data(folder: Path, *, held_out: bool) -> Path:
    """A folder as prepare_router_dataset writes it, with texts that no other split has."""
    folder.mkdir()
    rows = []
    for seed, split in enumerate(("encoder", "head", "validation", "held_out")):
        if split == "held_out" and not held_out:
            continue
        for number, example in enumerate(small_questions(seed)):
            is_scored = split in ("validation", "held_out")
            text = f"{example.text} {split}" if is_scored else example.text
            changed = LabelledText(text, example.specialty, example.language, "", group=text)
            source = "CLINC150" if example.specialty == OUT_OF_SCOPE else "MedQuAD/GARD"
            if example.language == "fr" and source != "CLINC150":
                source = "HPO-fr (templated)" if number % 2 else "CasiMedicos (MIR exam)"
            rows.append(entry(changed, number, split, source))
    write(folder / "questions.jsonl", rows)
    manifest = {"sha256": "a" * 64, "hold_out": ["MedQuAD/GARD"], "unseen_names": held_out}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def make_written(path: Path, seed: int) -> Path:
    rows = []
    for number, example in enumerate(small_questions(seed)[::9]):
        kinds = ("far", "near_miss") if example.specialty == OUT_OF_SCOPE else ("plain", "vignette")
        text = f"{example.text} {path.stem}"
        told = {"specialty": example.specialty, "lang": example.language}
        rows.append({"input": text, **told, "kind": kinds[number % 2]})
    copy = small_questions(0)[0]  # is in training with other case and punctuation
    told = {"specialty": copy.specialty, "lang": copy.language, "kind": "plain"}
    return write(path, [*rows, {"input": copy.text.upper() + "!", **told}, FOLLOW_UP])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_router_dir: Path) -> Files:
    folder = tmp_path_factory.mktemp("evaluation")
    return {
        "data": make_data(folder / "data", held_out=False),
        "strict_data": make_data(folder / "strict_data", held_out=True),
        "model": tiny_router_dir,
        "dev": make_written(folder / "written_dev.jsonl", 11),
        "test": make_written(folder / "written_test.jsonl", 12),
        "out": folder / "docs" / "router.md",
    }


def arguments(files: Files, **changed: Path | str) -> list[str]:
    named = {k: files[k] for k in ("data", "model", "dev", "test", "out")} | changed
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def made(files: Files) -> tuple[str, str, dict[str, Any]]:
    """(Markdown, HTML, last line) of one run with both artefacts."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (metrics, "NUM_RESAMPLES", 200),
            (metrics, "NUM_EXPENSIVE", 20),
            (speed, "NUM_SINGLE", 10),
            (speed, "NUM_PAGES", 2),
            (speed, "NUM_BATCHES", 1),
            (speed, "BATCH", 32),
            (speed, "NUM_LOADS", 1),
            (perturbations, "NUM_PERTURBED", 8),
        ):
            patch.setattr(module, name, value)
        notes = files["out"].parent.with_name("notes.md")
        notes.write_text("Our own reasons.\n", encoding="utf-8")
        printed = io.StringIO()
        strict = {"strict_model": files["model"], "strict_data": files["strict_data"]}
        with contextlib.redirect_stdout(printed):
            code = main([*arguments(files, **strict, notes=notes), "--html"])
    assert code == 0
    text = files["out"].read_text(encoding="utf-8")
    page = files["out"].with_suffix(".html").read_text(encoding="utf-8")
    return text, page, json.loads(printed.getvalue().splitlines()[-1])


Made = tuple[str, str, dict[str, Any]]


@pytest.mark.slow
def test_the_report_has_every_section_in_both_forms(made: Made) -> None:
    text, page, _ = made
    assert tuple(re.findall(r"^## (.+)$", text, flags=re.MULTILINE)) == SECTIONS
    assert tuple(re.findall(r"<h2>(.+?)</h2>", page)) == SECTIONS
    assert "Our own reasons." in text


@pytest.mark.slow
def test_the_plots_are_beside_the_markdown_and_inside_the_page(made: Made, files: Files) -> None:
    text, page, _ = made
    shown = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert sorted(shown) == [
        "router_confusion.png",
        "router_reliability.png",
        "router_selective.png",
    ]
    for name in shown:
        assert (files["out"].parent / name).read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 3


@pytest.mark.slow
def test_no_question_is_in_the_report(made: Made, files: Files) -> None:
    sources = [files["data"] / "questions.jsonl", files["dev"], files["test"]]
    for path in sources:
        for line in path.read_text(encoding="utf-8").splitlines():
            question = json.loads(line)["input"]
            assert question not in made[0]
            assert question not in made[1]


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_the_report(made: Made, files: Files) -> None:
    assert str(files["data"].parent) not in made[0]


@pytest.mark.slow
def test_every_group_has_its_row_with_n_and_interval(made: Made) -> None:
    for name in (
        *("English", "French (HPO)", "exam vignettes, French"),
        *("plain, English", "plain, French", "vignette, English", "vignette, French"),
        *("MedQuAD/GARD", "6-15 words"),
    ):
        assert re.search(
            rf"^\| {re.escape(name)} \| \d+ \| \d\.\d+ \[\d\.\d+, \d\.\d+\]", made[0], re.MULTILINE
        ), name
    for name in PERTURBATIONS:
        for group in ("validation, English", "test, French"):
            assert f"| {group} | {name} | " in made[0]
    for name in ("far (development)", "near misses (test)", "CLINC150 (validation)"):
        assert f"| {name} | " in made[0]
    assert "n/a (n < 500)" in made[0]
    for label in LABELS:
        assert f"| {label} | " in made[0]


@pytest.mark.slow
def test_copies_of_training_texts_are_left_out_and_counted(made: Made) -> None:
    assert "left out: validation 0, development 1, test 1." in made[0]


@pytest.mark.slow
def test_the_last_line_holds_every_target(made: Made) -> None:
    report = made[2]
    verdicts = [target["verdict"] for target in report["targets"]]
    assert report["num_reached"] == verdicts.count("reached")
    assert report["num_missed"] == verdicts.count("missed")
    assert set(verdicts) <= {"reached", "missed", "reported", "not measured"}
    names = {target["name"] for target in report["targets"]}
    assert {"English: ECE", "load", "size in git", "one question, p95", "AUROC, far"} <= names
    held_out = [t for t in report["targets"] if t["name"].startswith("held-out English source")]
    assert all(target["n"] > 0 for target in held_out)


def test_an_artefact_of_other_data_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in files["model"].iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    manifest["data"] = {"sha256": "b" * 64}
    (model / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert main(arguments(files, model=model)) == 2
    assert "was trained on bbbbbbbbbbbb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "absent"}, "no questions.jsonl in it"),
        ({"model": "absent"}, "manifest.json"),
        ({"dev": "absent.jsonl"}, "no such file"),
        ({"out": "report.txt"}, "ends in .md"),
        ({"strict_model": "model"}, "go together"),
    ],
)
def test_a_bad_argument_is_named(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    message: str,
) -> None:
    assert main(arguments(files, **changed)) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_label_is_named(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"input": "is mars rising", "specialty": "astrology", "lang": "en", "kind": "plain"}
    test = write(tmp_path / "test.jsonl", [row])
    assert main(arguments(files, test=test)) == 2
    assert "labels that the artefact does not know: astrology" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--strict_model" in capsys.readouterr().out
