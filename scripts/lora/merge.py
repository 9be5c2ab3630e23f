"""Merge adapters into their base model, check the result, and write it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from scripts.environment import command_line, commit
from scripts.lora.base_model import load_base
from scripts.lora.chosen_base import ChosenBase, chosen_base
from scripts.lora.device import check_device
from scripts.lora.errors import MergeError
from scripts.lora.merged_folder import num_bytes, write_adapter_folder, write_model_folder
from scripts.lora.parity import Probe, check_finite, check_parity, read_back
from scripts.lora.saved_adapter import check_base, prompt_format_of, with_adapter

PROMPTS = (
    "What are the symptoms of eczema?",
    "How is high blood pressure treated?",
    "What causes migraine?",
    "Is asthma inherited?",
)
MERGED = "merged"  # name of the weighted sum within PEFT


def merge(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Merge, check, write; return the report. `args` are those of scripts.merge_adapter.

    Raises:
        LoraError, BaseModelError, CatalogError: an input does not fit, or a check failed.
        OSError, SafetensorError: it could not be written. In every case `--out` is as before.
    """
    device = check_device(args.device)
    base = chosen_base(args)
    for folder in args.adapter:
        check_base(folder, base.name)
    prompt_format = prompt_format_of(args.adapter)
    base = base.prompted(prompt_format)
    _check_unquantised(base.path)
    model = _loaded(base, args).to(device).eval()
    prompts = [base.prompt(question) for question in args.prompt or PROMPTS]
    probe = Probe(prompts, base.family, args.max_new_tokens, device)
    report: dict[str, Any] = {
        "adapters": [folder.resolve().name for folder in args.adapter],
        "weights": args.weights,
        "combination": args.combination if args.weights else None,
        "base_model": base.name,
        "prompt_format": base.entry.prompt_format,
        "dtype": args.dtype,
        "device": device,
        "commit": commit(),
        "command": command_line("merge_adapter", argv),
    }
    before = probe.run(model, args.repeats)
    report |= {"bytes_before": num_bytes(model), "tokens_per_s_before": before.tokens_per_s}
    if args.save_adapter_only:
        write_adapter_folder(
            args.out, model, MERGED, base.name, args.overwrite, prompt_format=prompt_format
        )
        return report | {"out": args.out.name, "kind": "adapter"}
    merged = model.merge_and_unload(adapter_names=[model.active_adapter])
    check_finite(merged)
    after = probe.run(merged, args.repeats)
    report |= check_parity(before, after, args.dtype) | {"bytes_after": num_bytes(merged)}
    report["tokens_per_s_after"] = after.tokens_per_s
    with write_model_folder(args.out, merged, base.tokenizer, report, args.overwrite) as folder:
        report["read_back"] = read_back(folder, merged, probe, args.dtype, device)
    return report | {"out": args.out.name, "kind": "model"}


def _check_unquantised(path: Path) -> None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise MergeError(
            f"--base_model {path}: it is quantised, and merging would round the adapter's small "
            "update to its coarse grid: give the unquantised model, which the adapter fits as well"
        )


def _loaded(base: ChosenBase, args: argparse.Namespace) -> PeftModel:
    """Return the base with the adapter to merge as its active one."""
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
    return model
