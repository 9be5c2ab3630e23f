"""Choose the decoder for a base model and its adapters, and say why.

Whatever the fast decoder cannot express goes to the reference decoder, with the reason: never a
wrong answer.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from deployments.engine.attention.kv_cache import plan_rows
from deployments.engine.decoder import DecoderInfo
from deployments.engine.lora.peft_reader import PeftReader
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.base import Model
from deployments.engine.models.llama import LlamaModel, unsupported_by_llama
from deployments.engine.models.t5 import T5Model, unsupported_by_t5
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import FastDecoderImpossible

logger = logging.getLogger(__name__)

Choice = Literal["auto", "fast", "reference"]


@dataclass(frozen=True, slots=True)
class FastLimits:
    """Bound the fast decoder.

    kv_memory_bytes: for keys and values of all rows; None: half of what is free on a GPU, enough
        for every row at full length on a CPU.
    """

    max_rows: int  # answers that decode together
    num_positions: int  # of the longest answer, prompt included
    max_adapters: int  # resident at the same time
    kv_memory_bytes: int | None = None


def build_decoder(
    base: Pretrained, choice: Choice, limits: FastLimits, adapters: Mapping[str, Path]
) -> ModelRunner | PeftDecoder:
    """Return the decoder for this base, without adapters loaded yet.

    Args:
        adapters: folders of those that are to be served, by name.

    Raises:
        FastDecoderImpossible: `choice` is fast; names what the fast decoder cannot do.
        ValueError: the budget for keys and values does not hold one answer.
    """
    if choice == "reference":
        return PeftDecoder(base, reason="engine.decoder is reference")
    reader = None
    obstacle = unsupported_base(base)
    if obstacle is None:
        reader = make_reader(base)
        obstacle = unsupported_adapter(reader, adapters)
    if reader is not None and obstacle is None:
        return _build_fast(base, limits, reader)
    if choice == "fast":
        raise FastDecoderImpossible(
            f"engine.decoder is fast, but {obstacle}: set it to auto or reference"
        )
    logger.warning("serving with the reference decoder: %s", obstacle)
    return PeftDecoder(base, reason=f"not the fast decoder, since {obstacle}")


def unsupported_base(base: Pretrained) -> str | None:
    """Return why the fast decoder cannot serve this base. Returns None if it can."""
    if base.quantization != "none":
        return f"the base is quantised to {base.quantization}"
    check = unsupported_by_llama if base.family == "causal" else unsupported_by_t5
    obstacle = check(base.model)
    if obstacle is None and base.family == "seq2seq" and base.decoder_start_id is None:
        return "the model names no decoder_start_token_id"
    return obstacle


def make_reader(base: Pretrained) -> PeftReader:
    """Return the reader of this base's adapters, on a copy of the base without weights."""
    with torch.device("meta"):
        return PeftReader(type(base.model)(base.model.config))


def unsupported_adapter(reader: PeftReader, adapters: Mapping[str, Path]) -> str | None:
    """Return which adapter the fast decoder cannot serve, and why. Returns None if it serves all.

    An adapter that PEFT cannot read either is not judged here: loading it names the problem.
    """
    for name, directory in adapters.items():
        try:
            problems = reader.unsupported(directory)
        except (OSError, ValueError) as error:
            logger.warning("adapter %s cannot be read: %s", name, error)
            continue
        if problems:
            listed = "; ".join(problems)
            return f"adapter '{name}' has features that the fast decoder cannot express: {listed}"
    return None


def _build_fast(base: Pretrained, limits: FastLimits, reader: PeftReader) -> ModelRunner:
    num_positions = limits.num_positions
    if base.family == "causal":
        num_positions = min(num_positions, base.model.config.max_position_embeddings)
    make = LlamaModel if base.family == "causal" else T5Model
    # Rows are multiples of 16 positions, and the tables of positions cover a whole row.
    model: Model = make(base.model, base.model.dtype, -(-num_positions // 16) * 16)
    capacities = _capacities(model, limits, num_positions)
    logger.info(
        "KV cache: %.0f MiB, rows of %s positions",
        sum(capacities) * model.kv_shape.bytes_per_position / 2**20,
        ", ".join(f"{capacities.count(c)} x {c}" for c in sorted(set(capacities))),
    )
    info = DecoderInfo(
        name="fast",
        reason=f"continuous batching; {base.dtype_name}: {base.dtype_reason}",
        device=str(model.device),
        dtype=str(model.kv_shape.dtype).removeprefix("torch."),
        num_positions=min(num_positions, max(capacities)),
        eos_ids=base.eos_ids,
        adapters=frozenset(),
    )
    max_adapters = limits.max_adapters
    return ModelRunner(
        base, model, info=info, capacities=capacities, reader=reader, max_adapters=max_adapters
    )


def _capacities(model: Model, limits: FastLimits, num_positions: int) -> tuple[int, ...]:
    size = model.kv_shape.bytes_per_position
    budget = limits.kv_memory_bytes
    if budget is None and model.device.type == "cuda":
        budget = torch.cuda.mem_get_info(model.device)[0] // 2
    elif budget is None:
        budget = limits.max_rows * (num_positions + 16) * size
    return plan_rows(limits.max_rows, num_positions, size, budget)
