"""Base against adapter: figures from the right side, no text of the data, clear refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from adapters.catalog import DEFAULT_SYSTEM_LINE
from adapters.prompting import encode_example
from scripts import evaluate_adapter
from tests.tiny_models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
Catalogs = dict[str, tuple[Path, Path]]
QUESTIONS = ("What is eczema?", "What causes migraine?", "What is asthma?")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"input": q, "output": "Stress and light.", "split": "train"} for q in QUESTIONS]
    rows += [{**row, "split": "validation"} for row in rows]
    file = tmp_path / "dermatology.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def run(base: Path, adapter: Path, data: Path, *more: str) -> int:
    words = ["--data", str(data), "--adapter", str(adapter), "--specialty", "dermatology"]
    words += ["--base_model", str(base), "--device", "cpu", "--max_new_tokens", "8"]
    return evaluate_adapter.main([*words, *more])


@pytest.mark.parametrize("family", ["llama", "flan_t5"])
def test_live_adapter_changes_answers_and_likelihood(
    family: str, data: Path, tiny_catalogs: Catalogs, capsys: pytest.CaptureFixture[str]
) -> None:
    base, catalogue = tiny_catalogs[family]
    assert run(base, catalogue / "weights" / "derm", data, "--max_questions", "2") == 0
    out = capsys.readouterr().out
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert report["num_questions"] == 2
    assert report["answers_changed"] == 1.0
    difference = report["adapter"]["nll"] - report["base"]["nll"]
    assert difference != 0
    assert report["nll_difference"]["mean"] == pytest.approx(difference, abs=2e-4)
    assert report["nll_difference"]["low"] < report["nll_difference"]["high"]
    assert "eczema" not in out


@torch.inference_mode()
def test_base_side_is_the_base_without_any_adapter(
    data: Path, tiny_catalogs: Catalogs, capsys: pytest.CaptureFixture[str]
) -> None:
    base, catalogue = tiny_catalogs["llama"]
    run(base, catalogue / "weights" / "derm", data)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    tokenizer, model = AutoTokenizer.from_pretrained(base), load_model(base)
    losses = []
    for question in QUESTIONS:
        prompt, answer = encode_example(
            "chat",
            question,
            "Stress and light.",
            tokenizer=tokenizer,
            system_line=DEFAULT_SYSTEM_LINE,
        )
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        losses.append(loss.item())
    assert report["base"]["nll"] == pytest.approx(np.mean(losses), abs=1e-4)


def test_interval_is_over_questions() -> None:
    same = evaluate_adapter._interval(np.full(20, -0.5), seed=0)
    assert same == {"mean": -0.5, "low": -0.5, "high": -0.5}
    noisy = evaluate_adapter._interval(np.random.default_rng(1).normal(0, 1, 400), seed=0)
    assert noisy["high"] - noisy["low"] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert noisy["low"] < 0 < noisy["high"]


def test_scores_know_a_perfect_answer_from_a_wrong_one() -> None:
    pair = evaluate_adapter.Pair("1", "q", "the red itchy skin needs rest", "", "")
    perfect, wrong = [pair.answer], ["cats sleep all day long here"]
    assert evaluate_adapter._rouge_l([pair], perfect)[0] == pytest.approx(100)
    assert evaluate_adapter._rouge_l([pair], wrong)[0] == 0
    assert evaluate_adapter._bleu([pair], perfect) == pytest.approx(100)
    assert evaluate_adapter._bleu([pair], wrong) < 10


def test_nothing_to_evaluate_on(
    tmp_path: Path, tiny_catalogs: Catalogs, capsys: pytest.CaptureFixture[str]
) -> None:
    base, catalogue = tiny_catalogs["llama"]
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"input": "a", "output": "b", "split": "train"}))
    assert run(base, catalogue / "weights" / "derm", file) == 2
    assert "no validation pair" in capsys.readouterr().err
