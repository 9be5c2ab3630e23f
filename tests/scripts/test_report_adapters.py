"""Reports on hand-made results: figures add up, no reference leaks, texts are escaped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import report_adapters
from scripts.datasets.pairs import load_pairs
from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.figures import pooled, read_results, verdict
from scripts.evaluation.scores import score
from tests.scripts.evaluation.test_scores import answers, good_adapter, row

NUM = 12
SECRET = "wintergreen"  # stands in every reference and in no answer of the models


def write_specialty(folder: Path, specialty: str, *, gain: bool = True) -> None:
    """Data, answers and result of one specialty, as the scripts before leave them."""
    data = folder / "data" / f"{specialty}.jsonl"
    data.parent.mkdir(exist_ok=True)
    rows = [
        {
            "id": f"{split}{i}",
            "input": f"What is {specialty} disease {i}?",
            "output": f"Disease {i} is a dermatitis {SECRET} that makes skin {i} red and dry.",
            "split": split,
            "qtype": "information",
        }
        for split in ("train", "validation")
        for i in range(NUM)
    ]
    data.write_text("".join(json.dumps(item) + "\n" for item in rows))
    pairs = load_pairs(data.parent, specialty)
    good = answers(pairs, good_adapter)
    for pair in pairs.validation:
        said = pair.answer.replace(SECRET, "*<b>`here`</b>*")
        good.rows["adapter"][pair.id] = row(pair.id, "adapter", said, nll=10.0 if gain else 30.0)
    header = {
        **good.header,
        "schema": 1,
        "specialty": specialty,
        "adapter_sha256": "a" * 64,
        "base_model": "tiny",
        "split": "validation",
        "data_files": pairs.files,
        "num_questions": NUM,
        "protocol": {"decoding": "greedy", "base_instruction_words": 7},
        "commit": "abc1234",
        "device": "cpu",
        "dtype": "float32",
    }
    evaluation = folder / "evaluation"
    evaluation.mkdir(exist_ok=True)
    result = header | score(pairs, good, (), (), seed=0)
    (evaluation / f"{specialty}.json").write_text(json.dumps(result))
    lines = [header] + [
        {field: getattr(found, field) for field in found.__slots__}
        for system in SYSTEMS
        for found in good.rows[system].values()
    ]
    (evaluation / f"{specialty}.answers.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_specialty(tmp_path, "dermatology")
    write_specialty(tmp_path, "cardiology")
    return tmp_path


def run(runs: Path, *more: str) -> int:
    out = str(runs / "docs" / "specialists")
    return report_adapters.main(["--evaluations", str(runs / "evaluation"), "--out", out, *more])


def test_the_report_and_its_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(runs, "--html") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["num_adapters"], told["num_questions"]) == (2, 2 * NUM)
    assert told["differences"]["nll"] == {"value": -1, "interval": [-1, -1]}
    text = (runs / "docs" / "specialists.md").read_text()
    page = (runs / "docs" / "specialists.html").read_text()
    assert "rises with 2 of 2 adapters" in text
    assert "| **pooled** | 24 | 2.000 → 1.000 [-1.000, -1.000] |" in text
    assert "n/a (fewer than 10 items)" in text
    assert "1 of 2" not in text
    assert page.count("<svg") == 2
    assert "<b>`here`" not in page, "the model's words are shown, not rendered"
    assert "&lt;b&gt;" in page


def test_no_reference_is_in_a_report_unless_asked(runs: Path) -> None:
    run(runs, "--html", "--with_text", str(runs / "data"))
    for file in (runs / "docs").iterdir():
        assert SECRET not in file.read_text(), file
    local = (runs / "evaluation" / "with_text.local.html").read_text()
    assert local.count(SECRET) == 2 * NUM
    assert "*&lt;b&gt;`here`&lt;/b&gt;*" in local


def test_the_table_goes_between_its_marker_lines(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = runs / "README.md"
    readme.write_text("# Top\n<!-- results -->\nold\n<!-- /results -->\nrest\n")
    for _ in range(2):
        assert run(runs, "--table_into", str(readme)) == 0
    text = readme.read_text()
    assert text.startswith("# Top\n<!-- results -->\n| specialty | n | loss |")
    assert text.endswith("|\n<!-- /results -->\nrest\n")
    assert "old" not in text
    assert text.count("| dermatology |") == 1
    readme.write_text("# Top\n")
    assert run(runs, "--table_into", str(readme)) == 2
    assert "<!-- results -->" in capsys.readouterr().err
    assert readme.read_text() == "# Top\n"


def test_pooling_is_over_questions(runs: Path) -> None:
    results = read_results(runs / "evaluation")
    everything = pooled(results, seed=0)
    rows = [row for result in results for row in result["per_question"]]
    wanted = np.mean([row["rouge_l"]["adapter"] - row["rouge_l"]["base"] for row in rows])
    assert everything.differences["rouge_l"]["value"] == pytest.approx(wanted)
    some = pooled(results, 0, lambda row: row["id"] == "validation0")
    assert some.num_questions == 2


def test_who_is_better_and_who_is_worse(tmp_path: Path) -> None:
    write_specialty(tmp_path, "dermatology")
    write_specialty(tmp_path, "cardiology", gain=False)
    results = read_results(tmp_path / "evaluation")
    found = verdict(results, pooled(results, seed=0))
    assert found["likelihood_rises"] == ["dermatology"]
    assert found["better"]["bleu"] == ["cardiology", "dermatology"]
    assert found["worse"] == {"bleu": [], "rouge_l": [], "terminology": []}
    swapped: list[dict[str, Any]] = json.loads(json.dumps(results))
    for result in swapped:
        bounds = result["metrics"]["bleu"]["difference"]["interval"]
        result["metrics"]["bleu"]["difference"]["interval"] = [-bounds[1], -bounds[0]]
    worse = verdict(swapped, pooled(swapped, seed=0))["worse"]
    assert worse["bleu"] == ["cardiology", "dermatology"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no result of scripts.evaluate_adapter"),
        ('{"schema": 2}', "schema 2; 1 is known"),
        ('{"schema": 1}', "KeyError: 'metrics'"),
    ],
)
def test_unreadable_results(
    runs: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "evaluation" / "neurology.json").write_text(content)
    assert run(runs) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "docs").exists()


def test_results_that_do_not_belong_together(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "evaluation" / "cardiology.json"
    file.write_text(file.read_text().replace('"base_model": "tiny"', '"base_model": "huge"'))
    assert run(runs) == 2
    assert "several base models: huge, tiny" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert report_adapters.main(["--evaluations", str(empty), "--out", "x"]) == 2
    assert "no result" in capsys.readouterr().err


def test_text_of_other_data_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (runs / "data" / "cardiology.jsonl").open("a") as file:
        file.write(json.dumps({"input": "New?", "output": "Yes."}) + "\n")
    assert run(runs, "--with_text", str(runs / "data")) == 2
    assert "cardiology was evaluated on other data" in capsys.readouterr().err
