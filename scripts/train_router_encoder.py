"""Train the router's encoder: a teacher of twelve layers, then a small student of 4-bit weights.

    python -m scripts.train_router_encoder --data runs/router_data --init runs/encoder_init \\
        --out router/model --layers 1 4 7 10

Both start from scripts/encoder_init.py and learn the specialty and the scope of the entries of the
split `encoder`. The student also learns the teacher's probabilities and its pooled vector (Hinton
et al. 2015), and trains with weights rounded to 4 bits in its second half, as it will be served.
The split `validation` is scored after each epoch and decides nothing. Written: encoder.onnx and
tokenizer.json. A GPU does it in minutes. The last line of stdout is one JSON object.
"""

import argparse
import copy
import json
import math
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from router.text import clean
from scripts.encoder_export import export
from scripts.encoder_model import MAX_POSITIONS, Encoder, from_init
from scripts.prepare_router_dataset import QUESTIONS
from scripts.router_augmentation import Rates, altered, as_question
from scripts.router_sources import OUT_OF_SCOPE
from scripts.training_data import DataError, read_jsonl

BOS, PAD, EOS = 0, 1, 2
BATCH_TOKENS = 16_384
KIND_WEIGHTS = {"question": 1.0, "term": 0.35, "passage": 0.5}
WRITTEN_WEIGHT = 3.0
TEMPERATURE = 2.0  # of the teacher's probabilities


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    label: int  # index of the specialty, -1 out of scope
    lang: str
    kind: str
    source: str
    split: str


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    labels: Tensor  # (B,) -1: out of scope
    weights: Tensor  # (B,)


@dataclass(frozen=True, slots=True)
class Plan:
    epochs: int
    learning_rate: float
    quantise_from: float  # part of the steps after which weights have 4 bits; 1: never
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = run(args)
    except (DataError, OSError) as error:
        print(f"train_router_encoder: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_router_encoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of prepare_router_dataset")
    add("--init", type=Path, required=True, help="folder of encoder_init")
    add("--out", type=Path, required=True, help="folder for encoder.onnx and tokenizer.json")
    add("--layers", type=int, nargs="+", default=[1, 4, 7, 10], help="the student's, of 0 to 11")
    add("--teacher_epochs", type=int, default=5)
    add("--student_epochs", type=int, default=8)
    add("--teacher_rate", type=float, default=1e-4)
    add("--student_rate", type=float, default=3e-4)
    add("--teacher_file", type=Path, help="safetensors: read if it exists, else written")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--limit", type=int, help="train on this many entries only (for a try)")
    add("--seed", type=int, default=0)
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Both trainings and the export; returns the report."""
    texts, labels = read_texts(args.data)
    training = [t for t in texts if t.split == "encoder"]
    if args.limit:
        training = random.Random(args.seed).sample(training, min(args.limit, len(training)))
    held_out = [t for t in texts if t.split in ("validation", "held_out") and t.kind == "question"]
    tokenizer = Tokenizer.from_file(str(args.init / "tokenizer.json"))
    trainer = Trainer(tokenizer, training, held_out, len(labels), args.device)
    started = time.monotonic()
    teacher = _teacher(args, trainer, len(labels))
    student = from_init(args.init, len(labels), layers=args.layers)
    start_from(student, teacher, args.layers)
    plan = Plan(args.student_epochs, args.student_rate, 0.5, args.seed + 1)
    figures = trainer.fit(student, plan, teacher=teacher)
    student.set_quantised(True)
    args.out.mkdir(parents=True, exist_ok=True)
    size = export(student.cpu().eval(), args.out / "encoder.onnx")
    shutil.copyfile(args.init / "tokenizer.json", args.out / "tokenizer.json")
    return {
        "labels": labels,
        "num_training": len(training),
        "validation": figures,
        "bytes": size,
        "seconds": round(time.monotonic() - started, 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


def _teacher(args: argparse.Namespace, trainer: "Trainer", num_labels: int) -> Encoder:
    from safetensors.torch import load_file, save_file

    teacher = from_init(args.init, num_labels)
    if args.teacher_file and args.teacher_file.is_file():
        teacher.load_state_dict(load_file(args.teacher_file))
        return teacher.to(args.device)
    trainer.fit(teacher, Plan(args.teacher_epochs, args.teacher_rate, 1.0, args.seed))
    if args.teacher_file:
        save_file(teacher.state_dict(), args.teacher_file)
    return teacher


def start_from(student: Encoder, teacher: Encoder, layers: Sequence[int]) -> None:
    """The student begins as the teacher without the layers between."""
    for name in ("word", "position", "norm", "attention", "specialty", "scope"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    for layer, number in zip(student.layers, layers, strict=True):
        layer.load_state_dict(teacher.layers[number].state_dict())


def read_texts(data: Path) -> tuple[list[Text], list[str]]:
    """(texts in file order, labels in alphabetical order without out_of_scope)."""
    rows = [item for _, item in read_jsonl(data / QUESTIONS)]
    labels = sorted({row["specialty"] for row in rows} - {OUT_OF_SCOPE})
    index = {label: i for i, label in enumerate(labels)} | {OUT_OF_SCOPE: -1}
    texts = [
        Text(r["input"], index[r["specialty"]], r["lang"], r["kind"], r["source"], r["split"])
        for r in rows
    ]
    return texts, labels


class Trainer:
    """Batches, losses and scores for both trainings."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        training: Sequence[Text],
        held_out: Sequence[Text],
        num_labels: int,
        device: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._training = training
        self._held_out = held_out
        self._device = device
        counts = Counter(t.label for t in training)
        by_kind = Counter((t.label, t.kind) for t in training)
        self._weights = []
        for t in training:
            weight = KIND_WEIGHTS[t.kind] * (WRITTEN_WEIGHT if t.source == "written" else 1.0)
            rarity = (sum(counts.values()) / len(counts) / counts[t.label]) ** 0.5
            # A terminology with thousands of bones must not drown the other specialties.
            share = min(1.0, 1500 / by_kind[t.label, t.kind]) if t.kind == "term" else 1.0
            self._weights.append(weight * rarity * share if t.label >= 0 else weight)

    def fit(
        self, encoder: Encoder, plan: Plan, *, teacher: Encoder | None = None
    ) -> dict[str, float]:
        """Train in place; returns the scores on the held-out questions after the last epoch."""
        encoder.to(self._device)
        if teacher is not None:
            teacher.to(self._device).eval()
        torch.manual_seed(plan.seed)
        optimiser = _optimiser(encoder, plan.learning_rate)
        generator = random.Random(plan.seed)
        epochs = [list(self._epoch(generator)) for _ in range(1)]
        total = plan.epochs * len(epochs[0])
        averaged = copy.deepcopy(encoder).eval()  # exponential moving average of the weights
        step = 0
        figures: dict[str, float] = {}
        for epoch in range(plan.epochs):
            batches = epochs.pop() if epochs else list(self._epoch(generator))
            encoder.train()
            for batch in batches:
                if step >= plan.quantise_from * total and not encoder.is_quantised:
                    encoder.set_quantised(True)
                    averaged.set_quantised(True)
                done = step / total
                rate = min(1.0, step / (0.06 * total)) * 0.5 * (1 + math.cos(math.pi * done))
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * rate
                loss = self._loss(encoder, batch, teacher)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
                optimiser.step()
                step += 1
                _average(averaged, encoder, min(0.998, step / (step + 10)))
            figures = self.score(averaged)
            print(f"epoch {epoch + 1}/{plan.epochs} loss {loss.item():.4f} {figures}", flush=True)
        encoder.load_state_dict(averaged.state_dict())
        encoder.eval()
        return figures

    def _loss(self, encoder: Encoder, batch: Batch, teacher: Encoder | None) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
            out = encoder(batch.ids, batch.mask)
        weights = batch.weights / batch.weights.sum()
        inside = batch.labels >= 0
        logits = out["specialty"].float()
        own = F.cross_entropy(
            logits, batch.labels.clamp(min=0), reduction="none", label_smoothing=0.05
        )
        scope = F.binary_cross_entropy_with_logits(
            out["scope"].float(), inside.float(), reduction="none"
        )
        loss = (weights * (own * inside + scope)).sum()
        if teacher is None:
            return loss
        with (
            torch.no_grad(),
            torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"),
        ):
            shown = teacher(batch.ids, batch.mask)
        distance = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, -1),
            F.log_softmax(shown["specialty"].float() / TEMPERATURE, -1),
            reduction="none",
            log_target=True,
        ).sum(-1) * TEMPERATURE**2
        angle = 1 - F.cosine_similarity(out["pooled"].float(), shown["pooled"].float())
        scopes = (out["scope"].float() - shown["scope"].float()).square().clamp(max=25) * 0.05
        taught: Tensor = (weights * (distance * inside + 5 * angle + scopes)).sum()
        return 0.5 * loss + taught

    def _epoch(self, generator: random.Random) -> Iterator[Batch]:
        """The training texts, changed anew, in batches of similar length in random order."""
        rates = Rates()
        texts = [
            clean(altered(as_question(t.text, t.lang, generator), t.lang, generator, rates))
            if t.kind == "term"
            else clean(altered(t.text, t.lang, generator, rates))
            for t in self._training
        ]
        rows = [
            [BOS, *encoding.ids[: MAX_POSITIONS - 2], EOS]
            for encoding in self._tokenizer.encode_batch(texts)
        ]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]) // 2, generator.random()))
        batches, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end - start + 1) * len(rows[order[end]]) <= BATCH_TOKENS and end - start < 512:
                end += 1
            batches.append(order[start:end])
            start = end
        generator.shuffle(batches)
        for picked in batches:
            yield self._batch([rows[i] for i in picked], picked)

    def _batch(self, rows: Sequence[Sequence[int]], picked: Sequence[int]) -> Batch:
        ids, mask = padded_ids(rows)
        return Batch(
            ids.to(self._device, non_blocking=True),
            mask.to(self._device, non_blocking=True),
            torch.tensor([self._training[i].label for i in picked], device=self._device),
            torch.tensor([self._weights[i] for i in picked], device=self._device),
        )

    @torch.no_grad()
    def score(self, encoder: Encoder) -> dict[str, float]:
        """Accuracy by language and source of the held-out questions, as they are."""
        encoder.eval()
        hits: dict[str, list[bool]] = {}
        rows = [
            [BOS, *e.ids[: MAX_POSITIONS - 2], EOS]
            for e in self._tokenizer.encode_batch([clean(t.text) for t in self._held_out])
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), 256):
            picked = order[start : start + 256]
            ids, mask = padded_ids([rows[i] for i in picked])
            with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
                out = encoder(ids.to(self._device), mask.to(self._device))
            tops, scopes = out["specialty"].argmax(-1).tolist(), (out["scope"] > 0).tolist()
            for i, top, inside in zip(picked, tops, scopes, strict=True):
                text = self._held_out[i]
                if text.label >= 0:
                    for key in (f"{text.split} {text.lang}", f"{text.source} {text.lang}"):
                        hits.setdefault(key, []).append(top == text.label)
                hits.setdefault(f"scope {text.label >= 0}", []).append(inside == (text.label >= 0))
        return {key: round(float(np.mean(found)), 4) for key, found in sorted(hits.items())}


def padded_ids(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids (B, T), mask (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width)[None, :] < lengths[:, None]


def _optimiser(encoder: Encoder, rate: float) -> torch.optim.AdamW:
    heads = [*encoder.specialty.parameters(), *encoder.scope.parameters(), *encoder.attention.parameters()]
    known = {id(p) for p in heads}
    body = [p for p in encoder.parameters() if id(p) not in known]
    return torch.optim.AdamW(
        [
            {"params": body, "initial_lr": rate, "weight_decay": 0.01},
            {"params": heads, "initial_lr": 10 * rate, "weight_decay": 0.01},
        ],
        lr=rate,
    )


@torch.no_grad()
def _average(averaged: Encoder, encoder: Encoder, decay: float) -> None:
    ours, theirs = list(averaged.parameters()), [p.detach() for p in encoder.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - decay)


if __name__ == "__main__":
    raise SystemExit(main())
