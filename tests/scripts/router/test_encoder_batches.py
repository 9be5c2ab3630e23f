"""Batches of similar length, and texts that change with each epoch."""

import random
from pathlib import Path

from scripts.router.encoder_batches import (
    BATCH_TOKENS,
    BOS,
    EOS,
    MAX_BATCH,
    PAD,
    bucketed,
    changed_ids,
    padded_ids,
)
from scripts.router.encoder_model import MAX_POSITIONS


def test_changes_follow_the_seed(tiny_encoder_dir: Path) -> None:
    tokenizer = (tiny_encoder_dir / "tokenizer.json").read_text(encoding="utf-8")
    texts = [("tell me about rash please", "en", "question"), ("rash", "en", "term")] * 30
    one = changed_ids(texts, tokenizer, "0/0")
    assert one == changed_ids(texts, tokenizer, "0/0")
    assert one != changed_ids(texts, tokenizer, "0/1")
    assert all(row[0] == BOS and row[-1] == EOS for row in one)
    long = changed_ids([("rash " * 1000, "en", "question")], tokenizer, "0")
    assert len(long[0]) == MAX_POSITIONS


def test_rows_are_padded() -> None:
    ids, mask = padded_ids([[BOS, 7, 8, EOS], [BOS, EOS]])
    assert ids.tolist() == [[BOS, 7, 8, EOS], [BOS, EOS, PAD, PAD]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_batches_hold_each_text_once_within_both_limits() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(2, MAX_POSITIONS) for _ in range(2000)]
    batches = bucketed(lengths, random.Random(1))
    assert sorted(i for batch in batches for i in batch) == list(range(2000))
    assert max(map(len, batches)) <= MAX_BATCH
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) * longest <= BATCH_TOKENS + 4 * MAX_BATCH
        assert longest - min(lengths[i] for i in batch) < MAX_POSITIONS / 4
    assert batches == bucketed(lengths, random.Random(1))
    assert batches != bucketed(lengths, random.Random(2))
