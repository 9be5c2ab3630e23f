"""The command that trains the router: its files, its last line, its refusals."""

import json
from pathlib import Path

import pytest

from router.artefact import MANIFEST
from router.classifier import Classifier
from scripts.train_router import main, read_examples
from tests.router.small_questions import LABELS, small_questions
from tests.router_data_folder import make_data_folder, rows

pytestmark = pytest.mark.slow  # whole runs: seconds together

QUESTIONS = "questions.jsonl"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data_folder(tmp_path / "data")


def arguments(data: Path, encoder_dir: Path, out: Path) -> list[str]:
    return [
        *("--data", str(data), "--encoder_dir", str(encoder_dir)),
        *("--date", "2026-01-02", "--threads", "1", "--out", str(out)),
    ]


def test_it_writes_an_artefact_that_loads_and_prints_json_last(
    data: Path, tiny_encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert main(arguments(data, tiny_encoder_dir, out)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    classifier = Classifier.load(out)
    assert classifier.specialties == LABELS
    assert classifier.version == report["version"]
    assert report["num_examples"] == {
        "encoder": len(small_questions(0)) + 1,
        "head": len(small_questions(1)) + 1,
        "validation": len(small_questions(2)) + 1,
        "held_out": 0,
    }
    assert report["bytes"] == sum(p.stat().st_size for p in out.iterdir())
    [found] = classifier.classify([["tell me about eczema rash please"]])
    assert max(found.last.probabilities, key=found.last.probabilities.get) == "dermatology"
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["data"]["sources"] == ["written:small.jsonl"]
    assert manifest["attribution"] == {"written": "ours"}
    assert manifest["num_examples"]["validation"]["cardiology"] == 24  # terms are not scored


def test_the_command_is_kept_without_paths_of_this_machine(
    data: Path, tiny_encoder_dir: Path, tmp_path: Path
) -> None:
    given = [
        f"--data={data}",
        f"--encoder_dir={tiny_encoder_dir}",
        *("--out", str(tmp_path / "model")),
    ]
    assert main(given) == 0
    text = (tmp_path / "model" / MANIFEST).read_text(encoding="utf-8")
    command = json.loads(text)["command"]
    assert command == (
        "python -m scripts.train_router --data=data --encoder_dir=encoder --out model"
    )
    assert str(tmp_path) not in text


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(
    data: Path, tiny_encoder_dir: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", "0"), ("two", "0"), ("three", "3")):
        given = arguments(data, tiny_encoder_dir, tmp_path / name / "model")
        assert main([*given, "--seed", seed]) == 0
    for file in (tmp_path / "one" / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "model" / file.name).read_bytes()
    one, three = (tmp_path / n / "model" / "features.npz" for n in ("one", "three"))
    assert one.read_bytes() != three.read_bytes()  # terms are put into other questions


def test_terms_are_put_into_questions_where_they_train(data: Path) -> None:
    examples = read_examples(data, seed=0)
    for split in ("encoder", "head"):
        [term] = [e for e in examples[split] if e.kind == "term"]
        assert "angina pectoris" in term.text.lower()
    [plain] = [e for e in examples["validation"] if e.kind == "term"]
    assert plain.text == "Angina Pectoris"
    seeds = {read_examples(data, seed)["head"][-1].text for seed in range(20)}
    assert len(seeds) > 5
    assert read_examples(data, 4) == read_examples(data, 4)
    assert all(e.group.startswith("text ") for e in examples["head"])


GOOD = rows()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "questions.jsonl, line 2: not JSON"),
        ("[1]", "questions.jsonl, line 2: a JSON object"),
        (json.dumps(GOOD | {"input": " "}), "questions.jsonl, line 2: input must be a text"),
        (json.dumps(GOOD | {"input": 7}), "questions.jsonl, line 2: input must be a text"),
        (json.dumps(GOOD | {"group": None}), "questions.jsonl, line 2: group must be a text"),
        (json.dumps(GOOD | {"split": "test"}), "questions.jsonl, line 2: split 'test'; expected"),
        (json.dumps({"split": "head"}), "line 2: id, input, specialty, lang, source, group, kind"),
        (json.dumps(GOOD | {"specialty": "astrology"}), "unknown label(s) astrology"),
    ],
)
def test_a_bad_line_is_named(
    data: Path,
    tiny_encoder_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    lines = (data / QUESTIONS).read_text(encoding="utf-8").splitlines()
    lines.insert(1, line)
    (data / QUESTIONS).write_text("\n".join(lines), encoding="utf-8")
    assert main(arguments(data, tiny_encoder_dir, tmp_path / "model")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_missing_input_is_named(
    data: Path, tiny_encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent"
    for given in (
        arguments(absent, tiny_encoder_dir, tmp_path / "model"),
        arguments(data, absent, tmp_path / "model"),
    ):
        assert main(given) == 2
        assert str(absent) in capsys.readouterr().err
    for damage in ("{", "{}", "[]"):
        (data / MANIFEST).write_text(damage)
        assert main(arguments(data, tiny_encoder_dir, tmp_path / "model")) == 2
        assert "manifest.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--data" in capsys.readouterr().out
