"""Time decode steps while other processes take every core."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.cpu.llama import CompiledLlama
from deployments.engine.cpu.thread_count import ThreadCount
from deployments.engine.model_runner import ModelRunner

_ROUNDS = 12


@contextlib.contextmanager
def busy_cores() -> Iterator[int]:
    """Keep one process for each core busy; gives their number."""
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield cores
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@torch.inference_mode()
def measure_beside_others(decoder: ModelRunner, rows: int, seconds: float) -> dict[str, Any]:
    """Return steps a second on one thread, on all, and as the decoder chooses, in turn."""
    model = decoder._model
    assert isinstance(model, CompiledLlama), "these weights have no threads of their own"
    most, chosen = model.num_threads, ThreadCount(model.num_threads)
    rates: dict[str, list[float]] = {"one thread": [], "all threads": [], "chosen": []}
    with busy_cores() as cores:
        for _ in range(_ROUNDS):
            for name, taken in rates.items():
                model._thread_count = chosen if name == "chosen" else None
                model.num_threads = 1 if name == "one thread" else most
                taken.append(_steps_per_s(model, decoder._cache, rows, seconds / _ROUNDS / 3))
    medians = {name: round(statistics.median(taken), 1) for name, taken in rates.items()}
    share = round(medians["chosen"] / medians["one thread"], 3)
    return {
        "busy_processes": cores,
        "rows": rows,
        "steps_per_s": medians,
        "chosen over one thread": share,
        "threads at the end": chosen.current,
    }


def _steps_per_s(model: CompiledLlama, cache: KvCache, rows: int, seconds: float) -> float:
    started, steps = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        at = [24 + steps % 8] * rows
        batch = model.decode_batch(cache, torch.ones(rows, dtype=torch.long), range(rows), at, at)
        model.decode(cache, batch, None)
        steps += 1
    return steps / (time.perf_counter() - started)
