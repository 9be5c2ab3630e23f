"""Sum the loss of given answers under each adapter, read as prompts by the served decoder."""

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from deployments.engine.attention.prefill import PrefillBatch, TorchPrefillAttention
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.kernels.ops import Segment
from deployments.engine.model_loader import Dtype, load_pretrained
from deployments.engine.model_runner import ModelRunner
from scripts.datasets.pairs import load_pairs
from scripts.lora.batches import TokenizedPair
from scripts.lora.chosen_base import CATALOG_DIR, ChosenBase, chosen_base
from scripts.lora.saved_adapter import prompt_format_of

_BASE = " without adapters"
_POSITIONS = 1024  # prompt and answer together, at most
Losses = dict[str, list[float]]
"""Adapter -> the summed cross-entropy of each answer, nats."""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    base = chosen_base(args)
    weights_dir = CATALOG_DIR / "weights"
    names = args.adapters or sorted(folder.name for folder in weights_dir.iterdir())
    folders = {name: weights_dir / name for name in names}
    pairs = {name: _sample(args, base, folder) for name, folder in folders.items()}
    found: dict[str, Losses] = {}
    described, seconds = {}, {}
    for kind in args.weights:
        decoder = _decoder(args, base, kind, folders)
        described[kind] = decoder.info.weights
        started = time.perf_counter()
        for adapted in (True, False) if args.without_adapters else (True,):
            found[kind if adapted else f"{kind}{_BASE}"] = {
                name: [
                    _loss(decoder, name if adapted else None, pair)
                    for pair in tqdm(pairs[name], f"{kind}, {name}")
                ]
                for name in names
            }
        seconds[kind] = round(time.perf_counter() - started, 1)
    tokens = {name: sum(len(pair.answer) for pair in each) for name, each in pairs.items()}
    first = args.weights[0]
    return {
        "weights": described,
        "seconds": seconds,
        "answers": {name: len(each) for name, each in pairs.items()},
        "tokens": tokens,
        "loss": {
            kind: {name: round(sum(losses[name]) / tokens[name], 4) for name in names}
            for kind, losses in found.items()
        },
        "changes": {
            f"{other} over {one}, %": _changes(found[one], found[other])
            for one, other in [
                *((first, kind) for kind in args.weights[1:]),
                *((f"{kind}{_BASE}", kind) for kind in args.weights if args.without_adapters),
            ]
        },
    }


def _sample(args: argparse.Namespace, base: ChosenBase, folder: Path) -> list[TokenizedPair]:
    validation = load_pairs(args.data, folder.name).validation
    chosen = random.Random(args.seed).sample(validation, min(args.answers, len(validation)))
    prompted = base.prompted(prompt_format_of([folder]))
    pairs = [prompted.pair(each.question, each.answer) for each in chosen]
    return [TokenizedPair(pair.prompt, pair.answer[: args.answer_tokens]) for pair in pairs]


def _decoder(
    args: argparse.Namespace, base: ChosenBase, kind: Any, folders: Mapping[str, Path]
) -> ModelRunner:
    dtype: Dtype = args.dtype
    loaded = load_pretrained(base.path, base.family, device="cpu", dtype=dtype)
    limits = FastLimits(max_rows=1, num_positions=_POSITIONS, max_adapters=len(folders))
    is_int8 = kind == "kv_int8"  # which torch reads too, though it serves nobody on a CPU
    decoder = build_decoder(loaded, "fast", limits, folders, weights="none" if is_int8 else kind)
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    if is_int8:
        model = decoder._model
        model.kv_shape = dataclasses.replace(model.kv_shape, is_int8=True)
        decoder._cache = decoder._new_cache([*decoder.capacities, SCRATCH_POSITIONS])
    return decoder


@torch.inference_mode()
def _loss(decoder: ModelRunner, adapter: str | None, pair: TokenizedPair) -> float:
    model, pool, cache = decoder._model, decoder.lora_pool, decoder._cache
    ids = torch.tensor(pair.prompt + pair.answer)
    numbers = torch.arange(len(ids) - 1)
    segment = Segment(0, len(numbers), 0, 0, len(numbers))
    batch = PrefillBatch(ids[:-1], numbers, numbers, TorchPrefillAttention([segment]))
    slot = pool.acquire(adapter)
    states = model.prefill(cache, batch, model.lora_batch(pool, [slot], [len(numbers)]))
    pool.release(slot)
    logits = model.logits(states[len(pair.prompt) - 1 :]).float()
    return float(F.cross_entropy(logits, ids[len(pair.prompt) :], reduction="sum"))


def _changes(first: Losses, other: Losses) -> dict[str, Any]:
    """Return each adapter's change of the summed loss with its standard error, and the mean."""
    each = {name: _change(first[name], other[name]) for name in first}
    mean = statistics.mean(change for change, _ in each.values())
    most = max(change for change, _ in each.values())
    return {"mean": round(mean, 3), "most": round(most, 3), "change, standard error": each}


def _change(first: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    share = sum(other) / sum(first) - 1
    rest = [b - (1 + share) * a for a, b in zip(first, other, strict=True)]
    error = (sum(r * r for r in rest) / max(1, len(rest) - 1) * len(rest)) ** 0.5 / sum(first)
    return round(100 * share, 3), round(100 * error, 3)
