"""Training on tiny models: it learns, keeps the best epoch, goes on, and refuses clearly."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from adapters.base_models import sha256_of
from adapters.catalog import AdapterEntry
from adapters.prompting import encode_example
from adapters.validation import check_adapter
from scripts import train_lora_adapter
from scripts.lora_training import LoraTrainer
from tests.tiny_models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = [
    ("What is eczema?", "Eczema makes the skin red."),
    ("What causes migraine?", "Stress and light."),
    ("How is the rash treated?", "With drugs and less stress."),
    ("What is asthma?", "A short breath."),
]


def item(question: str, answer: str, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"input": question, "output": answer, "split": split, "source": "MedQuAD/GHR", **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two training splits' worth of text; validation repeats it, so that learning shows."""
    lines = [item(q, a) for q, a in PAIRS] + [item(q, a, "validation") for q, a in PAIRS]
    return write_lines(tmp_path / "data", [json.dumps(line) for line in lines])


def write_lines(folder: Path, lines: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dermatology.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["--data", str(data), "--specialty", "dermatology", "--out", str(out)]
    words += ["--base_model", str(base), "--base_model_name", "tiny", "--device", "cpu"]
    words += ["--max_prompt_tokens", "300", "--learning_rate", "0.02", "--grad_accum", "1"]
    return [*words, *more]


def run(base: Path, data: Path, out: Path, *more: str) -> int:
    return train_lora_adapter.main(arguments(base, data, out, *more))


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_flan_t5_dir", "tiny_relu_t5_dir"])
def test_it_learns_and_saves_what_the_catalogue_takes(
    family: str,
    data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = request.getfixturevalue(family), tmp_path / "out"
    assert run(base, data, out, "--epochs", "8") == 0
    report = report_of(capsys)
    assert report["validation_loss"] < 0.9 * report["validation_loss_base"]
    assert report["num_answers_cut"] == 0
    entry = AdapterEntry(
        name="derm",
        specialty="dermatology",
        base_model="tiny",
        path="derm",
        sha256=report["sha256"],
        version="1",
        rank=8,
    )
    assert check_adapter(out, entry) == []
    dtypes = {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


def test_saved_adapter_raises_the_likelihood_of_the_answers(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    """Measured from the files alone, as a server would load them."""
    out = tmp_path / "out"
    run(tiny_llama_dir, data, out, "--epochs", "4")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = PeftModel.from_pretrained(load_model(tiny_llama_dir), str(out)).eval()
    line = "You are a medical assistant. Answer the question clearly and briefly."
    prompt, answer = encode_example("chat", *PAIRS[0], tokenizer=tokenizer, system_line=line)

    @torch.inference_mode()
    def loss() -> float:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()

    with model.disable_adapter():
        before = loss()
    assert loss() < 0.9 * before


def test_folder_has_a_card_a_history_and_no_machine_path(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(tiny_llama_dir, data, out, "--epochs", "2")
    assert {path.name for path in out.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "history.jsonl",
    }
    assert not (out / train_lora_adapter.CHECKPOINT).exists()
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    card = (out / "README.md").read_text()
    digest = sha256_of(data / "dermatology.jsonl")
    for part in ("not medical advice", "CC BY 4.0", digest, "--epochs 2", "Commit `"):
        assert part in card
    config = (out / "adapter_config.json").read_text()
    assert str(tmp_path) not in card + config
    assert str(tiny_llama_dir) not in card + config
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert PAIRS[0][1] not in card, "no text of the data"


def test_loss_is_on_the_answer_only(tiny_llama_dir: Path) -> None:
    """By hand for one example, with padding beside a longer one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    encoded = [encode_example("chat", *p, tokenizer=tokenizer, system_line="") for p in PAIRS]
    args = train_lora_adapter._parser().parse_args(
        arguments(tiny_llama_dir, Path(), Path(), "--batch_size", "4")
    )
    model = train_lora_adapter._model(tiny_llama_dir, "causal", args)
    names = train_lora_adapter._LOOP
    settings = train_lora_adapter.LoopSettings(**{n: getattr(args, n) for n in names})
    trainer = LoraTrainer(model, "causal", tokenizer.pad_token_id, settings)
    total, num_tokens = 0.0, 0
    with torch.inference_mode():
        for prompt, answer in encoded:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
            picked = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            total -= sum(picked[i, id_].item() for i, id_ in enumerate(answer))
            num_tokens += len(answer)
    examples = [train_lora_adapter.Example(*pair) for pair in encoded]
    assert trainer.loss_of(examples) == pytest.approx(total / num_tokens, rel=1e-4)


def test_best_epoch_is_kept_and_training_stops_early(
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = iter([9.0, 3.0, 2.0, 4.0, 5.0, 1.0])  # the base, then each epoch
    snapshots: list[dict[str, torch.Tensor]] = []

    def loss_of(self: LoraTrainer, examples: Any) -> float:
        snapshots.append({n: p.detach().clone() for n, p in self._named.items()})
        return next(losses)

    monkeypatch.setattr(LoraTrainer, "loss_of", loss_of)
    run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "9")
    report = report_of(capsys)
    assert (report["best_epoch"], report["validation_loss"]) == (2, 2.0)
    assert report["stopped"] == "no better validation loss in 2 epochs"
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    kept = {name.replace(".default", ""): tensor for name, tensor in snapshots[2].items()}
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[n], kept[n].to(torch.bfloat16)) for n in saved)


def test_interrupted_run_goes_on_to_the_same_weights(
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny_llama_dir, data, whole, "--epochs", "3")
    epoch = LoraTrainer._epoch

    def interrupted(self: LoraTrainer, examples: Any, state: Any, total: float) -> float:
        if state.epoch == 1:
            raise KeyboardInterrupt
        return epoch(self, examples, state, total)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTrainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_llama_dir, data, parts, "--epochs", "3")
    assert not (parts / "adapter_model.safetensors").exists()
    assert run(tiny_llama_dir, data, parts, "--epochs", "3", "--rank", "4", "--resume") == 2
    assert "rank was 8, now 4" in capsys.readouterr().err
    assert run(tiny_llama_dir, data, parts, "--epochs", "3", "--resume") == 0
    files = [folder / "adapter_model.safetensors" for folder in (whole, parts)]
    assert sha256_of(files[0]) == sha256_of(files[1])


def test_nothing_to_resume(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_llama_dir, data, tmp_path / "out", "--resume") == 2
    assert "holds no unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize("bad_step", [0, 6])
def test_loss_that_is_not_finite(
    bad_step: int,
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the first epoch nothing is saved; later the best epoch is. Two steps make an epoch."""
    step = LoraTrainer._step

    def poisoned(self: LoraTrainer, group: Any, number: int) -> float:
        if number == bad_step:
            with torch.no_grad():
                next(iter(self._named.values())).fill_(torch.nan)
        return step(self, group, number)

    monkeypatch.setattr(LoraTrainer, "_step", poisoned)
    code = run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "5")
    captured = capsys.readouterr()
    assert f"not finite (nan) at step {bad_step}" in captured.err
    saved = tmp_path / "out" / "adapter_model.safetensors"
    if bad_step == 0:
        assert (code, saved.exists()) == (2, False)
    else:
        assert code == 3
        assert json.loads(captured.out.splitlines()[-1])["best_epoch"] == 3
        assert all(tensor.isfinite().all() for tensor in load_file(saved).values())


def test_without_validation_the_last_epoch_is_kept(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "data", [json.dumps(item(q, a)) for q, a in PAIRS])
    assert run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "4") == 0
    report = report_of(capsys)
    assert (report["best_epoch"], report["validation_loss"]) == (4, None)


def test_steps_notes_and_cut_answers(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(item(q, a, note="list" if i else "")) for i, (q, a) in enumerate(PAIRS)]
    data = write_lines(data, lines)
    run(tiny_llama_dir, data, tmp_path / "a", "--skip_note", "list", "--max_answer_tokens", "2")
    report = report_of(capsys)
    assert (report["num_train"], report["num_answers_cut"]) == (1, 1)
    run(tiny_llama_dir, data, tmp_path / "b", "--batch_size", "1", "--max_steps", "3")
    assert report_of(capsys)["num_steps"] == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"input": "a", "output": "b"}', "{broken"], "line 2: not JSON"),
        (["[1]"], "line 1: a JSON object is expected"),
        (['{"input": "a", "output": " "}'], "line 1: 'output' is empty"),
        (['{"question": "a", "output": "b"}'], "columns found: output, question"),
        (['{"input": "a", "output": "b", "split": "test"}'], "line 1: split 'test'"),
        (['{"input": "a", "output": "b", "split": "validation"}'], "no training pair"),
    ],
)
def test_bad_data_is_refused_by_line(
    lines: list[str],
    message: str,
    tiny_llama_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_llama_dir, write_lines(tmp_path / "data", lines), tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--specialty", "cardiology"], ["cardiology.jsonl", "there are: dermatology"]),
        (["--data", "/nowhere"], ["/nowhere", "no such file"]),
        (["--target_modules", "q", "o_proj"], ["--target_modules q:", "q_proj", "all-linear"]),
        (["--max_prompt_tokens", "5"], ["above --max_prompt_tokens 5"]),
        (["--base_model", "nothing"], ["'nothing'", "org/name"]),
    ],
)
def test_bad_arguments_say_what_there_is(
    more: list[str],
    parts: list[str],
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_llama_dir, data, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts)


@pytest.mark.parametrize("option", ["--epochs", "--batch_size", "--rank", "--max_steps"])
def test_numbers_below_one_are_refused(
    option: str, tiny_llama_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tiny_llama_dir, data, data, option, "0")
    assert "a whole number from 1 is expected" in capsys.readouterr().err


def test_all_linear_layers(tiny_llama_dir: Path, data: Path, tmp_path: Path) -> None:
    more = ["--target_modules", "all-linear", "--epochs", "1"]
    assert run(tiny_llama_dir, data, tmp_path / "out", *more) == 0
    names = " ".join(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert all(layer in names for layer in ("q_proj", "o_proj", "gate_proj", "down_proj"))
