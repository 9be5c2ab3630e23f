"""PEFT in a process of its own, and a probe of how fast the machine is at the moment."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.arguments import BASE_MODEL
from scripts.benchmarks.cpu_peers.pairs import MIXED

if TYPE_CHECKING:
    from torch import Tensor

    from deployments.engine.request import Request
    from scripts.benchmarks.in_process.peft_baseline import PeftBaseline

_ONE_BY_ONE = 2  # requests of a block, one after the other: their speed does not depend on it
_SIDE, _COPIED = 384, 2 << 20  # of the probe: a matrix, and numbers
_PRODUCTS, _ATTEMPTS = 2, 6
_loaded: "tuple[PeftBaseline, list[Request]]"


def load(dtype: str, folders: Mapping[str, Path], question: str, output_tokens: int) -> None:
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


def probe_ms() -> float:
    """Return the milliseconds of some products of matrices and copies, on every core: the least of
    several attempts, which a short interruption does not change."""
    return min(_probed_ms() for _ in range(_ATTEMPTS))


def _probed_ms() -> float:
    import torch

    matrix, source, target = _probe()
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(matrix, matrix)
        target.copy_(source)
    return 1000 * (time.perf_counter() - started)


@functools.cache
def _probe() -> "tuple[Tensor, Tensor, Tensor]":
    import torch

    source = torch.zeros(_COPIED)
    return torch.ones(_SIDE, _SIDE), source, source.clone()
