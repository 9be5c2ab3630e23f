"""Train a LoRA adapter for one specialty on a base model, causal or T5.

    python -m scripts.train_lora_adapter --data DATA_FOLDER --specialty dermatology \\
        --out adapters/weights/dermatology

The data folder holds `<specialty>.jsonl` with `input`, `output`, `split` on each line. The loss is
taken on the answer's tokens only, in the serving prompt format. The epoch with the lowest
validation loss is kept. The last line of stdout is one JSON object.
"""

import argparse
import json
import math
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from adapters.base_models import BaseModelError, Family, resolve_base_model
from adapters.catalog import load_catalog
from adapters.prompting import encode_example
from scripts.adapter_card import write_adapter
from scripts.training_data import DataError, DataSet, Pair, load_pairs

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
DEFAULT_TARGETS: dict[Family, list[str]] = {"causal": ["q_proj", "v_proj"], "seq2seq": ["q", "v"]}
IGNORED = -100  # label of a position without loss, PyTorch's default


class TrainingError(RuntimeError):
    """Training cannot start or go on; the text says what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one pair, cut to the lengths that were asked for."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = train(args, list(sys.argv[1:] if argv is None else argv))
    except (BaseModelError, DataError, TrainingError) as error:
        print(f"train_lora_adapter: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
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
    add("--epochs", type=int, default=3)
    add("--batch_size", type=int, default=2)
    add("--grad_accum", type=int, default=4, help="batches for each optimiser step")
    add("--learning_rate", type=float, default=5e-4)
    add("--warmup", type=float, default=0.06, help="share of the steps")
    add("--weight_decay", type=float, default=0.0)
    add("--clip", type=float, default=1.0, help="norm of the gradient at most")
    add("--rank", type=int, default=8)
    add("--alpha", type=int, default=32)
    add("--dropout", type=float, default=0.1)
    add("--target_modules", nargs="+", help="default: q v for T5, q_proj v_proj for Llama-style")
    add("--max_prompt_tokens", type=int, default=128)
    add("--max_answer_tokens", type=int, default=384)
    add("--skip_note", action="append", default=[], help="leave out training pairs with this note")
    add("--max_steps", type=int, help="stop after this many optimiser steps")
    add("--seed", type=int, default=0)
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def train(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Everything from data to a saved adapter; returns the report."""
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    data = load_pairs(args.data, args.specialty, keep=lambda pair: pair.note not in args.skip_note)
    resolved = resolve_base_model(args.base_model)
    base_name = args.base_model_name or args.base_model
    entry = load_catalog(CATALOG_DIR).base_model(base_name, family=resolved.family)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)

    def encoded(pairs: Sequence[Pair]) -> list[Example]:
        return [_example(p, tokenizer, entry.prompt_format, entry.system_line, args) for p in pairs]

    examples, held_out = encoded(data.train), encoded(data.validation)
    model = _model(resolved.path, resolved.family, args)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = _Trainer(model, resolved.family, pad_id, args)
    history = trainer.fit(examples, held_out)
    report = _report(args, base_name, data, trainer, history)
    write_adapter(args.out, model, report, history, _command(argv), data)
    return report


def _example(
    pair: Pair, tokenizer: Any, prompt_format: Any, system_line: str, args: argparse.Namespace
) -> Example:
    prompt, answer = encode_example(
        prompt_format, pair.question, pair.answer, tokenizer=tokenizer, system_line=system_line
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


class _Trainer:
    """A plain loop: AdamW, linear warm-up and decay, accumulation, clipping, best epoch kept."""

    def __init__(
        self, model: PeftModel, family: Family, pad_id: int, args: argparse.Namespace
    ) -> None:
        self.model = model
        self.num_steps = 0
        self.train_s = 0.0
        self._family = family
        self._pad_id = pad_id
        self._args = args
        self._shuffle = random.Random(args.seed)

    def fit(self, examples: list[Example], held_out: list[Example]) -> list[dict[str, float]]:
        """Returns one row an epoch; the adapter ends as it was in the best of them.

        Raises:
            TrainingError: the loss is not finite.
        """
        args = self._args
        per_epoch = math.ceil(len(examples) / (args.batch_size * args.grad_accum))
        total = min(per_epoch * args.epochs, args.max_steps or math.inf)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=args.learning_rate, weight_decay=args.weight_decay
        )
        warmup = max(1, round(args.warmup * total))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min(
                (step + 1) / warmup, max(0.0, (total - step) / max(1, total - warmup))
            ),
        )
        history = [{"epoch": 0, "validation_loss": self.loss_of(held_out)}]
        best, best_loss = self._adapter_state(), math.inf
        started = time.perf_counter()
        for epoch in range(1, args.epochs + 1):
            loss = self._epoch(examples, optimiser, schedule, parameters, total, epoch)
            held_out_loss = self.loss_of(held_out)
            history.append({"epoch": epoch, "train_loss": loss, "validation_loss": held_out_loss})
            tqdm.write(f"epoch {epoch}: train {loss:.4f}, validation {held_out_loss:.4f}")
            if held_out_loss < best_loss or not held_out:
                best, best_loss = self._adapter_state(), held_out_loss
            if self.num_steps >= total:
                break
        self.train_s = time.perf_counter() - started
        self.model.load_state_dict(best, strict=False)
        return history

    def _epoch(
        self,
        examples: list[Example],
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        parameters: list[torch.nn.Parameter],
        total: float,
        epoch: int,
    ) -> float:
        """Mean training loss for each answer token of one epoch."""
        args = self._args
        self.model.train()
        batches = list(self._batches(examples))
        groups = [batches[i : i + args.grad_accum] for i in range(0, len(batches), args.grad_accum)]
        sum_loss, num_tokens = 0.0, 0
        for group in tqdm(groups, f"epoch {epoch}", unit="step"):
            if self.num_steps >= total:
                break
            tokens_in_step = sum(len(e.answer) for batch in group for e in batch)
            for batch in group:
                loss = self._sum_loss(batch)
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"the loss is {loss.item()} at step {self.num_steps}: lower "
                        "--learning_rate, or train in float32; nothing was saved"
                    )
                torch.autograd.backward(loss / tokens_in_step)
                sum_loss += loss.item()
            num_tokens += tokens_in_step
            torch.nn.utils.clip_grad_norm_(parameters, args.clip)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            self.num_steps += 1
        return sum_loss / max(1, num_tokens)

    @torch.no_grad()
    def loss_of(self, examples: list[Example]) -> float:
        """Mean loss for each answer token; NaN for no example."""
        self.model.eval()
        ordered = sorted(examples, key=len)
        size = self._args.batch_size
        batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        total = sum(self._sum_loss(batch).item() for batch in batches)
        num_tokens = sum(len(example.answer) for example in examples)
        return total / num_tokens if num_tokens else math.nan

    def _batches(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Shuffled batches of similar lengths: buckets of 16 batches are sorted by length."""
        order = list(range(len(examples)))
        self._shuffle.shuffle(order)
        size = self._args.batch_size
        batches = []
        for start in range(0, len(order), 16 * size):
            bucket = sorted(order[start : start + 16 * size], key=lambda i: len(examples[i]))
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        self._shuffle.shuffle(batches)
        for batch in batches:
            yield [examples[i] for i in batch]

    def _sum_loss(self, batch: list[Example]) -> torch.Tensor:
        """Summed cross-entropy over the answers' tokens of a batch (scalar, float32)."""
        inputs = self._tensors(batch)
        labels = inputs.pop("labels")
        logits = self.model(**inputs).logits.float()
        if self._family == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def _tensors(self, batch: list[Example]) -> dict[str, torch.Tensor]:
        """Ids, mask and labels, each (B, T); T5 has the answer in labels of its own (B, U)."""
        device = self._args.device
        if self._family == "causal":
            ids = self._padded([e.prompt + e.answer for e in batch], self._pad_id)
            labels = self._padded([[IGNORED] * len(e.prompt) + e.answer for e in batch], IGNORED)
            mask = self._padded([[1] * len(e) for e in batch], 0)
            return {"input_ids": ids, "attention_mask": mask, "labels": labels}
        answers = [e.answer for e in batch]
        start_id = self.model.config.decoder_start_token_id
        decoder_ids = [[start_id, *answer[:-1]] for answer in answers]
        return {
            "input_ids": self._padded([e.prompt for e in batch], self._pad_id),
            "attention_mask": self._padded([[1] * len(e.prompt) for e in batch], 0),
            "decoder_input_ids": self._padded(decoder_ids, self._pad_id),
            "labels": self._padded(answers, IGNORED).to(device),
        }

    def _padded(self, rows: list[list[int]], value: int) -> torch.Tensor:
        length = max(len(row) for row in rows)
        padded = [row + [value] * (length - len(row)) for row in rows]
        return torch.tensor(padded, device=self._args.device)

    def _adapter_state(self) -> dict[str, torch.Tensor]:
        return {
            name: value.detach().clone()
            for name, value in self.model.named_parameters()
            if value.requires_grad
        }


def _report(
    args: argparse.Namespace,
    base_name: str,
    data: DataSet,
    trainer: _Trainer,
    history: list[dict[str, float]],
) -> dict[str, Any]:
    best = min(history[1:], key=lambda row: row["validation_loss"])
    peak = torch.cuda.max_memory_allocated() / 2**20 if args.device.startswith("cuda") else None
    return {
        "specialty": args.specialty,
        "base_model": base_name,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_steps": trainer.num_steps,
        "best_epoch": best["epoch"],
        "validation_loss_base": round(history[0]["validation_loss"], 4),
        "validation_loss": round(best["validation_loss"], 4),
        "train_s": round(trainer.train_s, 1),
        "peak_memory_mib": None if peak is None else round(peak),
        "device": torch.cuda.get_device_name() if peak is not None else "cpu",
        "rank": args.rank,
        "alpha": args.alpha,
        "seed": args.seed,
    }


def _command(argv: Sequence[str]) -> str:
    """The command for the model card, without the machine's own paths."""
    words = [Path(w).name if w.startswith(("/", "..")) else w for w in argv]
    return shlex.join(["python", "-m", "scripts.train_lora_adapter", *words])


if __name__ == "__main__":
    raise SystemExit(main())
