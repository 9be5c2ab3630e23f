"""PEFT in a process of its own, and a probe of how fast the machine is at the moment."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.arguments import BASE_MODEL
from scripts.benchmarks.cpu_peers.pairs import MIXED

if TYPE_CHECKING:
    from torch import Tensor

    from deployments.engine.model_loader import Dtype
    from deployments.engine.request import Request
    from scripts.benchmarks.in_process.peft_baseline import PeftBaseline

_ONE_BY_ONE = 2  # requests of a block, one after the other: their speed does not depend on it
# Of the probe: a matrix, numbers that are copied, and numbers that torch just gives to two threads.
_SIDE, _COPIED, _SUMMED = 384, 2 << 20, 33_000
_TIMES, _ATTEMPTS = 4, 8
_loaded: "tuple[PeftBaseline, list[Request]]"


def load(dtype: "Dtype", folders: Mapping[str, Path], question: str, output_tokens: int) -> None:
    """Load base and adapters in this process, for `block`."""
    global _loaded
    from deployments.engine.request import Request, SamplingParams
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.peft_baseline import PeftBaseline

    base = load_base(BASE_MODEL, "cpu", dtype)
    turns = [{"role": "user", "content": question}]
    prompt = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    sampling = SamplingParams(output_tokens)
    requests = [Request(name, tuple(prompt), name, sampling) for name in folders]
    _loaded = PeftBaseline(base, folders, output_tokens), requests


def block(adapters: str, streams: int) -> float:
    """Return tokens a second of one batch of mixed adapters, or of one request after the other."""
    peft, requests = _loaded
    if adapters == MIXED:
        return peft.mixed([requests[n % len(requests)] for n in range(streams)])["tokens_per_s"]
    asked = [requests[n % len(requests)] for n in range(min(_ONE_BY_ONE, streams))]
    return peft.sequential(asked)["tokens_per_s"]


def probe() -> tuple[float, float, float]:
    """Return microseconds of a product of matrices, of a copy, and of a sum so small that what two
    cores take is mostly the wait for each other: the least of several attempts of each, which a
    short interruption does not change."""
    import torch

    matrix, source, target, small = _tensors()
    works = (
        (lambda: torch.mm(matrix, matrix)),
        (lambda: target.copy_(source)),
        (lambda: small.add_(1)),
    )
    product, copy, wait = (min(_timed_us(work) for _ in range(_ATTEMPTS)) for work in works)
    return product, copy, wait


def _timed_us(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(_TIMES):
        work()
    return 1e6 * (time.perf_counter() - started) / _TIMES


@functools.cache
def _tensors() -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    import torch

    source = torch.zeros(_COPIED)
    return torch.ones(_SIDE, _SIDE), source, source.clone(), torch.zeros(_SUMMED)
