"""Evaluating with the weights that a CPU serves: the engine's answers against transformers'."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import load_catalog
from scripts import evaluate_adapter
from scripts.evaluation import evaluate
from scripts.evaluation.answer_file import SYSTEMS, read_answers
from scripts.evaluation.answer_model import AnswerModel, EvaluationQuestion
from scripts.evaluation.protocol import Protocol
from scripts.evaluation.served_model import ServedModel
from scripts.lora.chosen_base import ChosenBase
from tests.tiny_models import make_adapter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # one compiles the step
PROTOCOL = Protocol(4, max_new_tokens=10)
QUESTIONS = [
    EvaluationQuestion("a", "What is eczema?", "Eczema makes the skin red, dry and itchy."),
    EvaluationQuestion("b", "What causes migraine, and what can trigger it?", "Stress, light."),
    EvaluationQuestion("c", "Which disease has these signs: red skin?", None),
]


@pytest.fixture
def adapter(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="tiny", seed=1, std=0.3)


@pytest.fixture
def base(tiny_llama_dir: Path) -> ChosenBase:
    from transformers import AutoTokenizer

    entry = load_catalog(evaluate.CATALOG_DIR).base_model("tiny", family="causal")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    return ChosenBase("tiny", tiny_llama_dir, "causal", entry, tokenizer)


@pytest.fixture
def served(base: ChosenBase, adapter: Path) -> Iterator[ServedModel]:
    model = ServedModel(base, adapter, "none", rows=2)
    yield model
    model.close()


def test_the_engine_in_float32_answers_and_scores_as_transformers(
    base: ChosenBase, adapter: Path, served: ServedModel
) -> None:
    plain = AnswerModel(base, adapter, "float32", "cpu")
    assert served.prompt_formats == plain.prompt_formats
    answers = set()
    for system in SYSTEMS:
        found, wanted = (
            [row for rows in model.answer(QUESTIONS, system, PROTOCOL, 2) for row in rows]
            for model in (served, plain)
        )
        for one, other in zip(found, wanted, strict=True):
            # The engine says no character that the last token leaves unfinished.
            assert (one.id, one.answer) == (other.id, other.answer.rstrip("\ufffd"))
            assert one.num_tokens == other.num_tokens
            assert (one.hit_limit, one.num_reference_tokens) == (
                other.hit_limit,
                other.num_reference_tokens,
            )
            assert one.nll == (None if other.nll is None else pytest.approx(other.nll, rel=1e-4))
        answers.add(tuple(row.answer for row in found))
    assert len(answers) == 2, "base and adapter answer alike: nothing was tested"


def test_the_command_evaluates_in_bytes(
    tiny_llama_dir: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "protocol_for", lambda answers: PROTOCOL)
    rows = [
        {"id": f"{split}{i}", "input": q.question, "output": q.reference, "split": split,
         "qtype": "information"}
        for split in ("train", "validation")
        for i, q in enumerate(QUESTIONS[:2])
    ]  # fmt: skip
    (tmp_path / "dermatology.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("--data", str(tmp_path), "--adapter", str(adapter), "--stage", "answers"),
        *("--base_model", str(tiny_llama_dir), "--base_model_name", "tiny"),
    ]
    losses = {}
    for dtype in ("float32", "int8"):
        out = tmp_path / dtype
        assert evaluate_adapter.main([*arguments, "--out", str(out), "--dtype", dtype]) == 0
        answers = read_answers(out / "dermatology.answers.jsonl")
        assert answers.header["dtype"] == dtype
        losses[dtype] = [row.nll for system in SYSTEMS for row in answers.rows[system].values()]
    assert losses["int8"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["int8"] != losses["float32"]


def test_a_base_that_has_no_bytes_is_refused(
    tiny_flan_t5_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_flan_t5_dir, tmp_path / "dermatology", base_name="tiny", seed=1)
    row = {"id": "a", "input": "What?", "output": "That.", "qtype": "information"}
    lines = [row | {"id": split, "split": split} for split in ("train", "validation")]
    (tmp_path / "dermatology.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    arguments = [
        *("--data", str(tmp_path), "--adapter", str(adapter), "--out", str(tmp_path / "out")),
        *("--base_model", str(tiny_flan_t5_dir), "--base_model_name", "tiny", "--dtype", "int8"),
    ]
    assert evaluate_adapter.main(arguments) == 2
    assert "the base is an encoder-decoder" in capsys.readouterr().err
