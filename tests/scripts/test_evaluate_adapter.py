"""Answers and likelihoods on tiny models, against plain generation; resuming."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.bases.models import resolve_base_model
from adapters.catalog import load_catalog
from adapters.prompting import Message, encode_example, encode_prompt
from scripts import evaluate_adapter
from scripts.evaluation import answer_model, evaluate
from scripts.evaluation.answer_file import SYSTEMS, Answers, read_answers
from tests.tiny_models import load_model, make_adapter

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_TOKENS = 12
VALIDATION = [
    ("What is eczema?", "Eczema makes the skin red, dry and itchy."),
    ("What causes migraine, and what can trigger it?", "Stress, light, noise."),
    ("How is high blood pressure treated?", "With drugs, less salt and more walking."),
]
TRAINING = [
    ("What is a rash?", "The skin is red."),
    ("What is asthma?", "A cough and a short breath."),
]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol's 256 tokens take minutes; its other parts stay."""
    made = evaluate.protocol_for

    def shorter(answers: Any) -> Any:
        return type(made(answers))(made(answers).base_instruction_words, max_new_tokens=NUM_TOKENS)

    monkeypatch.setattr(evaluate, "protocol_for", shorter)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def write_data(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        {"id": f"{split}{i}", "input": q, "output": a, "split": split, "qtype": "information"}
        for split, pairs in (("train", TRAINING), ("validation", VALIDATION))
        for i, (q, a) in enumerate(pairs)
    ]
    write_rows(folder / "dermatology.jsonl", rows)
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=["tiny_llama_dir", "tiny_flan_t5_dir"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "dermatology", base_name="tiny", seed=1)


def arguments(base: Path, adapter: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--data", str(data), "--adapter", str(adapter), "--out", str(out), "--device", "cpu"),
        *("--base_model", str(base), "--base_model_name", "tiny", *more),
    ]


def run(base: Path, adapter: Path, data: Path, out: Path, *more: str) -> Answers:
    assert evaluate_adapter.main(arguments(base, adapter, data, out, *more)) == 0
    return read_answers(out / "dermatology.answers.jsonl")


class Plain:
    """One question at a time, with generate and a forward pass of our own writing."""

    def __init__(self, base: Path, adapter: Path, prompt_format: str | None = None) -> None:
        self._family = resolve_base_model(str(base)).family
        catalog = load_catalog(evaluate.CATALOG_DIR)
        self._entry = catalog.base_model("tiny", family=self._family)
        if prompt_format is not None:
            self._entry = self._entry.model_copy(update={"prompt_format": prompt_format})
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = PeftModel.from_pretrained(load_model(base), str(adapter)).eval()

    @torch.inference_mode()
    def answer(self, question: str, system: str, instruction: str) -> str:
        line = self._entry.system_line + (f" {instruction}" if system == "base" else "")
        prompt = encode_prompt(
            self._entry.prompt_format,
            [Message("user", question)],
            tokenizer=self._tokenizer,
            system_line=line,
        )
        ids = torch.tensor([prompt])
        with self._switched(system):
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
            )[0]
        new = output[len(prompt) :] if self._family == "causal" else output
        text: str = self._tokenizer.decode(new, skip_special_tokens=True)
        return text.strip()

    @torch.inference_mode()
    def nll(self, question: str, reference: str, system: str) -> float:
        prompt, answer = encode_example(
            self._entry.prompt_format,
            question,
            reference,
            tokenizer=self._tokenizer,
            system_line=self._entry.system_line,
        )
        labels = torch.tensor(answer)
        with self._switched(system):
            if self._family == "causal":
                logits = self._model(input_ids=torch.tensor([prompt + answer])).logits[0]
                logits = logits[len(prompt) - 1 : -1]
            else:
                given = {"input_ids": torch.tensor([prompt]), "labels": labels[None]}
                logits = self._model(**given).logits[0]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()

    def _switched(self, system: str) -> Any:
        return self._model.disable_adapter() if system == "base" else contextlib.nullcontext()


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_answers_and_likelihoods_are_those_of_one_question_alone(
    base: Path, adapter: Path, data: Path, tmp_path: Path, batch_size: str
) -> None:
    found = run(base, adapter, data, tmp_path / "out", "--batch_size", batch_size)
    plain = Plain(base, adapter)
    instruction = found.header["protocol"]["base_instruction"]
    assert instruction == "Answer in at most 5 words."  # the median of 4 and 6
    answers = {system: [] for system in SYSTEMS}
    for system in SYSTEMS:
        for i, (question, reference) in enumerate(VALIDATION):
            row = found.rows[system][f"validation{i}"]
            assert row.answer == plain.answer(question, system, instruction)
            assert row.nll == pytest.approx(plain.nll(question, reference, system), rel=1e-4)
            answers[system].append(row.answer)
    assert answers["base"] != answers["adapter"]


def test_an_adapter_is_asked_in_the_prompt_format_that_it_records(
    base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "prompt_format": "raw"})
    found = run(base, adapter, data, tmp_path / "out")
    own = "chat" if "llama" in base.name else "plain"
    assert found.header["prompt_formats"] == {"base": own, "adapter": "raw"}
    question, reference = VALIDATION[0]
    instruction = found.header["protocol"]["base_instruction"]
    raw, base_model = Plain(base, adapter, "raw"), Plain(base, adapter)
    row = found.rows["adapter"]["validation0"]
    assert row.answer == raw.answer(question, "adapter", "")
    assert row.nll == pytest.approx(raw.nll(question, reference, "adapter"), rel=1e-4)
    row = found.rows["base"]["validation0"]
    assert row.answer == base_model.answer(question, "base", instruction)
    assert row.nll == pytest.approx(base_model.nll(question, reference, "base"), rel=1e-4)


def test_the_bar_moves_with_each_answer(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three are answered in one batch; the first ends early, two reach the limit."""
    adapter = make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="tiny", seed=1)
    steps: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, total: int, desc: str) -> None:
            assert total == len(VALIDATION)
            self._moves = steps.setdefault(desc, [])

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def update(self, count: int) -> None:
            self._moves.append(count)

    monkeypatch.setattr(evaluate, "tqdm", Bar)
    ended = answer_model._Ended.__call__

    def first_row_ends(self: Any, input_ids: torch.Tensor, scores: Any, **more: Any) -> Any:
        input_ids = input_ids.clone()
        input_ids[0, -1] = self._end_id
        return ended(self, input_ids, scores, **more)

    monkeypatch.setattr(answer_model._Ended, "__call__", first_row_ends)
    run(tiny_llama_dir, adapter, data, tmp_path / "out", "--batch_size", "3")
    assert all(sum(moves) == len(VALIDATION) for moves in steps.values())
    assert all(moves[0] == 1 for moves in steps.values())
    assert len(steps) == 2


def test_the_result_file(base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    run(base, adapter, data, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "dermatology.json").read_text())
    assert (result["num_questions"], result["split"], result["base_model"]) == (
        len(VALIDATION),
        "validation",
        "tiny",
    )
    systems = {"base", "adapter", "nearest_neighbour", "random", "echo"}
    for name in ("bleu", "rouge_l"):
        metric = result["metrics"][name]
        assert set(metric["systems"]) == systems
        for entry in (*metric["systems"].values(), metric["difference"]):
            low, high = entry["interval"]
            assert low <= entry["value"] <= high
    loss = result["metrics"]["nll"]
    assert set(loss["systems"]) == {"base", "adapter"}
    assert loss["not_available"]["echo"] == "a fixed text has no likelihood"
    assert result["metrics"]["extra_memory_mib"]["systems"]["adapter"]["value"] > 0
    assert "n/a" not in json.dumps(result)
    text = (tmp_path / "out" / "dermatology.json").read_text()
    assert not [reference for _, reference in VALIDATION if reference in text]


@pytest.fixture
def llama(tiny_llama_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    return (
        tiny_llama_dir,
        make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="tiny", seed=1),
    )


def test_an_interrupted_run_goes_on(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    run(*llama, data, whole, "--batch_size", "1")
    file = tmp_path / "out" / "dermatology.answers.jsonl"
    file.parent.mkdir()
    lines = (whole / file.name).read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote the third answer
    capsys.readouterr()
    run(*llama, data, file.parent, "--batch_size", "1")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_answers"] == 4
    first, second = read_answers(whole / file.name), read_answers(file)
    for system in SYSTEMS:
        for id_, row in first.rows[system].items():
            assert (second.rows[system][id_].answer, second.rows[system][id_].nll) == (
                row.answer,
                row.nll,
            )


def test_a_quick_look_at_the_first_questions(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not mixed with a whole evaluation."""
    base, adapter = llama
    found = run(base, adapter, data, tmp_path / "out", "--limit", "2")
    assert sorted(found.rows["adapter"]) == ["validation0", "validation1"]
    result = json.loads((tmp_path / "out" / "dermatology.json").read_text())
    assert (result["limit"], result["num_questions"]) == (2, 2)
    assert evaluate_adapter.main(arguments(base, adapter, data, tmp_path / "out")) == 2
    assert "num_questions differ" in capsys.readouterr().err


def test_the_base_answers_once_for_several_adapters(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = llama
    run(base, adapter, data, tmp_path / "first")
    other = make_adapter(base, tmp_path / "other" / "dermatology", base_name="tiny", seed=2)
    taken = str(tmp_path / "first" / "dermatology.answers.jsonl")
    capsys.readouterr()
    found = run(base, other, data, tmp_path / "second", "--base_answers", taken)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_answers"] == len(VALIDATION)
    assert found.rows["base"] == read_answers(Path(taken)).rows["base"]
    assert found.rows["adapter"] != read_answers(Path(taken)).rows["adapter"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--shared_device"], "other work ran on the device"),
        ([], None),
    ],
)
def test_times_are_told_only_of_a_device_of_its_own(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, more: list[str], why: str | None
) -> None:
    run(*llama, data, tmp_path / "out", *more)
    result = json.loads((tmp_path / "out" / "dermatology.json").read_text())
    metric = result["metrics"]["time_per_answer_s"]
    assert metric["not_available"].get("adapter") == why
    assert ("adapter" in metric["systems"]) is (why is None)


def test_the_answers_of_another_adapter_are_not_mixed_in(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = llama
    run(base, adapter, data, tmp_path / "out", "--stage", "answers")
    other = make_adapter(base, tmp_path / "other" / "dermatology", base_name="tiny", seed=2)
    assert evaluate_adapter.main(arguments(base, other, data, tmp_path / "out")) == 2
    assert "another run: adapter_sha256 differ" in capsys.readouterr().err


def test_scores_need_the_data_that_was_asked(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*llama, data, tmp_path / "out", "--stage", "answers")
    assert not (tmp_path / "out" / "dermatology.json").exists()
    with (data / "dermatology.jsonl").open("a") as file:
        file.write(json.dumps({"input": "New?", "output": "Yes."}) + "\n")
    more = ("--stage", "score")
    assert evaluate_adapter.main(arguments(*llama, data, tmp_path / "out", *more)) == 2
    assert "other data files" in capsys.readouterr().err


def test_scores_need_every_answer(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*llama, data, tmp_path / "out", "--stage", "answers")
    file = tmp_path / "out" / "dermatology.answers.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    more = ("--stage", "score")
    assert evaluate_adapter.main(arguments(*llama, data, tmp_path / "out", *more)) == 2
    assert "1 of 3 questions have no answer of adapter" in capsys.readouterr().err


def test_an_adapter_of_another_base(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="elsewhere", seed=1)
    assert evaluate_adapter.main(arguments(tiny_llama_dir, adapter, data, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "trained on 'elsewhere'" in error
    assert "'tiny'" in error


def test_a_header_that_a_full_disk_cut_is_written_again(
    llama: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out" / "dermatology.answers.jsonl"
    file.parent.mkdir()
    file.write_text('{"schema": 1, "spec')
    assert run(*llama, data, file.parent).header["specialty"] == "dermatology"


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_batch_sizes_that_are_none(
    value: str, llama: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate_adapter.main(arguments(*llama, data, data, "--batch_size", value))
    assert f"'{value}': a whole number from 1 is expected" in capsys.readouterr().err
