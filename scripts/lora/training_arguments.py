"""What a training run is asked for, and its translation for transformers' Trainer."""

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's part of the command's arguments.

    Attributes:
        grad_accum: batches for each optimiser step.
        learning_rate: the highest, behind the warm-up.
        warmup: share of the optimiser steps.
        clip: largest norm of the gradient.
        patience: validations without a better loss before training stops.
        eval_steps: optimiser steps between validations; None validates once an epoch.
        logging_steps: optimiser steps between logged training losses.
        optimiser: transformers' name of it.
        dtype: of the base model, torch's name.
    """

    epochs: int
    batch_size: int
    grad_accum: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    patience: int
    max_steps: int | None
    eval_steps: int | None
    logging_steps: int
    optimiser: str
    gradient_checkpointing: bool
    dtype: str
    seed: int
    device: str


def trainer_arguments(
    settings: LoopSettings, folder: Path, num_steps: float, *, validate: bool
) -> TrainingArguments:
    """Return Trainer's arguments for a run of `num_steps` optimiser steps in `folder`."""
    strategy = "steps" if settings.eval_steps else "epoch"
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
    )
