"""Train one adapter: from the data folder to the published files."""

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from scripts.datasets.pairs import DataSet, load_pairs
from scripts.datasets.record import Record
from scripts.environment import command_line, device_name
from scripts.lora.batches import TokenizedPair
from scripts.lora.card import write_adapter
from scripts.lora.checkpoints import CHECKPOINT, check_arguments, keep_arguments
from scripts.lora.chosen_base import ChosenBase, chosen_base
from scripts.lora.device import check_device, peak_memory, used_mib
from scripts.lora.errors import TrainingError
from scripts.lora.gate import GATE
from scripts.lora.model import LoraSettings, build, check_init_adapter
from scripts.lora.trainer import LoraTrainer, TrainingResult
from scripts.lora.training_arguments import LoopSettings

FEW_PAIRS = 100


def train(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Train from data to a saved adapter; return the report.

    Raises:
        BaseModelError, CatalogError, DataError, LoraError, OSError: nothing was published.
    """
    torch.manual_seed(args.seed)
    if args.quantization == "none" and args.optimiser != "adamw_8bit":
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # 2 s, and messages
    args.device = check_device(args.device)
    run = join_run(args.device)
    data = _data(args)
    if run.is_main_process:
        _warn_of_little_data(data)
    base = chosen_base(args).prompted(args.prompt_format)
    lora = LoraSettings(**named(args, LoraSettings))
    check_init_adapter(lora, base.name)
    examples = [_example(pair, base, args) for pair in data.train]
    held_out = [_example(pair, base, args) for pair in data.validation]
    checkpoint = args.out / CHECKPOINT
    _prepare_checkpoint(checkpoint, args, data, run)
    used_before = used_mib(args.device)
    model = build(
        base.path,
        base.family,
        lora,
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    loop = LoopSettings(**named(args, LoopSettings), num_processes=run.num_processes)
    trainer = LoraTrainer(model, base.family, base.pad_id, loop, examples, held_out, checkpoint)
    done = trainer.fit(resume=args.resume)
    report = _report(args, base, data, done) | peak_memory(args.device, used_before)
    report["num_processes"] = run.num_processes
    trained, total = model.get_nb_trainable_parameters()
    report |= {"num_trained_parameters": trained, "num_parameters": total}
    end = base.tokenizer.eos_token_id
    report["num_answers_cut"] = sum(example.answer[-1] != end for example in examples)
    run.wait_for_everyone()  # for the best weights, read from the checkpoints
    if run.is_main_process:
        command = command_line("train_lora_adapter", argv)
        write_adapter(args.out, model, report, done.history, command, data)
        shutil.rmtree(checkpoint, ignore_errors=True)
    if run.num_processes > 1:
        run.destroy_process_group()
    return report


def join_run(device: str) -> PartialState:
    """Return this process among those of its run, one for each GPU.

    `accelerate launch` and `torchrun` start them; alone if nobody launched others.

    Raises:
        TrainingError: more processes than GPUs.
    """
    local, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device == "cuda":
        if local >= num_gpus:
            raise TrainingError(
                f"process {local + 1} of this machine has no GPU: there are {num_gpus}; launch "
                f"with --num_processes {num_gpus}"
            )
        torch.cuda.set_device(local)  # the GPU that "cuda" means from here on
    return PartialState(cpu=device == "cpu")


def named(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """Return the arguments that are fields of the dataclass `settings`."""
    fields = (field.name for field in dataclasses.fields(settings))
    return {name: getattr(args, name) for name in fields if hasattr(args, name)}


def _data(args: argparse.Namespace) -> DataSet:
    """Return the pairs of every named specialty."""
    parts = [
        load_pairs(args.data, name, keep=lambda pair: pair.note not in args.skip_note)
        for name in args.specialty
    ]
    return DataSet(
        train=tuple(pair for part in parts for pair in part.train),
        validation=tuple(pair for part in parts for pair in part.validation),
        files={name: digest for part in parts for name, digest in part.files.items()},
    )


def _warn_of_little_data(data: DataSet) -> None:
    """Say on stderr what so few pairs cannot do."""
    num_train, num_held_out = len(data.train), len(data.validation)
    if num_train < FEW_PAIRS:
        print(
            f"train_lora_adapter: {num_train} training pairs: fewer than {FEW_PAIRS} teach little "
            "more than their own wording",
            file=sys.stderr,
        )
    if num_held_out < GATE:
        print(
            f"train_lora_adapter: {num_held_out} validation pairs: scripts.promote_adapter asks "
            f"for {GATE} before the adapter may serve"
            + ("" if num_held_out else "; without any, the last epoch's weights are kept"),
            file=sys.stderr,
        )


def _prepare_checkpoint(
    folder: Path, args: argparse.Namespace, data: DataSet, run: PartialState
) -> None:
    """Compare with the unfinished run on --resume; else start with an empty folder."""
    arguments = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in ("resume", "data", "out", "report_to")
    } | {"data": data.files}
    if run.num_processes > 1:
        arguments["num_processes"] = run.num_processes
    if args.resume:
        check_arguments(folder, arguments)
    elif run.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        keep_arguments(folder, arguments)
    run.wait_for_everyone()


def _example(pair: Record, base: ChosenBase, args: argparse.Namespace) -> TokenizedPair:
    example = base.pair(pair.question, pair.answer)
    if len(example.prompt) > args.max_prompt_tokens:
        raise TrainingError(
            f"pair {pair.id}: its prompt has {len(example.prompt)} tokens, above "
            f"--max_prompt_tokens {args.max_prompt_tokens}: raise it, or leave the pair out"
        )
    return TokenizedPair(example.prompt, example.answer[: args.max_answer_tokens])


def _report(
    args: argparse.Namespace, base: ChosenBase, data: DataSet, done: TrainingResult
) -> dict[str, Any]:
    """Return what goes into the model card and onto the last line of stdout."""
    losses = done.validation_losses
    return {
        "specialty": "+".join(args.specialty),
        "base_model": base.name,
        "prompt_format": base.entry.prompt_format,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_steps": done.num_steps,
        "best_step": done.best_step,
        "stopped": done.stopped,
        "validation_loss_at_start": _rounded(losses.get(0)),
        "validation_loss": _rounded(losses.get(done.best_step)),
        "train_s": round(done.train_s, 1),
        "device": device_name(args.device),
        "dtype": args.dtype,
        "quantization": args.quantization,
        "rank": args.rank,
        "alpha": args.alpha,
        "seed": args.seed,
    }


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)
