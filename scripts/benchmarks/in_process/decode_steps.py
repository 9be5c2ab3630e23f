"""Measure one decode step by batch size, and its memory floor.

Steps without and with adapters are timed in turn, in either order, and each run is compared with
its neighbour: on a CPU single runs differ by several per cent, since other guests of the host share
its memory. What adapters cost is the median of these pairs, with an interval of 95 %. The floor is
what a step must read once (decoder weights, output layer, keys and values at the mean context) over
the bandwidth of a large copy on the same device, measured in the same run.
"""

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from deployments.engine.model_runner import ModelRunner
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.scheduler import Scheduler

_WARM_UP = 6
_LEAST_PAIRS, _MOST_PAIRS = 5, {"cuda": 5, "cpu": 40}
_PLAIN_RUNS = 3
_MOST_S = 30.0  # of all pairs of a batch size, where they are more than the least
_MOST_STEPS = {"cuda": 1000, "cpu": 50}  # of a run


def weight_bytes(model: Any) -> int:
    """Return the bytes of weights that a decode step reads; call it before a decoder takes them."""
    read: int = sum(
        parameter.nbytes for name, parameter in model.named_parameters() if _is_read(name)
    )
    for name, module in model.named_modules():
        if isinstance(module, QuantisedLinear) and _is_read(f"{name}."):
            read += int(module.quantised.num_bytes)
    head: torch.Tensor = model.lm_head.weight
    return read + head.nbytes


def _is_read(name: str) -> bool:
    is_cross_kv = ".EncDecAttention.k." in name or ".EncDecAttention.v." in name
    return name.startswith(("decoder.block.", "model.layers.")) and not is_cross_kv


def step_times(
    decoder: ModelRunner,
    adapters: Sequence[str | None],
    *,
    num_rows: Sequence[int],
    prompt_tokens: int,
    num_steps: int,
    weights: int,
    without_residents: Mapping[int, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Return one line for each batch size; milliseconds are means over `num_steps` steps (on a CPU
    at most 50), and the medians of some runs.

    Args:
        without_residents: what `plain_steps` returned, if it was asked.
    """
    num_steps = min(num_steps, _MOST_STEPS[decoder.device.type])
    bandwidth = _copy_bandwidth(decoder.device)
    bytes_per_position = decoder.num_kv_bytes / (sum(decoder.capacities) + 16)
    context = prompt_tokens + (num_steps + _WARM_UP) / 2
    lines = []
    for rows in num_rows:
        floor_ms = 1000 * (weights + rows * context * bytes_per_position) / bandwidth
        pairs = _in_turn(decoder, rows, adapters, prompt_tokens, num_steps)
        plain_ms, step_ms = (statistics.median(taken) for taken in zip(*pairs, strict=True))
        cost, *interval = median_interval([adapted / plain - 1 for plain, adapted in pairs])
        lines.append(
            {
                "rows": rows,
                "step_ms": round(step_ms, 3),
                "floor_ms": round(floor_ms, 3),
                "floor_over_step": round(floor_ms / step_ms, 3),
                "tokens_per_s": round(1000 * rows / step_ms),
                "step_ms_without_lora": round(plain_ms, 3),
                "lora_cost": round(cost, 4),
                "lora_cost_interval": [round(end, 4) for end in interval],
                "lora_cost_pairs": len(pairs),
            }
        )
        if rows in without_residents:
            least = without_residents[rows]
            lines[-1]["step_ms_none_resident"] = round(least, 3)
            lines[-1]["lora_cost_over_none_resident"] = round(step_ms / least - 1, 4)
    return lines


def plain_steps(
    decoder: ModelRunner, *, num_rows: Sequence[int], prompt_tokens: int, num_steps: int
) -> dict[int, float]:
    """Return the milliseconds of a step by batch size, before any adapter is resident.

    Empty on a CPU, where a step none of whose rows has an adapter computes nothing for adapters. A
    captured step on a GPU runs their kernels once one was loaded, whoever asks.
    """
    if decoder.device.type == "cpu":
        return {}
    return {
        rows: statistics.median(
            time_steps(decoder, rows, [None], prompt_tokens, num_steps) for _ in range(_PLAIN_RUNS)
        )
        for rows in num_rows
    }


def _in_turn(
    decoder: ModelRunner,
    rows: int,
    adapters: Sequence[str | None],
    prompt_tokens: int,
    num_steps: int,
) -> list[tuple[float, float]]:
    """Return pairs of a step's milliseconds without and with adapters; either begins in turn."""
    sides: tuple[Sequence[str | None], ...] = ([None], adapters)
    pairs: list[tuple[float, float]] = []
    stop = time.perf_counter() + _MOST_S
    while len(pairs) < _MOST_PAIRS[decoder.device.type]:
        if len(pairs) >= _LEAST_PAIRS and time.perf_counter() > stop:
            break
        order = (0, 1) if len(pairs) % 2 == 0 else (1, 0)
        taken = {n: time_steps(decoder, rows, sides[n], prompt_tokens, num_steps) for n in order}
        pairs.append((taken[0], taken[1]))
    return pairs


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the values between which it lies with at least 95 %: the sign test's,
    whatever the distribution. Of fewer than six values they are the least and the largest.
    """
    ordered, count = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(count, k) / 2**count for k in range(count))
    outside = max(sum(tail <= 0.025 for tail in tails) - 1, 0)  # on either side
    return statistics.median(ordered), ordered[outside], ordered[count - 1 - outside]


def time_steps(
    decoder: ModelRunner,
    num_rows: int,
    adapters: Sequence[str | None],
    prompt_tokens: int,
    num_steps: int,
) -> float:
    """Return the milliseconds of a step."""
    scheduler = Scheduler(
        decoder.capacities,
        prefill_tokens=num_rows * prompt_tokens,
        can_split_prompts=decoder.can_split_prompts,
    )
    sampling = SamplingParams(num_steps + _WARM_UP)
    prompt = tuple(3 + i % 97 for i in range(prompt_tokens))
    for i in range(num_rows):
        scheduler.add(Request("r", prompt, adapters[i % len(adapters)], sampling), 0.0)
    started = 0.0
    for step in range(num_steps + _WARM_UP):
        plan = scheduler.schedule(0.0)
        for job in plan.admitted:
            assert job.row is not None, "admitted without a row"
            decoder.set_adapter(job.row, job.request.adapter)
        pending = decoder.step(plan)
        if step == _WARM_UP - 1:
            pending.wait()
            started = time.perf_counter()
    pending.wait()
    milliseconds = 1000 * (time.perf_counter() - started) / num_steps
    decoder.reset()
    return milliseconds


def _copy_bandwidth(device: torch.device) -> float:
    """Return the bytes a second of a copy, reads and writes counted."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        _synchronise(device)
        started = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        _synchronise(device)
        best = max(best, 8 * size / (time.perf_counter() - started))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
