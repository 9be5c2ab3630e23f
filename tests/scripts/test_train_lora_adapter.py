"""Training on tiny models: it learns, keeps the best epoch, goes on, and refuses clearly."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoTokenizer

from adapters.bases.models import sha256_of
from adapters.prompting import encode_example
from adapters.seed import seed_version
from adapters.validation import check_adapter, recorded_prompt_format
from scripts import train_lora_adapter
from scripts.lora import train
from scripts.lora.batches import TokenizedPair
from scripts.lora.trainer import LoraTrainer
from tests.tiny_models import load_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
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
    assert report["validation_loss"] < 0.9 * report["validation_loss_at_start"]
    assert report["num_answers_cut"] == 0
    assert check_adapter(out, "tiny", rank=8) == []
    assert report["sha256"] == sha256_of(out / "adapter_model.safetensors")
    dtypes = {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize(("asked", "recorded"), [((), "chat"), (("--prompt_format", "raw"), "raw")])
def test_the_prompt_format_is_recorded_with_the_weights(
    asked: Sequence[str],
    recorded: str,
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[int]] = []
    original = train.TokenizedPair

    def noted(prompt: list[int], answer: list[int]) -> TokenizedPair:
        seen.append(prompt)
        return original(prompt, answer)

    monkeypatch.setattr(train, "TokenizedPair", noted)
    out = tmp_path / "out"
    assert run(tiny_llama_dir, data, out, "--max_steps", "1", *asked) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    question = PAIRS[0][0]
    assert (tokenizer(question).input_ids in seen) == (recorded == "raw")
    assert recorded_prompt_format(out / "adapter_model.safetensors") == recorded
    assert f"in the prompt format `{recorded}`" in (out / "README.md").read_text()
    assert seed_version(out, "weights/out", version="1", rank=8).prompt_format == recorded


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
    assert [row["epoch"] for row in rows if "validation_loss" in row] == [0, 1, 2]
    assert any("train_loss" in row for row in rows)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    digest = sha256_of(data / "dermatology.jsonl")
    for part in ("not medical advice", "CC BY 4.0", digest, "--epochs 2", "Commit `"):
        assert part in card
    config = (out / "adapter_config.json").read_text()
    assert str(tmp_path) not in card + config
    assert str(tiny_llama_dir) not in card + config
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert PAIRS[0][1] not in card, "no text of the data"


def test_best_epoch_is_kept_and_training_stops_early(
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = iter([9.0, 3.0, 2.0, 4.0, 5.0, 1.0])  # the base, then each epoch of two steps
    snapshots: list[dict[str, torch.Tensor]] = []

    def loss_of(self: LoraTrainer, examples: Any) -> float:
        snapshots.append(dict(get_peft_model_state_dict(self.model)))
        snapshots[-1] = {name: tensor.clone() for name, tensor in snapshots[-1].items()}
        return next(losses)

    monkeypatch.setattr(LoraTrainer, "loss_of", loss_of)
    run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "9")
    report = report_of(capsys)
    assert (report["best_step"], report["validation_loss"]) == (4, 2.0)
    assert report["stopped"] == "no better validation loss in 2 validations"
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert saved.keys() == snapshots[2].keys()
    assert all(torch.equal(saved[n], snapshots[2][n].to(torch.bfloat16)) for n in saved)


def test_an_adapter_for_several_specialties_starts_another(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [json.dumps(item("What is angina?", "Chest pain."))]
    (data / "cardiology.jsonl").write_text("\n".join(more) + "\n")
    both = ["--specialty", "dermatology", "cardiology"]
    assert run(tiny_llama_dir, data, tmp_path / "joint", "--epochs", "4", *both) == 0
    joint = report_of(capsys)
    assert (joint["num_train"], joint["specialty"]) == (5, "dermatology+cardiology")
    start = ["--init_adapter", str(tmp_path / "joint"), "--epochs", "1"]
    assert run(tiny_llama_dir, data, tmp_path / "own", *start) == 0
    assert report_of(capsys)["validation_loss_at_start"] == pytest.approx(
        joint["validation_loss"], rel=0.01
    ), "its first loss is the joint adapter's, in bfloat16"
    assert run(tiny_llama_dir, data, tmp_path / "own", *start, "--rank", "4") == 2
    assert "size mismatch" in capsys.readouterr().err
    assert run(tiny_llama_dir, data, tmp_path / "own", *start, "--alpha", "16") == 2
    assert "lora_alpha 32, here 16" in capsys.readouterr().err
    elsewhere = ["--base_model_name", "elsewhere"]
    assert run(tiny_llama_dir, data, tmp_path / "own", *start, *elsewhere) == 2
    assert "base_model_name_or_path 'tiny', here 'elsewhere'" in capsys.readouterr().err
    other = ["--target_modules", "o_proj"]
    assert run(tiny_llama_dir, data, tmp_path / "own", *start, *other) == 2
    assert "have no place" in capsys.readouterr().err


def test_gradient_checkpointing_changes_nothing(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    for name, more in (("plain", []), ("checkpointed", ["--gradient_checkpointing"])):
        run(tiny_llama_dir, data, tmp_path / name, "--epochs", "2", "--dropout", "0", *more)
    a, b = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("plain", "checkpointed")
    )
    assert all(torch.allclose(a[n], b[n], atol=1e-2) for n in a)
    assert any(a[n].abs().max() > 0 for n in a if "lora_B" in n)


def test_without_validation_the_last_epoch_is_kept(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "data", [json.dumps(item(q, a)) for q, a in PAIRS])
    assert run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "4") == 0
    report = report_of(capsys)
    assert (report["best_step"], report["validation_loss"]) == (8, None)


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
        (["--quantization", "nf4"], ["--quantization nf4 needs a GPU"]),
        (["--dtype", "float16"], ["--dtype float16 needs a GPU"]),
        (["--init_adapter", "/nowhere"], ["--init_adapter", "no such file"]),
        (["--layers", "0", "7"], ["--layers 7:", "layers 0 to 1"]),
        (["--target_modules", "all-linear", "q_proj"], ["all-linear stands alone"]),
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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learning_rate", "nan", "a number above 0 is expected"),
        ("--clip", "-1", "a number above 0 is expected"),
        ("--dropout", "1.5", "a number from 0 to below 1 is expected"),
        ("--warmup", "5", "a number from 0 to below 1 is expected"),
        ("--weight_decay", "much", "a number is expected"),
    ],
)
def test_numbers_out_of_their_range_are_refused(
    option: str,
    value: str,
    message: str,
    tiny_llama_dir: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(tiny_llama_dir, data, data, option, value)
    assert f"{option}: '{value}': {message}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_llama_dir, data, tmp_path / "out", "--device", "cuda") == 2
    assert "--device cuda: no NVIDIA GPU was found" in capsys.readouterr().err


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


def test_names_that_other_training_scripts_use() -> None:
    words = "--learning_rate 1e-4 --warmup_ratio 0.1 --max_grad_norm 0.5 --fp16 --load_in_8bit"
    words += " --logging_steps 5 --save_steps 7 --gradient_accumulation_steps 3"
    words += " --num_train_epochs 2 --per_device_train_batch_size 6"
    args = train_lora_adapter._parser().parse_args(
        ["--data", "d", "--specialty", "s", "--out", "o", *words.split()]
    )
    assert (args.learning_rate, args.warmup, args.clip) == (1e-4, 0.1, 0.5)
    assert (args.dtype, args.quantization) == ("float16", "int8")
    assert (args.logging_steps, args.eval_steps, args.grad_accum) == (5, 7, 3)
    assert (args.epochs, args.batch_size) == (2, 6)
