"""Time one layer of the base's kind on each path at the start: bytes, compiled, or torch."""

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.cpu import intrinsics
from deployments.engine.models.base import Model

logger = logging.getLogger(__name__)

ROWS = (1, 8)  # of the steps that are timed
POSITIONS = 64  # of each row
_STEPS, _WARM_UP = 8, 2  # of each number of rows
_MOST_S = 0.25  # of all timed steps: a busy or slow machine takes fewer
_REST_S = 0.03  # before a path's first step: libgomp's threads spin for some milliseconds
_MOST_HIDDEN, _MOST_INNER = 1024, 4096  # a larger base is timed at these sizes

Make = Callable[[Any], Model]


def is_faster_in_bytes(
    model: Any, in_bytes: Make, in_torch: Make, dtype_name: str
) -> tuple[bool, str]:
    """Return whether steps with eight-bit weights are at least as fast as torch's, and why.

    Where they cannot be timed, the processor's instructions decide.
    """
    makers = {"int8": in_bytes, dtype_name: in_torch}
    try:
        found = step_times(model, makers)
        if found["int8"] > found[dtype_name] and intrinsics.byte_instructions() is not None:
            again = step_times(model, makers)  # rare on such a processor, or something disturbed
            found = {name: min(found[name], again[name]) for name in makers}
    except Exception as error:  # whatever it is: the start goes on
        logger.exception("a layer with eight-bit weights could not be timed")
        return _by_instructions(error)
    ours, torchs = found["int8"], found[dtype_name]
    return ours <= torchs, (
        f"a layer takes {ours:.2f} ms with int8 and {torchs:.2f} ms with {dtype_name} (steps of "
        "one row and of eight together, measured at this start)"
    )


def _by_instructions(error: Exception) -> tuple[bool, str]:
    instructions = intrinsics.byte_instructions()
    why = f"its speed could not be measured here ({type(error).__name__}; see the log)"
    if instructions is not None:
        return True, f"this processor has {instructions}; {why}"
    return False, f"{why}, and this processor has no instructions for bytes (AVX2 or VNNI)"


@torch.inference_mode()
def step_times(model: Any, makers: Mapping[str, Make]) -> dict[str, float]:
    """Return each path's milliseconds for a step of one layer: one row's and eight rows' together.

    Each path gets its own layer of random weights, in the sizes of `model` or the largest that take
    no time to make. One path is timed after the other, with a rest between them: the threads of
    the one before still spin for a while, and would take the cores from the next. What counts is
    the median of each.

    Args:
        model: of transformers; it is left alone.
        makers: name of a path -> makes its model of a transformers' model.
    """
    paths = {name: _Steps(make(_one_layer(model))) for name, make in makers.items()}
    times: dict[tuple[str, int], list[float]] = {(n, rows): [] for n in paths for rows in ROWS}
    for name, path in paths.items():
        time.sleep(_REST_S)
        stop = time.perf_counter() + _MOST_S / len(paths)
        for step in range(_WARM_UP + _STEPS):
            if step > _WARM_UP and time.perf_counter() > stop:
                break
            for rows in ROWS:
                seconds = path.run(rows, step)
                if step >= _WARM_UP:
                    times[name, rows].append(seconds)
    return {
        name: 1e3 * sum(statistics.median(times[name, rows]) for rows in ROWS) for name in paths
    }


class _Steps:
    """Run decode steps of a model of one layer."""

    def __init__(self, model: Model) -> None:
        self._model = model
        shape = model.kv_shape
        self._cache = KvCache(
            [POSITIONS] * max(ROWS),
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=model.device,
        )

    def run(self, rows: int, position: int) -> float:
        """Return the seconds of a step."""
        positions = [position] * rows
        started = time.perf_counter()
        batch = self._model.decode_batch(
            self._cache, torch.ones(rows, dtype=torch.long), range(rows), positions, [0] * rows
        )
        self._model.decode(self._cache, batch, None)
        return time.perf_counter() - started


def _one_layer(model: Any) -> Any:
    """Return a model of transformers with one layer of this model's kind, and random weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size = 1, 64
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    if config.hidden_size > _MOST_HIDDEN:
        config.head_dim = model.model.layers[0].self_attn.head_dim
        shared = config.num_attention_heads // config.num_key_value_heads
        config.num_key_value_heads = max(1, _MOST_HIDDEN // config.head_dim // shared)
        config.num_attention_heads = shared * config.num_key_value_heads
        config.hidden_size = _MOST_HIDDEN
    config.intermediate_size = min(config.intermediate_size, _MOST_INNER)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        return type(model)(config).eval()
    finally:
        torch.set_default_dtype(previous)
