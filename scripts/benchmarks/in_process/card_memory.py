"""Load, plan and serve a base on a GPU whose memory is limited, and read what was taken."""

import argparse
import asyncio
import gc
import os
import time
from pathlib import Path
from typing import Any

import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from scripts.benchmarks.bases.models import load_skeleton, saved_or_found
from scripts.benchmarks.command import conditions
from scripts.benchmarks.in_process.engine_runs import answer_all, random_requests, start_engine
from scripts.benchmarks.in_process.random_adapters import make_random_adapters

GIB = 2**30
# What torch takes itself before Hopper, whose default is four times as much.
_SMALL_WORKSPACE = ":4096:2:16:8"


class Card:
    """Limit what this process takes of a GPU, and read it. On a CPU it does nothing."""

    def __init__(self, device: str, budget_gib: float | None) -> None:
        self._device = torch.device(device)
        self._is_gpu = self._device.type == "cuda"
        self._budget = budget_gib
        self.context = 0
        if not self._is_gpu:
            return
        if budget_gib is not None:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _SMALL_WORKSPACE)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.context = self._outside_torch()
        self.limit()

    def limit(self) -> None:
        """Leave torch what a card of this size would have left now, beside what CUDA took."""
        if self._is_gpu and self._budget is not None:
            total = torch.cuda.mem_get_info(self._device)[1]
            share = (self._budget * GIB - self._outside_torch()) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))

    def _outside_torch(self) -> int:
        """Return the bytes taken of the GPU that torch's allocator does not hold: by CUDA's
        context, kernels and graphs, and by any other process."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)

    def taken(self) -> dict[str, float] | None:
        """Return GiB: now, and the most that torch held and used since the start."""
        if not self._is_gpu:
            return None
        device = self._device
        found = {
            "held": torch.cuda.memory_reserved(device),
            "used": torch.cuda.memory_allocated(device),
            "most_held": torch.cuda.max_memory_reserved(device),
            "most_used": torch.cuda.max_memory_allocated(device),
            "outside_torch": self._outside_torch(),
        }
        return {name: round(size / GIB, 3) for name, size in found.items()}


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    load_before = os.getloadavg()
    folder, family = saved_or_found(args.model, scratch / "base", args.device, args.dtype)
    gc.collect()
    card = Card(args.device, args.budget_gb)
    started = time.perf_counter()
    base = load_pretrained(
        folder, family, device=args.device, dtype=args.dtype, quantization=args.quantization
    )
    memory = {"loaded": card.taken()}
    card.limit()
    load_s = time.perf_counter() - started
    adapters = make_random_adapters(
        load_skeleton(folder),
        scratch / "adapters",
        num=args.adapters,
        rank=args.rank,
        targets=args.targets,
    )
    limits = FastLimits(
        args.rows,
        args.prompt_tokens + args.output_tokens,
        max_adapters=args.adapters,
        prefill_tokens=args.prefill_tokens,
    )
    decoder = build_decoder(base, "fast", limits, adapters)
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    memory["rows planned"] = card.taken()
    for name, directory in adapters.items():
        decoder.load_adapter(name, directory)
    memory["adapters loaded"] = card.taken()
    requests = random_requests(
        args.requests,
        decoder.vocab_size,
        prompt_tokens=(args.prompt_tokens, args.prompt_tokens),
        output_tokens=(args.output_tokens, args.output_tokens),
        adapters=list(adapters),
    )
    engine = start_engine(decoder, requests, args.rows, args.prefill_tokens)
    memory["warmed up"] = card.taken()
    started = time.perf_counter()
    asyncio.run(answer_all(engine, requests, args.requests))
    seconds = time.perf_counter() - started
    memory["served"] = last = card.taken()
    info = engine.info
    engine.close()
    return {
        **conditions(args, load_before),
        "weights": info.weights,
        "decoder": f"{info.name}: {info.reason}",
        "rows": dict(info.rows),
        "kv_mib": round(decoder.num_kv_bytes / 2**20, 1),
        "load_s": round(load_s, 1),
        "tokens_per_s": round(args.requests * args.output_tokens / seconds, 1),
        "memory": memory,
        "context_gib": round(card.context / GIB, 3),
        "peak_gib": None if last is None else round(last["most_held"] + last["outside_torch"], 3),
        "budget_gib": args.budget_gb,
    }
