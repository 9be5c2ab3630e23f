"""Make batches of training texts: changed for each epoch, tokenized, of similar length.

Shapes: B texts of a batch, T tokens of its longest.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from router.encoder import BOS, EOS, PAD
from router.preparation.prepare import prepared_text
from scripts.router.augmentation import Rates, altered, as_question
from scripts.router.encoder_model import MAX_POSITIONS

BATCH_TOKENS = 16_384
MAX_BATCH = 320


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    label: int  # index of the specialty, -1 out of scope
    lang: str
    kind: str
    source: str
    split: str


def changed_ids(
    texts: Sequence[tuple[str, str, str]], tokenizer: str, seed: str
) -> list[list[int]]:
    """Return token ids of changed texts: terms put into questions, slips and courtesies added.

    Args:
        texts: (text, language, kind) of each.
        tokenizer: as JSON, so that it can be sent to another process.
    """
    generator, rates = random.Random(seed), Rates()
    changed = []
    for text, lang, kind in texts:
        asked = as_question(text, lang, generator) if kind == "term" else text
        changed.append(prepared_text(altered(asked, lang, generator, rates)))
    return token_ids(Tokenizer.from_str(tokenizer), changed)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of clean texts with BOS and EOS, cut at MAX_POSITIONS."""
    encodings = tokenizer.encode_batch(list(texts))
    return [[BOS, *encoding.ids[: MAX_POSITIONS - 2], EOS] for encoding in encodings]


def bucketed(lengths: Sequence[int], generator: random.Random) -> list[list[int]]:
    """Return batches of positions in random order, texts of similar length together.

    A batch has at most MAX_BATCH texts and BATCH_TOKENS padded tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i] // 4, generator.random()))
    batches: list[list[int]] = [[]]
    for i in order:
        full = len(batches[-1]) == MAX_BATCH or (len(batches[-1]) + 1) * lengths[i] > BATCH_TOKENS
        if full and batches[-1]:
            batches.append([])
        batches[-1].append(i)
    generator.shuffle(batches)
    return batches


def padded_ids(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad rows of ids: returns ids (B, T) and mask (B, T), True where a token is."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width)[None, :] < lengths[:, None]
