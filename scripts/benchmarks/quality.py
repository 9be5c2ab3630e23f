"""Compare the loss of the shipped adapters' answers by how weights, or keys and values, are kept.

    python -m scripts.benchmark quality --data DATA --answers 16 --weights none int8 int4 \\
        --out docs/benchmarks/quality_smollm2_135m.json

For each adapter a seeded sample of its validation pairs, read as prompts by the served decoder:
cross-entropy of each answer's tokens, the first `--answer_tokens` of them. Every kind of weights
reads the same answers. Changes are those of the summed loss from the first kind to another, with
the standard error over answers. No text is kept.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from scripts.arguments import BASE_MODEL, positive
from scripts.benchmarks.command import add_out, conditions, publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl")
    add("--base_model", default=BASE_MODEL, help="folder or name")
    add("--base_model_name", help=argparse.SUPPRESS)
    add("--adapters", nargs="+", help="names in the catalogue; default: all of them")
    add("--answers", type=positive, default=16, help="of each adapter, or as many as there are")
    add("--answer_tokens", type=positive, default=160, help="of an answer, at most")
    kinds = ["none", "int8", "int4"]
    add(
        "--weights",
        nargs="+",
        choices=[*kinds, "kv_int8"],
        default=kinds,
        help="none: as engine.dtype: auto; kv_int8: so too, with keys and values in int8",
    )
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of none")
    add("--without_adapters", action="store_true", help="and the base's loss, to compare with")
    add("--seed", type=int, default=0, help="of the samples")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.in_process.answer_loss import measure

    before = os.getloadavg()
    args.device = "cpu"
    measured = measure(args)
    settings = conditions(args, before)
    settings["settings"]["data"] = args.data.name  # not where it lies on this machine
    shown = [*measured["changes"].items(), ("tokens", measured["tokens"])]
    published = _without_path(arguments, args.data)
    publish("quality", published, {**settings, **measured}, out=args.out, lines=shown)
    return 0


def _without_path(arguments: Sequence[str], data: Path) -> list[str]:
    return ["DATA" if word == str(data) else word for word in arguments]
