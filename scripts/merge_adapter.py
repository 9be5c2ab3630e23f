"""Writes a base model with one adapter, or a weighted sum of several, merged into its weights.

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
ranks; `linear` mixes A and B on their own, so cross terms come in; `svd`, `ties` and `dare_linear`
approximate at the first adapter's rank. The last line of stdout is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from adapters.base_models import BaseModelError, ResolvedBaseModel, resolve_base_model
from adapters.catalog import CatalogError, load_catalog
from adapters.prompting import Message, encode_prompt
from scripts.arguments import HelpFormatter, positive
from scripts.lora.adapter_on_base import AdapterError, check_base, with_adapter
from scripts.lora.card import command_line, commit
from scripts.lora.merge import (
    MergeError,
    Probe,
    check_finite,
    check_parity,
    num_bytes,
    read_back,
    write_adapter_folder,
    write_model_folder,
)

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
COMBINATIONS = ("cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties")
PRUNING = ("ties", "ties_svd", "dare_linear", "dare_ties")
PROMPTS = (
    "What are the symptoms of eczema?",
    "How is high blood pressure treated?",
    "What causes migraine?",
    "Is asthma inherited?",
)
MERGED = "merged"  # name of the weighted sum within PEFT


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    try:
        report = merge(args, given)
    except (
        *(AdapterError, BaseModelError, CatalogError, MergeError),
        *(OSError, SafetensorError),
    ) as error:
        print(f"merge_adapter: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.merge_adapter",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--adapter", type=Path, nargs="+", required=True, help="folder of each adapter")
    add("--weights", type=float, nargs="+", help="one for each adapter; needed for several")
    add("--combination", choices=COMBINATIONS, default="cat", help="how several are summed")
    add("--density", type=float, help="share of the values kept by ties and dare, 0 to 1")
    add("--out", type=Path, required=True, help="folder to write")
    add("--overwrite", action="store_true", help="replace --out when it is there")
    add("--save_adapter_only", action="store_true", help="write the sum as an adapter")
    add(
        "--base_model",
        default="smollm2-135m-instruct",
        help="directory, built-in name or hub id",
    )
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    dtypes = ["float32", "bfloat16", "float16"]
    add("--dtype", choices=dtypes, default="float32", help="of the merged weights")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", "cuda"], default=default_device, help="to merge on")
    add("--prompt", action="append", help="question to compare on; repeatable; default: four")
    add("--max_new_tokens", type=positive, default=32, help="of an answer that is compared")
    add("--repeats", type=positive, default=3, help="of the speed measurement; its median is told")
    add("--seed", type=int, default=0, help="of dare's random pruning")
    return parser


def merge(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Merge, check, write; returns the report.

    Raises:
        AdapterError, BaseModelError, CatalogError, MergeError: an input does not fit, or a check
            failed.
        OSError, SafetensorError: it could not be written. In every case `--out` is as before.
    """
    _check_arguments(args)
    base = resolve_base_model(args.base_model)
    base_name = args.base_model_name or args.base_model
    for folder in args.adapter:
        check_base(folder, base_name)
    _check_unquantised(base.path)
    model, tokenizer = _loaded(base, args)
    probe = _probe(args, base, base_name, tokenizer)
    report: dict[str, Any] = {
        "adapters": [folder.resolve().name for folder in args.adapter],
        "weights": args.weights,
        "combination": args.combination if args.weights else None,
        "base_model": base_name,
        "dtype": args.dtype,
        "device": args.device,
        "commit": commit(),
        "command": command_line("merge_adapter", argv),
    }
    before = probe.run(model, args.repeats)
    report |= {"bytes_before": num_bytes(model), "tokens_per_s_before": before.tokens_per_s}
    if args.save_adapter_only:
        write_adapter_folder(args.out, model, MERGED, base_name, args.overwrite)
        return report | {"out": args.out.name, "kind": "adapter"}
    merged = model.merge_and_unload(adapter_names=[model.active_adapter])
    check_finite(merged)
    after = probe.run(merged, args.repeats)
    report |= check_parity(before, after, args.dtype)
    report |= {"bytes_after": num_bytes(merged), "tokens_per_s_after": after.tokens_per_s}
    with write_model_folder(args.out, merged, tokenizer, report, args.overwrite) as folder:
        report["read_back"] = read_back(folder, merged, probe, args.dtype, args.device)
    return report | {"out": args.out.name, "kind": "model"}


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
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MergeError("--device cuda: no NVIDIA GPU was found; leave it out, or give cpu")
    if args.out.exists() and not args.overwrite:
        raise MergeError(f"--out {args.out} is there already: give another, or --overwrite")


def _check_unquantised(path: Path) -> None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise MergeError(
            f"--base_model {path}: it is quantised, and merging would round the adapter's small "
            "update to its coarse grid: give the unquantised model, which the adapter fits as well"
        )


def _loaded(base: ResolvedBaseModel, args: argparse.Namespace) -> tuple[PeftModel, Any]:
    """(base with the adapter to merge as its active one, tokenizer)."""
    from transformers import AutoTokenizer

    from scripts.lora.merge import load_base

    names = [f"adapter_{i}" for i in range(len(args.adapter))]
    model: Any = load_base(base.path, base.family, args.dtype)
    for name, folder in zip(names, args.adapter, strict=True):
        model = with_adapter(model, folder, name)
    if args.weights is not None:
        torch.manual_seed(args.seed)
        options = {} if args.density is None else {"density": args.density}
        try:
            model.add_weighted_adapter(
                names, args.weights, MERGED, combination_type=args.combination, **options
            )
        except ValueError as error:
            raise MergeError(f"--combination {args.combination}: {error}") from None
        model.set_adapter(MERGED)
    return model.to(args.device).eval(), AutoTokenizer.from_pretrained(base.path)


def _probe(
    args: argparse.Namespace, base: ResolvedBaseModel, base_name: str, tokenizer: Any
) -> Probe:
    entry = load_catalog(CATALOG_DIR).base_model(base_name, family=base.family)
    prompts = [
        encode_prompt(
            entry.prompt_format,
            [Message("user", question)],
            tokenizer=tokenizer,
            system_line=entry.system_line,
        )
        for question in args.prompt or PROMPTS
    ]
    return Probe(prompts, base.family, args.max_new_tokens, args.device)


if __name__ == "__main__":
    raise SystemExit(main())
