"""Pairs as token ids, batches of similar lengths, padded tensors, and the loss on answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from adapters.bases.models import Family

IGNORED = -100  # label of a position without loss, PyTorch's default
BUCKET = 16  # batches that are sorted by length together
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of one pair, cut to the lengths that were asked for."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class SimilarLengths(Sampler[int]):
    """Shuffle so that a batch holds similar lengths: buckets of 16 batches are sorted by length.

    The order depends on the seed and the epoch alone, so a resumed epoch has the same one.
    """

    def __init__(self, examples: Sequence[TokenizedPair], batch_size: int, seed: int) -> None:
        self._lengths = [len(example) for example in examples]
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        shuffle = random.Random(f"{self._seed}/{self._epoch}").shuffle
        order = list(range(len(self._lengths)))
        shuffle(order)
        size = self._batch_size
        batches = []
        for start in range(0, len(order), BUCKET * size):
            bucket = sorted(order[start : start + BUCKET * size], key=self._lengths.__getitem__)
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        shuffle(batches)
        batches.sort(key=len, reverse=True)  # a short batch in the middle would shift the others
        yield from (i for batch in batches for i in batch)


def tensors_of(
    batch: Sequence[TokenizedPair], family: Family, pad_id: int, start_id: int | None
) -> Tensors:
    """Return ids, mask and labels, each (B, T); T5's answers are in labels (B, U)."""
    if family == "causal":
        return {
            "input_ids": padded([e.prompt + e.answer for e in batch], pad_id),
            "attention_mask": padded([[1] * len(e) for e in batch], 0),
            "labels": padded([[IGNORED] * len(e.prompt) + e.answer for e in batch], IGNORED),
        }
    answers = [e.answer for e in batch]
    return {
        "input_ids": padded([e.prompt for e in batch], pad_id),
        "attention_mask": padded([[1] * len(e.prompt) for e in batch], 0),
        "decoder_input_ids": padded([[start_id or 0, *a[:-1]] for a in answers], pad_id),
        "labels": padded(answers, IGNORED),
    }


def padded(rows: Sequence[list[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Return rows padded on the right (or left) to the longest, (B, T), int64."""
    length = max(len(row) for row in rows)
    fill = [[value] * (length - len(row)) for row in rows]
    pairs = zip(fill, rows, strict=True)
    return torch.tensor([f + row if left else row + f for f, row in pairs])


def answer_losses(outputs: Any, labels: torch.Tensor, family: Family) -> torch.Tensor:
    """Return the cross-entropy of each label in nats, (B, T); 0 where there is no label.

    Args:
        outputs: of the model, with `logits` (B, T, V).
        labels: (B, T), IGNORED where a position has none.
    """
    logits: torch.Tensor = outputs["logits"].float()
    if family == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return flat.view(labels.shape)
