"""Compare the fast decoder's bfloat16 logits with transformers' and PEFT's, at real sizes.

    python -m scripts.benchmark tolerance --device cuda --layers 8 --out tolerance.json

Random weights, three answers together, each with a LoRA adapter on all linear layers; both sides
against transformers in float32 on the same tokens (relative distance of the logits). Fails where
our distance is more than `--tolerance` times that of transformers' own bfloat16.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_out, publish, settings_of
from scripts.environment import device_name

TOLERANCE = 1.5  # times transformers' own error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shapes", nargs="+", help="of scripts/benchmarks/bases/shapes.py; default: all")
    add("--layers", type=positive, help="of each model; default: its own number")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--rank", type=positive, default=16, help="of the adapters")
    add("--tolerance", type=above_zero, default=TOLERANCE, help="ours over transformers' error")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.bases.shapes import SHAPES

    found: dict[str, dict[str, Any]] = {}
    about = {"settings": settings_of(args), "device": device_name(args.device)}
    for shape in args.shapes or SHAPES:
        try:
            found[shape] = _errors(args, shape)
        except Exception as error:  # a kernel that does not fit this GPU, say: the others go on
            found[shape] = {
                "highest_ratio": None,
                "failed": f"{type(error).__name__}: {error}"[:300],
            }
        print(shape, found[shape], file=sys.stderr, flush=True)
        publish("tolerance", arguments, {**about, "shapes": found}, out=args.out)
    ratios = [one["highest_ratio"] for one in found.values()]
    return 0 if all(ratio and ratio <= args.tolerance for ratio in ratios) else 1


def _errors(args: argparse.Namespace, shape: str) -> dict[str, Any]:
    import torch

    from scripts.benchmarks.bases.models import load_shape
    from scripts.benchmarks.bases.shapes import config_of, linear_layers
    from scripts.benchmarks.in_process.rounding_errors import rounding_errors

    with tempfile.TemporaryDirectory() as scratch:
        errors = rounding_errors(
            lambda dtype: load_shape(shape, args.device, dtype, args.layers),
            Path(scratch),
            rank=args.rank,
            targets=linear_layers(shape),
        )
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return {
        "layers": args.layers or config_of(shape).num_hidden_layers,
        "ours": [round(one.ours, 4) for one in errors],
        "transformers": [round(one.theirs, 4) for one in errors],
        "between": [round(one.between, 4) for one in errors],
        "to_another_row": [round(one.to_another, 4) for one in errors],
        "highest_ratio": round(max(one.ratio for one in errors), 3),
    }
