"""Train a LoRA adapter for one specialty on a base model, causal or T5.

    python -m scripts.train_lora_adapter --data DATA_FOLDER --specialty dermatology \\
        --out adapters/weights/dermatology

The data folder holds `<specialty>.jsonl` with `input`, `output`, `split` on each line (as
scripts/prepare_medical_dataset.py writes it). Several specialties make one adapter for all of them,
which `--init_adapter` can start others from. The loss is taken on the answer's tokens only, in the
serving prompt format; of all validations after the start, the weights with the lowest loss are kept
(the start's own loss is in the report, and may be lower after --init_adapter). The last line of
stdout is one JSON object.

One GPU is used, the first of CUDA_VISIBLE_DEVICES. Several are, as one run, with

    accelerate launch --num_processes 2 scripts/train_lora_adapter.py --data DATA_FOLDER ...

(or torchrun --nproc_per_node 2, on CPUs too). A step then takes batch_size x grad_accum pairs on
each of them. The first process writes; the validation pairs are shared out.

Exit codes: 0 done, 2 refused or failed (the last checkpoint stays for --resume), 3 the loss stopped
being finite (the best weights before that are saved), 130 interrupted (continue with --resume).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.prompting import PROMPT_FORMATS
from scripts.arguments import CommandParser, above_zero, positive, share
from scripts.lora.checkpoints import CHECKPOINT, last_checkpoint, what_now
from scripts.lora.errors import TrainingError, expected_errors

# The names of transformers' own training scripts -> ours; with a value: it is what they set.
OTHER_NAMES: dict[str, tuple[str, Any]] = {
    "gradient_accumulation_steps": ("grad_accum", positive),
    "warmup_ratio": ("warmup", share),
    "max_grad_norm": ("clip", above_zero),
    "save_steps": ("eval_steps", positive),
    "num_train_epochs": ("epochs", positive),
    "per_device_train_batch_size": ("batch_size", positive),
    "fp16": ("dtype", "float16"),
    "bf16": ("dtype", "bfloat16"),
    "load_in_8bit": ("quantization", "int8"),
    "load_in_4bit": ("quantization", "nf4"),
}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _parser().run(argv, expected_errors, _train, _exit_code)
    except KeyboardInterrupt as interrupt:
        print(f"train_lora_adapter: interrupted; {interrupt}", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    from scripts.lora.train import train

    folder = args.out / CHECKPOINT
    try:
        return train(args, argv)
    except OSError as error:  # a full disk, most of all
        raise TrainingError(f"{error}. {what_now(folder)}") from None
    except KeyboardInterrupt:
        last = last_checkpoint(folder)
        raise KeyboardInterrupt(
            f"the same command with --resume goes on from {last.name}"
            if last
            else "before the first checkpoint: start again without --resume"
        ) from None


def _exit_code(report: Mapping[str, Any]) -> int:
    if "not finite" not in (report["stopped"] or ""):
        return 0
    print(f"train_lora_adapter: {report['stopped']}", file=sys.stderr)
    return 3


def _parser() -> CommandParser:
    parser = CommandParser("train_lora_adapter", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--specialty", required=True, nargs="+", help="one, or several for one adapter")
    add("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_base_model()
    add("--prompt_format", choices=PROMPT_FORMATS, help="default: the base's; raw: no prompt")
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
    add("--target_modules", nargs="+", help="default: the q and v projections; or all-linear")
    add("--layers", nargs="+", type=int, help="layers with an adapter; default: all")
    add("--init_adapter", type=Path, help="start from this adapter's weights")
    add("--max_prompt_tokens", type=positive, default=128, help="a longer prompt is refused")
    add("--max_answer_tokens", type=positive, default=384, help="a longer answer is cut")
    add("--skip_note", action="append", default=[], help="leave out training pairs with this note")
    add("--max_steps", type=positive, help="stop after this many optimiser steps")
    add("--eval_steps", type=positive, help="validate and checkpoint each N steps, not each epoch")
    add("--logging_steps", type=positive, default=10, help="print the training loss each N steps")
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="base's")
    add("--quantization", choices=["none", "int8", "nf4"], default="none", help="of the base")
    add("--gradient_checkpointing", action="store_true", help="less memory, more time")
    optimisers = ["adamw_torch", "adamw_8bit"]
    add("--optimiser", choices=optimisers, default="adamw_torch", help="8 bits need bitsandbytes")
    parser.add_device("to train on")
    trackers = ["none", "tensorboard"]
    add("--report_to", choices=trackers, default="none", help="losses to OUT/tensorboard")
    add("--resume", action="store_true", help="continue an interrupted run of this --out")
    for name, (dest, value) in OTHER_NAMES.items():
        same: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS}
        if callable(value):
            add(f"--{name}", type=value, help=f"same as --{dest}", **same)
        else:
            text = f"same as --{dest} {value}"
            add(f"--{name}", action="store_const", const=value, help=text, **same)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
