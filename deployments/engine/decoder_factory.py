"""Which decoder serves a base model and its adapters, and why. Never a wrong answer: whatever the
fast decoder cannot express goes to the reference decoder, with the reason."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from deployments.engine.attention.kv_cache import plan_rows
from deployments.engine.lora.peft_reader import PeftReader, unsupported_features
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.base import Model
from deployments.engine.models.llama import LlamaModel, unsupported_by_llama
from deployments.engine.models.t5 import T5Model, unsupported_by_t5
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import EngineError

logger = logging.getLogger(__name__)

Choice = Literal["auto", "fast", "reference"]


class FastDecoderImpossible(EngineError):
    """`decoder: fast` was asked for, and this model or an adapter cannot have it."""

    code = "fast_decoder_impossible"


@dataclass(frozen=True, slots=True)
class FastLimits:
    """Sizes of the fast decoder.

    kv_memory_bytes: for keys and values of all rows; None: half of what is free on a GPU, enough
        for every row at full length on a CPU.
    """

    max_rows: int
    num_positions: int  # prompt and answer at their longest
    max_adapters: int
    kv_memory_bytes: int | None = None


def build_decoder(
    base: Pretrained, choice: Choice, limits: FastLimits, adapters: Mapping[str, Path]
) -> ModelRunner | PeftDecoder:
    """The decoder for this base, without adapters loaded yet.

    Args:
        adapters: folders of those that are to be served, by name.

    Raises:
        FastDecoderImpossible: naming what stands in the way.
        ValueError: the key/value memory does not hold one answer.
    """
    if choice == "reference":
        return PeftDecoder(base, reason="engine.decoder is reference")
    obstacle = unsupported_by_fast(base, adapters)
    if obstacle is None:
        return _build_fast(base, limits)
    if choice == "fast":
        raise FastDecoderImpossible(
            f"engine.decoder is fast, but {obstacle}: set it to auto or reference"
        )
    logger.warning("serving with the reference decoder: %s", obstacle)
    return PeftDecoder(base, reason=f"not the fast decoder, since {obstacle}")


def unsupported_by_fast(base: Pretrained, adapters: Mapping[str, Path]) -> str | None:
    """What keeps the fast decoder from serving this base with these adapters; None: nothing."""
    if base.quantization != "none":
        return f"the base is quantised to {base.quantization}"
    why = unsupported_by_llama if base.family == "causal" else unsupported_by_t5
    obstacle = why(base.model)
    if obstacle is not None:
        return obstacle
    if base.family == "seq2seq" and base.decoder_start_id is None:
        return "the model names no decoder_start_token_id"
    for name, directory in adapters.items():
        features = unsupported_features(directory)
        if features:
            return f"adapter '{name}' has {'; '.join(features)}"
    return None


def _build_fast(base: Pretrained, limits: FastLimits) -> ModelRunner:
    model = base.model
    num_positions = limits.num_positions
    if base.family == "causal":
        num_positions = min(num_positions, model.config.max_position_embeddings)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    make = LlamaModel if base.family == "causal" else T5Model
    # Rows are multiples of 16 positions, and the tables of positions cover a whole row.
    network: Model = make(model, model.dtype, -(-num_positions // 16) * 16)
    capacities = _capacities(network, limits, num_positions)
    logger.info(
        "key/value memory: %.0f MiB, rows of %s positions",
        sum(capacities) * network.kv_shape.bytes_per_position / 2**20,
        ", ".join(f"{capacities.count(c)} x {c}" for c in sorted(set(capacities))),
    )
    return ModelRunner(
        base,
        network,
        capacities=capacities,
        num_positions=num_positions,
        reader=PeftReader(skeleton),
        max_adapters=limits.max_adapters,
        reason=f"continuous batching; {base.dtype_name}: {base.dtype_reason}",
    )


def _capacities(network: Model, limits: FastLimits, num_positions: int) -> tuple[int, ...]:
    size = network.kv_shape.bytes_per_position
    budget = limits.kv_memory_bytes
    if budget is None and network.device.type == "cuda":
        budget = torch.cuda.mem_get_info(network.device)[0] // 2
    elif budget is None:
        budget = limits.max_rows * (num_positions + 16) * size
    return plan_rows(limits.max_rows, num_positions, size, budget)
