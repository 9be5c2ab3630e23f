"""The loss: of the answers' tokens, in batches of similar lengths; and where it is told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.integrations import TensorBoardCallback

from adapters.prompting import encode_example
from scripts import train_lora_adapter
from scripts.lora import training_arguments
from scripts.lora.batches import SimilarLengths, TokenizedPair
from scripts.lora.model import LoraSettings, build
from scripts.lora.train import named
from scripts.lora.trainer import LoraTrainer
from scripts.lora.training_arguments import LoopSettings
from tests.scripts.test_train_lora_adapter import PAIRS, arguments, data, run

__all__ = ["data"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_of(
    base: Path, family: Any, out: Path, *more: str
) -> tuple[LoraTrainer, list[TokenizedPair]]:
    """A trainer on the four pairs, without the command around it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    style: Any = "chat" if family == "causal" else "plain"
    examples = [
        TokenizedPair(*encode_example(style, *p, tokenizer=tokenizer, system_line=""))
        for p in PAIRS
    ]
    args = train_lora_adapter._parser().parse_args(arguments(base, Path(), out, *more))
    model = build(
        base,
        family,
        LoraSettings(**named(args, LoraSettings)),
        dtype=args.dtype,
        quantization=args.quantization,
        device="cpu",
        gradient_checkpointing=args.gradient_checkpointing,
    )
    settings = LoopSettings(**named(args, LoopSettings))
    pad_id = tokenizer.pad_token_id
    return LoraTrainer(model, family, pad_id, settings, examples, examples, out), examples


def loss_by_hand(trainer: LoraTrainer, examples: Sequence[TokenizedPair], family: str) -> float:
    """Each example alone, so without padding; mean over the answers' tokens."""
    model, total = trainer.model.eval(), 0.0
    for example in examples:
        if family == "causal":
            ids = torch.tensor([example.prompt + example.answer])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        else:
            before = [model.config.decoder_start_token_id, *example.answer[:-1]]
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([example.prompt]),
                    decoder_input_ids=torch.tensor([before]),
                ).logits[0]
        picked = logits.log_softmax(-1)
        total -= sum(picked[i, id_].item() for i, id_ in enumerate(example.answer))
    return total / sum(len(example.answer) for example in examples)


@pytest.mark.parametrize(
    ("family", "folder"), [("causal", "tiny_llama_dir"), ("seq2seq", "tiny_flan_t5_dir")]
)
def test_loss_is_on_the_answer_only(
    family: str, folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With padding beside a longer example, it equals the loss of each example alone."""
    base = request.getfixturevalue(folder)
    trainer, examples = trainer_of(base, family, tmp_path, "--batch_size", "4")
    by_hand = loss_by_hand(trainer, examples, family)
    assert trainer.loss_of(examples) == pytest.approx(by_hand, rel=1e-4)


def test_first_training_loss_counts_every_answer_token_once(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """Two batches of one optimiser step, without dropout: the untrained loss of all four."""
    more = ["--batch_size", "2", "--grad_accum", "2", "--dropout", "0", "--epochs", "1"]
    trainer, examples = trainer_of(tiny_llama_dir, "causal", tmp_path, *more)
    by_hand = loss_by_hand(trainer, examples, "causal")
    history = trainer.fit().history
    assert history[0]["validation_loss"] == pytest.approx(by_hand, rel=1e-4)
    first = next(row["train_loss"] for row in history if "train_loss" in row)
    assert first == pytest.approx(by_hand, rel=1e-3)  # Trainer logs five digits


def test_batches_hold_similar_lengths_and_each_example_once() -> None:
    lengths = [3, 50, 4, 52, 5, 51, 49, 6]
    examples = [TokenizedPair([1], [1] * (n - 1)) for n in lengths]
    sampler = SimilarLengths(examples, 2, 0)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(8))
        pairs = [orders[-1][i : i + 2] for i in range(0, 8, 2)]
        assert all(abs(lengths[a] - lengths[b]) < 5 for a, b in pairs)
    assert len({tuple(order) for order in orders}) > 1
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]


def test_losses_are_on_screen_and_little_data_is_said(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--epochs", "1", "--batch_size", "2", "--logging_steps", "1")
    assert run(tiny_llama_dir, data, tmp_path / "out", *more) == 0
    told = capsys.readouterr().err
    assert "step 1: training loss " in told
    assert "step 2: training loss " in told
    assert "step 2: validation loss " in told
    assert "4 training pairs: fewer than 100" in told
    assert "4 validation pairs: scripts.promote_adapter asks for 30" in told


def test_losses_for_tensorboard(
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through transformers' own callback; its writer is replaced, as the package may be missing."""
    written: dict[str, list[float]] = {}
    folders = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            folders.append(log_dir)

        def add_text(self, *_: Any) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.setdefault(name, []).append(value)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    out, words = tmp_path / "out", ("--epochs", "2", "--logging_steps", "1")
    monkeypatch.setattr(training_arguments, "is_tensorboard_available", lambda: False)
    assert run(tiny_llama_dir, data, out, *words, "--report_to", "tensorboard") == 2
    assert "the package tensorboard is not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr(training_arguments, "is_tensorboard_available", lambda: True)

    class Callback(TensorBoardCallback):
        def __init__(self) -> None:
            self._SummaryWriter = Writer
            self.tb_writer = self.logging_dir = None

    monkeypatch.setattr(training_arguments, "TensorBoardCallback", Callback)
    assert run(tiny_llama_dir, data, out, *words, "--report_to", "tensorboard") == 0
    assert folders == [str(out / "tensorboard")]
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in history if "validation_loss" in row]
    assert written["eval/loss"] == losses
    assert written["train/loss"] == [row["train_loss"] for row in history if "train_loss" in row]
