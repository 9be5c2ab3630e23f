"""Train a LoRA adapter for one specialty on a base model, causal or T5.

    python -m scripts.train_lora_adapter --data DATA_FOLDER --specialty dermatology \\
        --out adapters/weights/dermatology

The data folder holds `<specialty>.jsonl` with `input`, `output`, `split` on each line (as
scripts/prepare_medical_dataset.py writes it). Several specialties make one adapter for all of them,
which `--init_adapter` can start others from. The loss is taken on the answer's tokens only, in the
serving prompt format; of all validations after the start, the weights with the lowest loss are kept
(the start's own loss is in the report, and may be lower after --init_adapter). On a machine with
several GPUs choose one with CUDA_VISIBLE_DEVICES. The last line of stdout is one JSON object.

Exit codes: 0 done, 2 refused or failed (the last checkpoint stays for --resume), 3 the loss stopped
being finite (the best weights before that are saved), 130 interrupted (go on with --resume).
"""

import argparse
import dataclasses
import json
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from adapters.base_models import BaseModelError, resolve_base_model
from adapters.catalog import BaseModelEntry, CatalogError, load_catalog
from adapters.prompting import encode_example
from scripts.arguments import HelpFormatter, above_zero, positive, share
from scripts.datasets.record import DataError, DataSet, Pair, load_pairs
from scripts.lora.batches import Example
from scripts.lora.card import command_line, write_adapter
from scripts.lora.model import LoraSettings, build, check_init_adapter
from scripts.lora.trainer import (
    LoopSettings,
    LoraTrainer,
    Outcome,
    TrainingError,
    check_arguments,
    keep_arguments,
    last_checkpoint,
    what_now,
)

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
CHECKPOINT = "unfinished"  # folder below --out, removed when the run ends


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = train(args, list(sys.argv[1:] if argv is None else argv))
    except (BaseModelError, CatalogError, DataError, TrainingError) as error:
        print(f"train_lora_adapter: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, most of all
        then = what_now(args.out / CHECKPOINT)
        print(f"train_lora_adapter: {error}. {then}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        last = last_checkpoint(args.out / CHECKPOINT)
        then = (
            f"the same command with --resume goes on from {last.name}"
            if last
            else "before the first checkpoint: start again without --resume"
        )
        print(f"train_lora_adapter: interrupted; {then}", file=sys.stderr)
        return 130
    print(json.dumps(report))
    if "not finite" in (report["stopped"] or ""):
        print(f"train_lora_adapter: {report['stopped']}", file=sys.stderr)
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_lora_adapter",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--specialty", required=True, nargs="+", help="one, or several for one adapter")
    add("--out", type=Path, required=True, help="folder of the adapter")
    add("--base_model", default="smollm2-135m-instruct", help="directory, built-in name or hub id")
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    add("--epochs", type=positive, default=3, help="at most; see --patience")
    add("--batch_size", type=positive, default=2, help="pairs in one forward pass")
    add("--grad_accum", type=positive, default=4, help="batches for each optimiser step")
    add("--learning_rate", type=above_zero, default=5e-4, help="highest, behind the warm-up")
    add("--warmup", type=share, default=0.06, help="share of the steps")
    add("--weight_decay", type=share, default=0.0, help="of AdamW")
    add("--clip", type=above_zero, default=1.0, help="norm of the gradient at most")
    add("--patience", type=positive, default=2, help="validations without a better loss")
    add("--rank", type=positive, default=8, help="of LoRA's A and B")
    add("--alpha", type=positive, default=32, help="the update is scaled by alpha / rank")
    add("--dropout", type=share, default=0.1, help="of the input of A")
    add("--rslora", action="store_true", help="scale alpha / sqrt(rank) instead of alpha / rank")
    add(
        "--target_modules",
        nargs="+",
        help="default: q v for T5, q_proj v_proj for Llama-style; all-linear takes every layer",
    )
    add("--layers", nargs="+", type=int, help="layers with an adapter; default: all")
    add("--init_adapter", type=Path, help="start from this adapter's weights")
    add("--max_prompt_tokens", type=positive, default=128, help="a longer prompt is refused")
    add("--max_answer_tokens", type=positive, default=384, help="a longer answer is cut")
    add("--skip_note", action="append", default=[], help="leave out training pairs with this note")
    add("--max_steps", type=positive, help="stop after this many optimiser steps")
    add("--eval_steps", type=positive, help="validate and checkpoint each N steps, not each epoch")
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="base's")
    add("--quantization", choices=["none", "int8", "nf4"], default="none", help="of the base")
    add("--gradient_checkpointing", action="store_true", help="less memory, more time")
    add(
        "--optimiser",
        choices=["adamw_torch", "adamw_8bit"],
        default="adamw_torch",
        help="8 bits need bitsandbytes and a GPU",
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", "cuda"], default=default_device, help="to train on")
    add("--resume", action="store_true", help="go on with an interrupted run of this --out")
    return parser


def train(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Everything from data to a saved adapter; returns the report.

    Raises:
        BaseModelError, CatalogError, DataError, TrainingError, OSError: nothing was published.
    """
    torch.manual_seed(args.seed)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: no NVIDIA GPU was found; leave it out, or give cpu")
    data = _data(args)
    resolved = resolve_base_model(args.base_model)
    base_name = args.base_model_name or args.base_model
    settings = LoraSettings(**_named(args, LoraSettings))
    check_init_adapter(settings, base_name)
    entry = load_catalog(CATALOG_DIR).base_model(base_name, family=resolved.family)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    examples = [_example(pair, tokenizer, entry, args) for pair in data.train]
    held_out = [_example(pair, tokenizer, entry, args) for pair in data.validation]
    checkpoint = args.out / CHECKPOINT
    _prepare_checkpoint(checkpoint, args, data)
    used_before = _device_used_mib(args.device)
    model = build(
        resolved.path,
        resolved.family,
        settings,
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    loop = LoopSettings(**_named(args, LoopSettings))
    trainer = LoraTrainer(model, resolved.family, pad_id, loop, examples, held_out, checkpoint)
    done = trainer.fit(resume=args.resume)
    report = _report(args, base_name, data, done)
    report |= _memory(args.device, used_before)
    trained, total = model.get_nb_trainable_parameters()
    report |= {"num_trained_parameters": trained, "num_parameters": total}
    report["num_answers_cut"] = sum(tokenizer.eos_token_id != e.answer[-1] for e in examples)
    write_adapter(
        args.out, model, report, done.history, command_line("train_lora_adapter", argv), data
    )
    shutil.rmtree(checkpoint, ignore_errors=True)
    return report


def _named(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The arguments that are fields of the dataclass `settings`."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(settings)}


def _data(args: argparse.Namespace) -> DataSet:
    """The pairs of every named specialty."""
    parts = [
        load_pairs(args.data, name, keep=lambda pair: pair.note not in args.skip_note)
        for name in args.specialty
    ]
    return DataSet(
        train=tuple(pair for part in parts for pair in part.train),
        validation=tuple(pair for part in parts for pair in part.validation),
        files={name: digest for part in parts for name, digest in part.files.items()},
    )


def _prepare_checkpoint(folder: Path, args: argparse.Namespace, data: DataSet) -> None:
    """Compare with the unfinished run on --resume; else start with an empty folder."""
    arguments = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in ("resume", "data", "out")
    } | {"data": data.files}
    if args.resume:
        check_arguments(folder, arguments)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        keep_arguments(folder, arguments)


def _example(
    pair: Pair, tokenizer: Any, entry: BaseModelEntry, args: argparse.Namespace
) -> Example:
    prompt, answer = encode_example(
        entry.prompt_format,
        pair.question,
        pair.answer,
        tokenizer=tokenizer,
        system_line=entry.system_line,
    )
    if len(prompt) > args.max_prompt_tokens:
        raise TrainingError(
            f"pair {pair.id}: its prompt has {len(prompt)} tokens, above --max_prompt_tokens "
            f"{args.max_prompt_tokens}: raise it, or leave the pair out"
        )
    return Example(prompt, answer[: args.max_answer_tokens])


def _report(
    args: argparse.Namespace, base_name: str, data: DataSet, done: Outcome
) -> dict[str, Any]:
    """What goes into the model card and onto the last line of stdout."""
    losses = done.validation_losses
    return {
        "specialty": "+".join(args.specialty),
        "base_model": base_name,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_steps": done.num_steps,
        "best_step": done.best_step,
        "stopped": done.stopped,
        "validation_loss_at_start": _rounded(losses.get(0)),
        "validation_loss": _rounded(losses.get(done.best_step)),
        "train_s": round(done.train_s, 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "dtype": args.dtype,
        "quantization": args.quantization,
        "rank": args.rank,
        "alpha": args.alpha,
        "seed": args.seed,
    }


def _device_used_mib(device: str) -> float:
    """Memory in use on the whole GPU, by every process; 0 on the CPU."""
    if device == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _memory(device: str, used_before: float) -> dict[str, int]:
    """Peak memory in MiB: of the process on the CPU; on a GPU PyTorch's tensors, what PyTorch
    took from the driver, and what the GPU's use rose by since before the model was loaded (that
    last one counts other processes' changes too)."""
    if device == "cpu":  # kibibytes on Linux
        return {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10}
    return {
        "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "peak_reserved_mib": round(torch.cuda.max_memory_reserved() / 2**20),
        "device_rise_mib": round(_device_used_mib(device) - used_before),
    }


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


if __name__ == "__main__":
    raise SystemExit(main())
