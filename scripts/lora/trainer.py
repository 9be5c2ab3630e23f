"""The training loop: transformers' Trainer, with the loss on the answers' tokens alone.

Works on any PEFT model of transformers, causal or T5. Of all validations after the start, the
adapter with the lowest loss is kept. An interrupted run goes on from its last checkpoint, with the
same result as one that was never interrupted. Checkpoints hold the optimiser as PyTorch saves it,
so they are for this machine only; what is published is safetensors (adapter_card.py).

Whether an unfinished run may go on: it must have had the same arguments and data.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerControl

from adapters.base_models import Family
from scripts.lora.batches import IGNORED, Example, SimilarLengths, tensors_of

ARGUMENTS = "arguments.json"


def keep_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Write them beside the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(arguments, indent=2) + "\n"
    (folder / ARGUMENTS).write_text(text, encoding="utf-8")


def check_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Compare with those of the unfinished run in `folder`.

    Raises:
        TrainingError: nothing to go on from, damaged, or the arguments differ (each is named).
    """
    try:
        saved = json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(
            f"--resume: {folder} holds no unfinished run; start without --resume"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"--resume: {folder} cannot be read ({error}); remove it and start without --resume"
        ) from None
    differing = [
        f"{key} was {saved.get(key)!r}, now {arguments.get(key)!r}"
        for key in sorted(saved.keys() | arguments.keys())
        if saved.get(key) != arguments.get(key)
    ]
    if differing:
        raise TrainingError(
            f"--resume: the unfinished run had other arguments: {'; '.join(differing)}; give the "
            "same ones, or start without --resume"
        )


LOG_STEPS = 10
Row = dict[str, float]


class TrainingError(RuntimeError):
    """Training cannot start or go on; the text says what was found and what to do."""


class _NotFinite(Exception):
    """A loss or a weight is NaN or infinite."""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; None without one.

    Trainer writes `trainer_state.json` last, so a kill or a full disk leaves a folder without it.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def what_now(folder: Path) -> str:
    """What to do after a run in `folder` ended early."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "No checkpoint was written yet: mend that and start again"
    return f"Mend that; the same command with --resume goes on from {checkpoint.name}"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    epochs: int
    batch_size: int
    grad_accum: int
    learning_rate: float
    warmup: float  # share of the steps
    weight_decay: float
    clip: float  # largest norm of the gradient
    patience: int  # validations without a better loss before training stops
    max_steps: int | None
    eval_steps: int | None  # steps between validations; None: once an epoch
    optimiser: str  # transformers' name for it
    gradient_checkpointing: bool
    dtype: str
    seed: int
    device: str


@dataclass(frozen=True, slots=True)
class Outcome:
    history: list[Row]  # step, epoch, train_loss | validation_loss; the untrained base first
    num_steps: int
    best_step: int
    stopped: str | None  # why before the last epoch
    train_s: float

    @property
    def validation_losses(self) -> dict[int, float]:
        """By step; step 0 is the untrained base."""
        rows = [row for row in self.history if "validation_loss" in row]
        return {int(row["step"]): row["validation_loss"] for row in rows}


class LoraTrainer(Trainer):
    """Trains the parameters of a PEFT model that require a gradient."""

    def __init__(
        self,
        model: PeftModel,
        family: Family,
        pad_id: int,
        settings: LoopSettings,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        folder: Path,
    ) -> None:
        start_id = getattr(model.config, "decoder_start_token_id", None)
        self.family = family
        self.settings = settings
        per_epoch = math.ceil(len(examples) / (settings.batch_size * settings.grad_accum))
        self.num_planned = min(per_epoch * settings.epochs, settings.max_steps or math.inf)
        super().__init__(
            model=model,
            args=_arguments(settings, folder, self.num_planned, validate=bool(held_out)),
            train_dataset=examples,
            eval_dataset=held_out or None,
            data_collator=lambda batch: tensors_of(batch, family, pad_id, start_id),
            compute_loss_func=self._answer_loss,
            callbacks=[EarlyStoppingCallback(settings.patience)] if held_out else [],
        )
        self.remove_callback(ProgressCallback)
        self.add_callback(_QuietProgress)

    def fit(self, *, resume: bool = False) -> Outcome:
        """Train; the model ends as it was at its best validation, at the end without one.

        Raises:
            TrainingError: nothing to resume, the loss was not finite before the first checkpoint,
                or a checkpoint cannot be written.
        """
        folder = Path(str(self.args.output_dir))
        checkpoint = last_checkpoint(folder) if resume else None
        if resume and checkpoint is None:
            raise TrainingError(
                f"--resume: {folder} holds no unfinished run with a whole checkpoint; start "
                "without --resume"
            )
        if resume:  # the untrained base is in the history already
            self.args.eval_on_start = False
        started = time.perf_counter()
        stopped = None
        try:
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            kept = self.state.best_global_step if self.state.best_model_checkpoint else None
        except _NotFinite as error:
            good = self._last_good(error)
            stopped, kept = f"{error}; {good.name} is kept", _step_of(good)
        train_s = time.perf_counter() - started
        num_steps = self.state.global_step
        if stopped is None and num_steps < self.num_planned:
            stopped = f"no better validation loss in {self.settings.patience} validations"
        history = [row for item in self.state.log_history if (row := _row(item))]
        return Outcome(history, num_steps, num_steps if kept is None else kept, stopped, train_s)

    def _last_good(self, error: _NotFinite) -> Path:
        """Load the best checkpoint, or the last one without validation; its folder."""
        best = self.state.best_model_checkpoint
        folder = Path(best) if best else last_checkpoint(Path(str(self.args.output_dir)))
        if folder is None:
            raise TrainingError(
                f"{error}: lower --learning_rate, or train in float32; nothing was saved"
            ) from None
        set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
        return folder

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, but of finite weights only, and whole or not at all.

        Raises:
            TrainingError: it cannot be written; those before it stay.
        """
        weights = (p for p in self.model.parameters() if p.requires_grad)
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise _NotFinite(f"the weights are not finite at step {self.state.global_step}")
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save: RuntimeError
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {folder}: "
                f"{error}; is the disk full? {what_now(folder)}"
            ) from None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss for each held-out answer token; Trainer's own is a mean of batch means.

        Raises:
            _NotFinite: it is NaN or infinite, so that this step's weights are not kept.
        """
        metrics = {"eval_loss": self.loss_of(self.eval_dataset)}
        if not math.isfinite(metrics["eval_loss"]):
            raise _NotFinite(
                f"the validation loss is not finite ({metrics['eval_loss']}) at step "
                f"{self.state.global_step}"
            )
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @torch.no_grad()
    def loss_of(self, examples: Sequence[Example]) -> float:
        """Mean loss for each answer token of one example or more."""
        self.model.eval()
        ordered = sorted(examples, key=len)
        size = self.settings.batch_size
        total, num_tokens = 0.0, 0
        for start in range(0, len(ordered), size):
            batch = self._prepare_inputs(self.data_collator(ordered[start : start + size]))
            labels = batch.pop("labels")
            with self.compute_loss_context_manager():
                outputs = self.model(**batch)
            total += self._sum_loss(outputs, labels).item()
            num_tokens += int((labels != IGNORED).sum())
        return total / num_tokens

    def _answer_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any
    ) -> torch.Tensor:
        """Summed cross-entropy over the answer tokens of all batches of one optimiser step.

        Raises:
            _NotFinite: it is NaN or infinite; nothing has been updated with it.
        """
        loss: torch.Tensor = self._sum_loss(outputs, labels) / num_items_in_batch
        if not torch.isfinite(loss):
            raise _NotFinite(
                f"the loss is not finite ({loss.item()}) at step {self.state.global_step}"
            )
        return loss

    def _sum_loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = outputs["logits"].float()
        if self.family == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss: torch.Tensor = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
        )
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> SimilarLengths:
        return SimilarLengths(self.train_dataset, self.settings.batch_size, self.settings.seed)


class _QuietProgress(ProgressCallback):
    """Bars on stderr; one line a validation instead of one a logged step."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        if "eval_loss" in logs and state.is_world_process_zero:
            tqdm.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}")


def _arguments(
    settings: LoopSettings, folder: Path, num_steps: float, *, validate: bool
) -> TrainingArguments:
    when = {"strategy": "steps" if settings.eval_steps else "epoch", "steps": settings.eval_steps}
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim=settings.optimiser,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy=when["strategy"] if validate else "no",
        eval_steps=when["steps"],
        eval_on_start=validate,
        save_strategy=when["strategy"],
        save_steps=when["steps"] or 1,
        save_total_limit=2,
        load_best_model_at_end=validate,
        metric_for_best_model="eval_loss" if validate else None,
        greater_is_better=False if validate else None,
        restore_callback_states_from_checkpoint=True,  # how long patience has lasted already
        logging_steps=LOG_STEPS,
        logging_first_step=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
    )


def _row(item: Mapping[str, float]) -> Row | None:
    """One row of the history from one of Trainer's log, None for its closing summary."""
    where = {"step": item["step"], "epoch": round(item.get("epoch", 0.0), 4)}
    if "eval_loss" in item:
        return {**where, "validation_loss": item["eval_loss"]}
    return {**where, "train_loss": item["loss"]} if "loss" in item else None
