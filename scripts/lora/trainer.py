"""The training loop: transformers' Trainer, with the loss on the answers' tokens alone.

Works on any PEFT model of transformers, causal or T5. Of all validations after the start, the
adapter with the lowest loss is kept. An interrupted run resumes from its last checkpoint, with the
same result as one that was never interrupted.
"""

import math
import shutil
import sys
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
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_callback import ProgressCallback, TrainerControl

from adapters.bases.models import Family
from adapters.validation import WEIGHTS_FILE
from scripts.lora.batches import IGNORED, SimilarLengths, TokenizedPair, answer_losses, tensors_of
from scripts.lora.checkpoints import last_checkpoint, step_of, what_now
from scripts.lora.errors import TrainingError
from scripts.lora.training_arguments import LoopSettings, tensorboard, trainer_arguments

HistoryRow = dict[str, float]


class _NotFinite(Exception):
    """A loss or a weight is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run did."""

    history: list[HistoryRow]  # losses, nats for each answer token; the untrained base comes first
    num_steps: int
    best_step: int
    stopped: str | None  # why it ended before the last epoch; None when it did not
    train_s: float

    @property
    def validation_losses(self) -> dict[int, float]:
        """Return step -> loss; step 0 is the untrained base."""
        rows = [row for row in self.history if "validation_loss" in row]
        return {int(row["step"]): row["validation_loss"] for row in rows}


class LoraTrainer(Trainer):
    """Train the parameters of a PEFT model that require a gradient."""

    def __init__(
        self,
        model: PeftModel,
        family: Family,
        pad_id: int,
        settings: LoopSettings,
        examples: Sequence[TokenizedPair],
        held_out: Sequence[TokenizedPair],
        folder: Path,
    ) -> None:
        start_id = getattr(model.config, "decoder_start_token_id", None)
        self.family = family
        self.settings = settings
        for_each_step = settings.batch_size * settings.grad_accum * settings.num_processes
        per_epoch = math.ceil(len(examples) / for_each_step)
        self.num_planned = min(per_epoch * settings.epochs, settings.max_steps or math.inf)
        super().__init__(
            model=model,
            args=trainer_arguments(settings, folder, self.num_planned, validate=bool(held_out)),
            train_dataset=examples,
            eval_dataset=held_out or None,
            data_collator=lambda batch: tensors_of(batch, family, pad_id, start_id),
            compute_loss_func=self._answer_loss,
            callbacks=[EarlyStoppingCallback(settings.patience)] if held_out else [],
        )
        self.remove_callback(ProgressCallback)
        self.add_callback(_Progress)
        if settings.report_to == "tensorboard":
            self.add_callback(tensorboard(folder.parent / "tensorboard"))

    def fit(self, *, resume: bool = False) -> TrainingResult:
        """Train; leave the model as it was at its best validation, or at the end without one.

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
            stopped, kept = f"{error}; {good.name} is kept", step_of(good)
        train_s = time.perf_counter() - started
        num_steps = self.state.global_step
        if stopped is None and num_steps < self.num_planned:
            stopped = f"no better validation loss in {self.settings.patience} validations"
        history = [row for item in self.state.log_history if (row := _row(item))]
        return TrainingResult(
            history, num_steps, num_steps if kept is None else kept, stopped, train_s
        )

    def _last_good(self, error: _NotFinite) -> Path:
        """Load the best checkpoint, or the last one without validation; return its folder."""
        best = self.state.best_model_checkpoint
        folder = Path(best) if best else last_checkpoint(Path(str(self.args.output_dir)))
        if folder is None:
            raise TrainingError(
                f"{error}: lower --learning_rate, or train in float32; nothing was saved"
            ) from None
        set_peft_model_state_dict(self.model, load_file(folder / WEIGHTS_FILE))
        return folder

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save what Trainer saves, but finite weights only, and whole or not at all.

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
        """Return the mean loss for each held-out answer token; Trainer's is a mean of batch means.

        Raises:
            _NotFinite: it is NaN or infinite; this step's weights are not kept.
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
    def loss_of(self, examples: Sequence[TokenizedPair]) -> float:
        """Return the mean loss for each answer token of one example or more, nats.

        Each process of a run takes its share of the batches.
        """
        self.model.eval()
        ordered = sorted(examples, key=len)
        size = self.settings.batch_size
        total, num_tokens = 0.0, 0
        first, stride = self.accelerator.process_index, self.accelerator.num_processes
        for start in range(first * size, len(ordered), stride * size):
            batch = self._prepare_inputs(self.data_collator(ordered[start : start + size]))
            labels = batch.pop("labels")
            with self.compute_loss_context_manager():
                outputs = self.model(**batch)
            total += answer_losses(outputs, labels, self.family).sum().item()
            num_tokens += int((labels != IGNORED).sum())
        if stride > 1:
            sums = torch.tensor([total, num_tokens], dtype=torch.float64, device=self.args.device)
            total, num_tokens = self.accelerator.reduce(sums).tolist()
        return total / num_tokens

    def _answer_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any
    ) -> torch.Tensor:
        """Return this batch's summed cross-entropy over the answer tokens of the whole step.

        Raises:
            _NotFinite: it is NaN or infinite; nothing has been updated with it.
        """
        losses = answer_losses(outputs, labels, self.family)
        loss: torch.Tensor = losses.sum() / num_items_in_batch
        is_finite = torch.isfinite(loss)
        if self.accelerator.num_processes > 1:  # all stop, or none: the others would wait for ever
            is_finite = self.accelerator.gather(is_finite.reshape(1)).all()
        if not is_finite:
            raise _NotFinite(
                f"the loss is not finite ({loss.item()}) at step {self.state.global_step}"
            )
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> SimilarLengths:
        return SimilarLengths(self.train_dataset, self.settings.batch_size, self.settings.seed)


class _Progress(ProgressCallback):
    """Bars on stderr, and one line for each logged loss."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        names = {"loss": "training", "eval_loss": "validation"}
        for key in names.keys() & logs.keys() if state.is_world_process_zero else ():
            tqdm.write(
                f"step {state.global_step}: {names[key]} loss {logs[key]:.4f}", file=sys.stderr
            )


def _row(item: Mapping[str, float]) -> HistoryRow | None:
    """Return one row of the history; None for the closing summary of Trainer's log."""
    where = {"step": item["step"], "epoch": round(item.get("epoch", 0.0), 4)}
    if "eval_loss" in item:
        return {**where, "validation_loss": item["eval_loss"]}
    return {**where, "train_loss": item["loss"]} if "loss" in item else None
