"""From a data folder to adapters in a catalogue and a report, on tiny models.

The steps run in this process, to save the seconds that importing the libraries takes each time; one
test starts real ones.
"""

import contextlib
import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from adapters.grounded_prompt import SourceText, with_passages
from adapters.prompting import Message
from adapters.seed_check import check_seed
from adapters.store import open_store
from scripts import make_specialists, train_lora_adapter
from scripts.evaluation import evaluate
from scripts.lora.checkpoints import CHECKPOINT
from scripts.specialists import pipeline
from scripts.specialists import steps as steps_module

pytestmark = pytest.mark.usefixtures("one_thread")
SPECIALTIES = {"dermatology": "skin", "cardiology": "heart"}
SIGNS = "itch ache burn swell redden stiffen tingle".split()
NUM_DISEASES = 96  # of each specialty, one question each
NUM_VALIDATION = 30  # what the gate wants


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for specialty, organ in SPECIALTIES.items():
        rows = [
            {
                "id": f"{specialty}-{i}",
                "input": f"What are the signs of {organ} disease {_name(i)}?",
                "output": f"The {organ} can {SIGNS[i % 7]}, and it can {SIGNS[i % 5]}.",
                "specialty": specialty,
                "split": "train",
                "focus": f"{organ} {_name(i)}",
                "qtype": "symptoms",
                "lang": "en",
                "source": "MedQuAD/GHR",
                "url": "",
                "license": "CC BY 4.0",
            }
            for i in range(NUM_DISEASES)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{specialty}.jsonl").write_text(text)
    return folder


def _name(number: int) -> str:
    """A made-up name that no other shares a word with: "bakade"."""
    syllables = "ba ka de fo gu hi lo me nu pa".split()
    return syllables[number // 10] + syllables[number % 10] + "rix"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "catalog.yaml").write_text("# ours\nrevision: 0\nadapters: []\n")
    return folder


class Steps:
    """Stands in for `run_script`: calls the script's `main` here, and keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, script: str, arguments: Sequence[str], log: Path) -> tuple[int, str]:
        self.calls.append([script, *arguments])
        stdout = io.StringIO()
        with (
            log.open("w") as stderr,
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            code = importlib.import_module(f"scripts.{script}").main(arguments)
        return code, stdout.getvalue()

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Tiny tokenizers make long prompts, tiny models learn fast, and 256 tokens take minutes."""
    for options in ("FIRST", "THEN"):
        given = getattr(pipeline, options)
        more = ["--max_prompt_tokens", "400", "--learning_rate", "0.02", "--epochs", "1"]
        monkeypatch.setattr(pipeline, options, [*given, *more])
    made = evaluate.protocol_for
    monkeypatch.setattr(
        evaluate,
        "protocol_for",
        lambda answers: type(made(answers))(made(answers).base_instruction_words, "greedy", 12),
    )
    found = Steps()
    monkeypatch.setattr(steps_module, "run_script", found)
    return found


def run(base: Path, data: Path, catalog: Path, *more: str) -> int:
    work = data.parent / "work"
    return make_specialists.main(
        [
            *("--data", str(data), "--work", str(work), "--catalog", str(catalog)),
            *("--report", str(work / "report"), "--specialties", *SPECIALTIES),
            *("--base_model", str(base), "--base_model_name", "tiny", "--jobs", "1"),
            *("--dtype", "float32", *more),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_epochs"),
    [
        ("tiny_llama_dir", "6"),
        # It learns slowly through `q` and `v` alone.
        pytest.param("tiny_flan_t5_dir", "16", marks=pytest.mark.long),
    ],
)
def test_from_data_to_service_and_again(
    family: str,
    num_epochs: str,
    data: Path,
    catalog: Path,
    steps: Steps,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As many epochs as it takes until the answers are better too."""
    for options in ("FIRST", "THEN"):
        given = [*getattr(pipeline, options), "--epochs", num_epochs]
        monkeypatch.setattr(pipeline, options, given)
    base = request.getfixturevalue(family)
    assert run(base, data, catalog) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["name"], row["state"]) for row in told["promote"]] == [
        (name, "active") for name in SPECIALTIES
    ]
    assert told["report"]["num_questions"] == 2 * NUM_VALIDATION
    assert steps.names().count("train_lora_adapter") == 3

    store = open_store(catalog / "state", catalog, catalog)
    adapters = check_seed(store, "tiny")
    assert [adapter.name for adapter in adapters] == list(SPECIALTIES)
    for adapter in adapters:
        assert adapter.stable.evaluation["nll_difference_interval"][1] < 0
        assert (store.folder(adapter.stable) / "README.md").is_file()
    assert "rises with 2 of 2" in (data.parent / "work" / "report.md").read_text()
    assert "## Contamination" in (data.parent / "work" / "report_data.md").read_text()

    before = (catalog / "catalog.yaml").read_bytes()
    assert before.startswith(b"# ours\n")
    steps.calls.clear()
    assert run(base, data, catalog) == 0
    assert "train_lora_adapter" not in steps.names(), "what is there is not made again"
    assert "prepare_medical_dataset" not in steps.names()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answers"][0]["num_answers"] == 0
    assert (catalog / "catalog.yaml").read_bytes() == before


@pytest.mark.long
@pytest.mark.slow
def test_new_data_and_another_recipe_train_again(
    tiny_llama_dir: Path,
    data: Path,
    catalog: Path,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages = ("--first", "prepare", "--last", "train")
    assert run(tiny_llama_dir, data, catalog, *stages) == 0
    monkeypatch.setattr(pipeline, "THEN", [*pipeline.THEN, "--seed", "1"])
    steps.calls.clear()
    assert run(tiny_llama_dir, data, catalog, *stages) == 0
    assert steps.names() == ["train_lora_adapter"] * 2, "the joint adapter stays"
    file = data / "cardiology.jsonl"
    file.write_text(file.read_text().replace("ache", "hurt"))
    steps.calls.clear()
    assert run(tiny_llama_dir, data, catalog, *stages) == 0
    assert steps.names() == ["prepare_medical_dataset"] + ["train_lora_adapter"] * 3


@pytest.mark.long
def test_an_interrupted_training_goes_on(
    tiny_llama_dir: Path, data: Path, catalog: Path, steps: Steps
) -> None:
    """The stamp of an unfinished step has no report; without a checkpoint it starts anew."""
    stages = ("--first", "prepare", "--last", "train")
    assert run(tiny_llama_dir, data, catalog, *stages) == 0
    work = data.parent / "work"
    (work / "logs" / "train-cardiology.json").unlink()
    unfinished = work / "adapters" / "cardiology" / CHECKPOINT
    unfinished.mkdir()
    steps.calls.clear()
    assert run(tiny_llama_dir, data, catalog, *stages) == 0
    assert [call[-1] == "--resume" for call in steps.calls] == [False]

    (work / "logs" / "train-cardiology.json").unlink()
    (unfinished / "checkpoint-1").mkdir(parents=True)
    (unfinished / "checkpoint-1" / "trainer_state.json").write_text("{}")
    steps.calls.clear()
    assert run(tiny_llama_dir, data, catalog, *stages) == 2, "a made-up checkpoint is refused"
    assert [call[-1] == "--resume" for call in steps.calls] == [True]


@pytest.mark.long
@pytest.mark.slow
def test_answers_of_an_earlier_adapter_are_not_kept(
    tiny_llama_dir: Path,
    data: Path,
    catalog: Path,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_llama_dir, data, catalog, "--last", "answers") == 0
    monkeypatch.setattr(pipeline, "THEN", [*pipeline.THEN, "--seed", "1"])
    capsys.readouterr()
    assert run(tiny_llama_dir, data, catalog, "--last", "answers") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["num_answers"] for row in told["answers"]] == [2 * NUM_VALIDATION] * 2


@pytest.mark.slow
@pytest.mark.long
def test_an_adapter_that_is_not_better_is_listed_as_disabled(
    tiny_llama_dir: Path,
    data: Path,
    catalog: Path,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained at no learning rate to speak of: significant, and without effect."""
    for options in ("FIRST", "THEN"):
        given = [*getattr(pipeline, options), "--learning_rate", "1e-9"]
        monkeypatch.setattr(pipeline, options, given)
    assert run(tiny_llama_dir, data, catalog) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["state"] for row in told["promote"]] == ["disabled"] * 2
    listed = yaml.safe_load((catalog / "catalog.yaml").read_text())["adapters"]
    assert [entry["state"] for entry in listed] == ["disabled"] * 2
    assert all("likelihood of the references does not rise" in e["reason"] for e in listed)


@pytest.mark.parametrize("more", [[], ["--with_passages"]])
def test_prompts_with_passages_may_be_long(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), *more]
    made = pipeline.Pipeline(make_specialists._parser().parse_args(words))
    calls: list[steps_module.Step] = []
    monkeypatch.setattr(made._steps, "run_once", lambda step, *_: calls.append(step))
    made._train_one("skin", ["dermatology"], tmp_path / "out", pipeline.THEN, {})
    given = train_lora_adapter._parser().parse_args(calls[0].arguments)
    passages = [SourceText("Eczema", "scaly lesions " * 400)] * 3
    (turn,) = with_passages((Message("user", "What is eczema?"),), passages)
    assert (given.max_prompt_tokens > len(turn.content) / 3) == bool(more)


def test_data_of_ones_own_needs_a_licence(
    tiny_llama_dir: Path,
    data: Path,
    catalog: Path,
    steps: Steps,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = data / "cardiology.jsonl"
    file.write_text(file.read_text().replace("MedQuAD/GHR", "ward 7"))
    assert run(tiny_llama_dir, data, catalog, "--last", "prepare") == 2
    assert "the licence of ward is not known here" in capsys.readouterr().err
    assert run(tiny_llama_dir, data, catalog, "--last", "prepare", "--licence", "our own") == 0
    manifest = json.loads((data.parent / "work" / "data" / "manifest.json").read_text())
    assert manifest["sources"][0]["options"] == {"licence": "our own"}


def test_a_failing_step_is_named_with_its_log(
    tiny_llama_dir: Path, data: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real process."""
    with (data / "cardiology.jsonl").open("a") as file:
        file.write("{torn\n")
    assert run(tiny_llama_dir, data, catalog, "--last", "prepare") == 2
    error = capsys.readouterr().err
    assert "prepare ended with exit code 2" in error
    assert f"cardiology.jsonl, line {NUM_DISEASES + 1}" in error
    assert (data.parent / "work" / "logs" / "prepare.log").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--first", "score", "--last", "train"], "--first score comes after --last train"),
        (["--first", "train", "--specialties", "surgery"], "--specialties surgery: not in"),
    ],
)
def test_arguments_that_do_not_fit(
    tiny_llama_dir: Path,
    data: Path,
    catalog: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_llama_dir, data, catalog, *more) == 2
    assert message in capsys.readouterr().err


def test_no_data_folder(
    tiny_llama_dir: Path, tmp_path: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_llama_dir, tmp_path / "none", catalog) == 2
    assert "no such folder" in capsys.readouterr().err
