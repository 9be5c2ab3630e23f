"""What a training run is asked for, and its translation for transformers' Trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from scripts.lora.errors import TrainingError


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's part of the command's arguments."""

    epochs: int
    batch_size: int
    grad_accum: int  # batches for each optimiser step
    learning_rate: float  # the highest, behind the warm-up
    warmup: float  # share of the optimiser steps
    weight_decay: float
    clip: float  # largest norm of the gradient
    patience: int  # validations without a better loss before training stops
    max_steps: int | None
    eval_steps: int | None  # steps between validations; None: once an epoch
    logging_steps: int  # steps between logged training losses
    optimiser: str  # transformers' name of it
    gradient_checkpointing: bool
    dtype: str
    seed: int
    device: str
    report_to: str = "none"
    num_processes: int = 1


def trainer_arguments(
    settings: LoopSettings, folder: Path, num_steps: float, *, validate: bool
) -> TrainingArguments:
    """Return Trainer's arguments for a run of `num_steps` optimiser steps in `folder`."""
    strategy = "steps" if settings.eval_steps else "epoch"
    arguments = TrainingArguments(
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
        eval_strategy=strategy if validate else "no",
        eval_steps=settings.eval_steps,
        eval_on_start=validate,
        save_strategy=strategy,
        save_steps=settings.eval_steps or 1,
        save_total_limit=2,
        load_best_model_at_end=validate,
        metric_for_best_model="eval_loss" if validate else None,
        greater_is_better=False if validate else None,
        restore_callback_states_from_checkpoint=True,  # how long patience has lasted already
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        ddp_find_unused_parameters=False,
        **_checkpointing(settings),
    )
    if arguments.n_gpu > 1:  # Trainer would split each batch over them, with one thread for each
        arguments._n_gpu = 1
    return arguments


def _checkpointing(settings: LoopSettings) -> dict[str, Any]:
    """Return nothing without it: newer versions of transformers warn of the arguments' names."""
    if not settings.gradient_checkpointing:
        return {}
    options = {"use_reentrant": False}
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}


def tensorboard(folder: Path) -> TrainerCallback:
    """Return transformers' callback that writes losses for TensorBoard into `folder`, or into
    that of its own variable TENSORBOARD_LOGGING_DIR.

    Raises:
        TrainingError: the package is missing.
    """
    if not is_tensorboard_available():
        raise TrainingError(
            "--report_to tensorboard: the package tensorboard is not installed: "
            "pip install tensorboard, or leave it out (the losses are in history.jsonl too)"
        )
    callback = TensorBoardCallback()
    callback.logging_dir = callback.logging_dir or str(folder)
    return callback
