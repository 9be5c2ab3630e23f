"""Train a LoRA adapter for one specialty on a base model, causal or T5.

    python -m scripts.train_lora_adapter --data DATA_FOLDER --specialty dermatology \\
        --out adapters/weights/dermatology

The data folder holds `<specialty>.jsonl` with `input`, `output`, `split` on each line. The loss is
taken on the answer's tokens only, in the serving prompt format. The epoch with the lowest
validation loss is kept. The last line of stdout is one JSON object.

Exit codes: 0 done, 2 refused or failed (nothing saved), 3 the loss stopped being finite (the best
epoch before that is saved).
"""

import argparse
import dataclasses
import json
import resource
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from adapters.base_models import BaseModelError, Family, resolve_base_model
from adapters.catalog import BaseModelEntry, CatalogError, load_catalog
from adapters.prompting import encode_example
from scripts.adapter_card import write_adapter
from scripts.lora_training import Example, LoopSettings, LoopState, LoraTrainer, TrainingError
from scripts.training_checkpoint import load_checkpoint, save_checkpoint
from scripts.training_data import DataError, DataSet, Pair, load_pairs

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
DEFAULT_TARGETS: dict[Family, list[str]] = {"causal": ["q_proj", "v_proj"], "seq2seq": ["q", "v"]}
CHECKPOINT = "unfinished"  # folder below --out, removed when the run ends
_LOOP = tuple(setting.name for setting in dataclasses.fields(LoopSettings))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = train(args, list(sys.argv[1:] if argv is None else argv))
    except (BaseModelError, CatalogError, DataError, TrainingError) as error:
        print(f"train_lora_adapter: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    if "not finite" in (report["stopped"] or ""):
        print(f"train_lora_adapter: {report['stopped']}", file=sys.stderr)
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_lora_adapter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--specialty", required=True)
    add("--out", type=Path, required=True, help="folder of the adapter")
    add("--base_model", default="smollm2-135m-instruct", help="directory, built-in name or hub id")
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    add("--epochs", type=_positive, default=3)
    add("--batch_size", type=_positive, default=2)
    add("--grad_accum", type=_positive, default=4, help="batches for each optimiser step")
    add("--learning_rate", type=float, default=5e-4)
    add("--warmup", type=float, default=0.06, help="share of the steps")
    add("--weight_decay", type=float, default=0.0)
    add("--clip", type=float, default=1.0, help="norm of the gradient at most")
    add("--patience", type=_positive, default=2, help="epochs without a better validation loss")
    add("--rank", type=_positive, default=8)
    add("--alpha", type=_positive, default=32)
    add("--dropout", type=float, default=0.1)
    add("--target_modules", nargs="+", help="default: q v for T5, q_proj v_proj for Llama-style")
    add("--max_prompt_tokens", type=_positive, default=128, help="a longer prompt is refused")
    add("--max_answer_tokens", type=_positive, default=384, help="a longer answer is cut")
    add("--skip_note", action="append", default=[], help="leave out training pairs with this note")
    add("--max_steps", type=_positive, help="stop after this many optimiser steps")
    add("--seed", type=int, default=0)
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--resume", action="store_true", help="go on with an interrupted run of this --out")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number from 1 is expected")
    return int(text)


def train(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Everything from data to a saved adapter; returns the report.

    Raises:
        BaseModelError, CatalogError, DataError, TrainingError: nothing was saved.
    """
    torch.manual_seed(args.seed)
    data = load_pairs(args.data, args.specialty, keep=lambda pair: pair.note not in args.skip_note)
    resolved = resolve_base_model(args.base_model)
    base_name = args.base_model_name or args.base_model
    entry = load_catalog(CATALOG_DIR).base_model(base_name, family=resolved.family)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    examples = [_example(pair, tokenizer, entry, args) for pair in data.train]
    held_out = [_example(pair, tokenizer, entry, args) for pair in data.validation]
    arguments = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in ("resume", "data", "out")
    } | {"data": data.files}
    checkpoint = args.out / CHECKPOINT
    state = load_checkpoint(checkpoint, arguments) if args.resume else None
    model = _model(resolved.path, resolved.family, args)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    settings = LoopSettings(**{name: getattr(args, name) for name in _LOOP})
    trainer = LoraTrainer(model, resolved.family, pad_id, settings)
    done = trainer.fit(
        examples,
        held_out,
        state=state,
        after_epoch=lambda state: save_checkpoint(checkpoint, state, arguments),
    )
    report = _report(args, base_name, data, trainer, done)
    report["num_answers_cut"] = sum(tokenizer.eos_token_id != e.answer[-1] for e in examples)
    write_adapter(args.out, model, report, done.history, _command(argv), data)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return report


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


def _model(path: Path, family: Family, args: argparse.Namespace) -> PeftModel:
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    dtype = getattr(torch, args.dtype)
    base = model_class.from_pretrained(path, dtype=dtype, use_safetensors=True).to(args.device)
    targets = args.target_modules or DEFAULT_TARGETS[family]
    linear = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    missing = [t for t in targets if t != "all-linear" and t not in linear]
    if missing:
        raise TrainingError(
            f"--target_modules {' '.join(missing)}: the base model has no such linear layer; "
            f"it has {', '.join(sorted(linear))}, or use all-linear"
        )
    config = LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM" if family == "causal" else "SEQ_2_SEQ_LM",
    )
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    return model


def _report(
    args: argparse.Namespace,
    base_name: str,
    data: DataSet,
    trainer: LoraTrainer,
    state: LoopState,
) -> dict[str, Any]:
    """What goes into the model card and onto the last line of stdout."""
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:  # kibibytes on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    losses = [row.get("validation_loss") for row in state.history]
    return {
        "specialty": args.specialty,
        "base_model": base_name,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_steps": state.num_steps,
        "best_epoch": state.best_epoch,
        "stopped": trainer.stopped,
        "validation_loss_base": _rounded(losses[0]),
        "validation_loss": _rounded(losses[state.best_epoch]),
        "train_s": round(trainer.train_s, 1),
        "peak_memory_mib": round(peak),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "rank": args.rank,
        "alpha": args.alpha,
        "seed": args.seed,
    }


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _command(argv: Sequence[str]) -> str:
    """The command for the model card, without the machine's own paths."""
    words = [Path(w).name if w.startswith(("/", "..")) else w for w in argv]
    return shlex.join(["python", "-m", "scripts.train_lora_adapter", *words])


if __name__ == "__main__":
    raise SystemExit(main())
