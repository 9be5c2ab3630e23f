"""Train the router's encoder: loss, optimiser, averaged weights, scores."""

import copy
import math
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from router.preparation.prepare import prepared_text
from scripts.router.encoder_batches import Text, bucketed, changed_ids, padded_ids, token_ids
from scripts.router.encoder_model import Encoder

WARM_UP = 0.06  # part of the training
KIND_WEIGHTS = {"question": 1.0, "term": 0.5, "passage": 0.5}
SOURCE_WEIGHTS = {"written": 3.0, "glossary": 2.0, "HPO-fr (templated)": 3.0}
MAX_TERMS = 1500  # of a specialty and source: more count for less, or bones drown the rest
NUM_WORKERS = 8
TEMPERATURE = 2.0  # of the teacher's probabilities


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
    quantise_from: float | None  # part of the epochs after which weights have 4 bits
    seed: int


class Trainer:
    """Trains the teacher, and the student with the teacher's help."""

    def __init__(
        self, tokenizer: Tokenizer, training: Sequence[Text], held_out: Sequence[Text], device: str
    ) -> None:
        self._tokenizer = tokenizer
        self._training = training
        self._held_out = held_out
        self._device = device
        counts = Counter(t.label for t in training)
        terms = Counter((t.label, t.source) for t in training if t.kind == "term")
        weights = []
        for t in training:
            weight = KIND_WEIGHTS[t.kind] * SOURCE_WEIGHTS.get(t.source, 1.0)
            if t.kind == "term":
                weight *= min(1.0, MAX_TERMS / terms[t.label, t.source])
            if t.label >= 0:
                weight *= (sum(counts.values()) / len(counts) / counts[t.label]) ** 0.5
            weights.append(weight)
        mean = sum(weights) / len(weights)
        self._weights = [weight / mean for weight in weights]

    def fit(
        self, encoder: Encoder, plan: Plan, *, teacher: Encoder | None = None
    ) -> dict[str, float]:
        """Train `encoder` in place; returns the last scores on held-out questions."""
        encoder.to(self._device)
        if teacher is not None:
            teacher.to(self._device).eval()
        torch.manual_seed(plan.seed)
        optimiser = _optimiser(encoder, plan.learning_rate)
        averaged = copy.deepcopy(encoder).eval()  # exponential moving average of the weights
        generator = random.Random(plan.seed)
        step, figures = 0, dict[str, float]()
        for epoch, rows in enumerate(self._epochs(plan)):
            if plan.quantise_from is not None and epoch >= plan.quantise_from * plan.epochs:
                encoder.set_quantised(True)
                averaged.set_quantised(True)
            encoder.train()
            batches = bucketed([len(row) for row in rows], generator)
            for number, picked in enumerate(batches):
                done = (epoch + number / len(batches)) / plan.epochs
                rate = min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * rate
                loss = self._loss(encoder, self._batch([rows[i] for i in picked], picked), teacher)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
                optimiser.step()
                step += 1
                _average(averaged, encoder, min(0.998, step / (step + 10)))
            if epoch + 1 == plan.epochs or epoch % 3 == 2:
                figures = self.score(averaged)
                print(f"epoch {epoch + 1}/{plan.epochs} {figures}", flush=True)
        encoder.load_state_dict(averaged.state_dict())
        encoder.eval()
        return figures

    def _epochs(self, plan: Plan) -> Iterator[list[list[int]]]:
        """Yield the token ids of each epoch's training texts, which other processes change."""
        texts = [(t.text, t.lang, t.kind) for t in self._training]
        context = multiprocessing.get_context("spawn")
        workers = min(NUM_WORKERS, os.cpu_count() or 1, plan.epochs)
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            tokenizer = self._tokenizer.to_str()
            seeds = (f"{plan.seed}/{epoch}" for epoch in range(plan.epochs))
            tasks = [pool.submit(changed_ids, texts, tokenizer, seed) for seed in seeds]
            for task in tasks:
                yield task.result()

    def _loss(self, encoder: Encoder, batch: Batch, teacher: Encoder | None) -> Tensor:
        with self._autocast():
            out = encoder(batch.ids, batch.mask)
        weights = batch.weights / len(batch.weights)  # 1 on average over the whole set
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
        with torch.no_grad(), self._autocast():
            shown = teacher(batch.ids, batch.mask)
        distance = (
            F.kl_div(
                F.log_softmax(logits / TEMPERATURE, -1),
                F.log_softmax(shown["specialty"].float() / TEMPERATURE, -1),
                reduction="none",
                log_target=True,
            ).sum(-1)
            * TEMPERATURE**2
        )
        angle = 1 - F.cosine_similarity(out["pooled"].float(), shown["pooled"].float())
        scopes = (out["scope"].float() - shown["scope"].float()).square().clamp(max=25) * 0.05
        taught: Tensor = (weights * (distance * inside + 5 * angle + scopes)).sum()
        return 0.5 * loss + taught

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda")

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
        """Return the accuracy on held-out questions, unchanged, by language and source."""
        encoder.eval()
        hits: dict[str, list[bool]] = {}
        rows = token_ids(self._tokenizer, [prepared_text(text.text) for text in self._held_out])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), 256):
            picked = order[start : start + 256]
            ids, mask = padded_ids([rows[i] for i in picked])
            with self._autocast():
                out = encoder(ids.to(self._device), mask.to(self._device))
            tops, scopes = out["specialty"].argmax(-1).tolist(), (out["scope"] > 0).tolist()
            for i, top, inside in zip(picked, tops, scopes, strict=True):
                text = self._held_out[i]
                if text.label >= 0:
                    for key in (f"{text.split} {text.lang}", f"{text.source} {text.lang}"):
                        hits.setdefault(key, []).append(top == text.label)
                hits.setdefault(f"scope {text.label >= 0}", []).append(inside == (text.label >= 0))
        return {key: round(float(np.mean(found)), 4) for key, found in sorted(hits.items())}


def _optimiser(encoder: Encoder, rate: float) -> torch.optim.AdamW:
    parts = (encoder.specialty, encoder.scope, encoder.attention)
    heads = [parameter for part in parts for parameter in part.parameters()]
    known = {id(p) for p in heads}
    body = [p for p in encoder.parameters() if id(p) not in known]
    groups = [{"params": body, "initial_lr": rate}, {"params": heads, "initial_lr": 10 * rate}]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.01)


@torch.no_grad()
def _average(averaged: Encoder, encoder: Encoder, decay: float) -> None:
    ours = [p.detach() for p in averaged.parameters()]
    theirs = [p.detach() for p in encoder.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - decay)
