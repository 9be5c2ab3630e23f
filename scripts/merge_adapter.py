"""Write a base model with one adapter, or a weighted sum of several, merged into its weights.

    python -m scripts.merge_adapter --adapter runs/adapters/dermatology --out runs/merged
    python -m scripts.merge_adapter --adapter runs/adapters/dermatology runs/adapters/oncology \\
        --weights 0.6 0.4 --out runs/merged

The result is a transformers folder that `base_model` in serve_config.yaml takes. Before it is
written, every tensor must be finite, and on a few prompts the merged model's logits must be those
of base plus adapter (relative error at most 1e-4 in float32, 0.01 in float16 and 0.06 in bfloat16,
where merging rounds each weight to 8 bits of mantissa); in float32 the greedy answers must be the
same tokens. Then the folder is read back. --save_adapter_only writes a weighted sum as a new
adapter instead. An adapter that was trained on an int8 or nf4 base merges into the unquantised one;
a quantised base is refused, since merging would round the update away.

--combination is PEFT's add_weighted_adapter. `cat` is the exact weighted sum, at the sum of the
ranks; `linear` sums A and B separately, which adds cross terms; `svd`, `ties` and `dare_linear`
approximate at the first adapter's rank. The last line of stdout is one JSON object.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.arguments import CommandParser, positive
from scripts.lora.errors import MergeError, expected_errors

COMBINATIONS = ("cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties")
PRUNING = ("ties", "ties_svd", "dare_linear", "dare_ties")


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, expected_errors, _merge)


def _merge(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    _check_arguments(args)
    from scripts.lora.merge import merge

    return merge(args, argv)


def _parser() -> CommandParser:
    parser = CommandParser("merge_adapter", __doc__)
    add = parser.add_argument
    add("--adapter", type=Path, nargs="+", required=True, help="folder of each adapter")
    add("--weights", type=float, nargs="+", help="one for each adapter; needed for several")
    add("--combination", choices=COMBINATIONS, default="cat", help="how several are summed")
    add("--density", type=float, help="share of the values kept by ties and dare, 0 to 1")
    add("--out", type=Path, required=True, help="folder to write")
    add("--overwrite", action="store_true", help="replace --out when it is there")
    add("--save_adapter_only", action="store_true", help="write the sum as an adapter")
    parser.add_base_model()
    dtypes = ["float32", "bfloat16", "float16"]
    add("--dtype", choices=dtypes, default="float32", help="of the merged weights")
    parser.add_device("to merge on")
    add("--prompt", action="append", help="question to compare on; repeatable; default: four")
    add("--max_new_tokens", type=positive, default=32, help="of an answer that is compared")
    add("--repeats", type=positive, default=3, help="of the speed measurement; its median is told")
    add("--seed", type=int, default=0, help="of dare's random pruning")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    num = len(args.adapter)
    if args.weights is None and num > 1:
        raise MergeError(f"{num} adapters and no --weights: give one weight for each")
    if args.weights is not None and len(args.weights) != num:
        raise MergeError(f"{len(args.weights)} --weights for {num} adapters: give one for each")
    if args.save_adapter_only and args.weights is None:
        raise MergeError("--save_adapter_only writes a weighted sum: give --weights")
    if args.density is not None and args.combination not in PRUNING:
        raise MergeError(f"--density is for {', '.join(PRUNING)}; not for {args.combination}")
    if args.density is None and args.combination in PRUNING and args.weights is not None:
        raise MergeError(f"--combination {args.combination} needs --density, for example 0.5")
    if args.density is not None and not 0 < args.density <= 1:
        raise MergeError(f"--density {args.density}: it is a share above 0 and at most 1")
    if args.out.exists() and not args.overwrite:
        raise MergeError(f"--out {args.out} is there already: give another, or --overwrite")


if __name__ == "__main__":
    raise SystemExit(main())
