"""Choose the decoder for a base model and its adapters, say why, and plan its rows.

Whatever the fast decoder cannot express goes to the reference decoder, with the reason: never a
wrong answer.
"""

import functools
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from deployments.engine.attention.row_plan import full_length
from deployments.engine.attention.rows_of_model import longest_prefill, plan_rows_of
from deployments.engine.decoder import DecoderInfo
from deployments.engine.detokenizer import hidden_ids
from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.lora.peft_reader import PeftReader, make_reader, unsupported_adapter
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import SPARE_SLOTS, ModelRunner
from deployments.engine.models.architectures import describe
from deployments.engine.models.base import Model, TorchBatches
from deployments.engine.models.choice import make_torch_model, unsupported_base
from deployments.engine.models.invariance import BatchInvariant, make_invariant, refuse_reference
from deployments.engine.models.kv_cache_dtype import (
    KvCacheDtype,
    keep_keys_values,
    refuse_reference_int8,
)
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.structured.vocabulary import refused_features

logger = logging.getLogger(__name__)

Choice = Literal["auto", "fast", "reference"]
Weights = Literal["auto", "int8", "int4", "none"]

_BITS: dict[Weights, int] = {"int8": 8, "int4": 4}  # of what the compiled step keeps
_MOST_THREADS = 16  # that a step of eight-bit weights takes without being asked to


@dataclass(frozen=True, slots=True)
class FastLimits:
    """Bound the fast decoder.

    kv_memory_bytes: for keys and values of all rows; None: enough for every row at full length; on
        a GPU at most what is left beside all else (attention/memory_plan.py), on a CPU at most half
        of what is free.
    prefill_tokens: of one step.
    has_fixed_threads: a step runs on as many as torch, even where fewer would be faster.
    """

    max_rows: int  # answers that decode together
    num_positions: int  # of the longest answer, prompt included
    max_adapters: int  # resident at the same time
    kv_memory_bytes: int | None = None
    prefill_tokens: int = 4096
    has_fixed_threads: bool = True


def build_decoder(
    base: Pretrained,
    choice: Choice,
    limits: FastLimits,
    adapters: Mapping[str, Path],
    *,
    weights: Weights = "none",
    batch_invariant: BatchInvariant = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
) -> ModelRunner | PeftDecoder:
    """Return the decoder for this base, without adapters loaded yet.

    Args:
        adapters: folders of those that are to be served, by name.
        weights: int8, int4: products of bytes on a CPU, with weights of eight or four bits; auto:
            eight, where they are faster than torch.
        batch_invariant: whether logits may not depend on what is computed beside them.
        kv_cache_dtype: of keys and values.

    Raises:
        FastDecoderImpossible: `choice` is fast; names what the fast decoder cannot do. `weights` is
            int8 or int4, or `kv_cache_dtype` is int8, and this base cannot be served with it.
        ValueError: the budget for keys and values does not hold one answer.
    """
    if choice == "reference" and weights in _BITS:
        raise FastDecoderImpossible(
            f"quantization: {weights} on a CPU is the fast decoder's: set engine.decoder to auto "
            "or fast"
        )
    if choice == "reference":
        return _reference(base, "engine.decoder is reference", batch_invariant, kv_cache_dtype)
    reader, obstacle = None, unsupported_base(base, _num_positions(base, limits))
    if obstacle is None:
        reader = make_reader(base)
        obstacle = unsupported_adapter(reader, adapters)
    if reader is not None and obstacle is None:
        chosen = choose_weights(base, weights, limits)
        if chosen.in_bytes:
            reader, chosen = _for_bytes(base, chosen, weights, adapters, reader)
        return _build_fast(base, limits, reader, chosen, adapters, batch_invariant, kv_cache_dtype)
    if choice == "fast":
        raise FastDecoderImpossible(
            f"engine.decoder is fast, but {obstacle}: set it to auto or reference"
        )
    if weights in _BITS:
        raise FastDecoderImpossible(
            f"quantization is {weights}, which on a CPU the fast decoder serves alone, but "
            f"{obstacle}: set quantization: auto or none"
        )
    logger.warning("serving with the reference decoder: %s", obstacle)
    reason = f"not the fast decoder, since {obstacle}"
    return _reference(base, reason, batch_invariant, kv_cache_dtype)


def _reference(
    base: Pretrained, reason: str, batch_invariant: BatchInvariant, kv_cache_dtype: KvCacheDtype
) -> PeftDecoder:
    refuse_reference(batch_invariant)
    refuse_reference_int8(kv_cache_dtype)
    return PeftDecoder(base, reason=reason)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Hold how the weights are kept, and why."""

    in_bytes: bool
    reason: str
    bits: int = 8


def choose_weights(base: Pretrained, wanted: Weights, limits: FastLimits) -> _Weights:
    """Return how the fast decoder keeps the weights of this base.

    Raises:
        FastDecoderImpossible: int8 or int4 is wanted, and this base cannot be served with it.
    """
    if wanted == "none" or base.model.device.type != "cpu" or base.quantization != "none":
        return _Weights(False, f"{base.dtype_name}: {base.dtype_reason}")
    obstacle = unsupported_in_bytes(base, _num_positions(base, limits))
    if wanted in _BITS:
        if obstacle is not None:
            raise FastDecoderImpossible(
                f"quantization is {wanted}, but {obstacle}: set quantization: auto or none"
            )
        return _Weights(True, f"{wanted}: asked for", _BITS[wanted])
    if obstacle is None and not base.is_dtype_free:
        obstacle = f"engine.dtype asks for {base.dtype_name}"
    if obstacle is None:
        obstacle = _cannot_compile()
    if obstacle is None:
        return _measured(base, limits)
    return _Weights(False, f"{base.dtype_name}: {base.dtype_reason}; not int8, since {obstacle}")


def _for_bytes(
    base: Pretrained,
    chosen: _Weights,
    wanted: Weights,
    adapters: Mapping[str, Path],
    reader: PeftReader,
) -> tuple[PeftReader, _Weights]:
    """Return the reader and the weights of a base that could be served in bytes.

    The compiled step adds to the layers only: an adapter of the embedding or of the output layer,
    or one that rescales (DoRA), keeps the torch model.

    Raises:
        FastDecoderImpossible: int8 or int4 is wanted, and an adapter rules it out.
    """
    narrow = make_reader(base, in_bytes=True)
    obstacle = unsupported_adapter(narrow, adapters)
    if obstacle is None:
        return narrow, chosen
    if wanted in _BITS:
        raise FastDecoderImpossible(
            f"quantization is {wanted}, but {obstacle}: set quantization: auto or none"
        )
    reason = f"{base.dtype_name}: {base.dtype_reason}; not int8, since {obstacle}"
    return reader, _Weights(False, reason)


def _measured(base: Pretrained, limits: FastLimits) -> _Weights:
    """Return what is faster here: eight bits, or the torch model as it was loaded."""
    from deployments.engine.cpu.self_test import POSITIONS, is_faster_in_bytes

    in_bytes, in_torch = (
        functools.partial(_make_model, base, POSITIONS, _Weights(kind, ""), limits)
        for kind in (True, False)
    )
    is_faster, reason = is_faster_in_bytes(base.model, in_bytes, in_torch, base.dtype_name)
    if is_faster:
        return _Weights(True, f"int8: {reason}")
    return _Weights(False, f"{base.dtype_name}: {base.dtype_reason}; not int8, since {reason}")


def _cannot_compile() -> str | None:
    """Return why the step of eight-bit weights cannot be compiled here. None if it can."""
    from deployments.engine.cpu.step import compile_step

    try:
        compile_step()
    except Exception as error:  # whatever Numba raises: the torch model serves as well
        logger.exception("the step of eight-bit weights cannot be compiled")
        return f"Numba cannot compile its step here ({type(error).__name__}; see the log)"
    return None


def unsupported_in_bytes(base: Pretrained, num_positions: int | None = None) -> str | None:
    """Return why a CPU cannot serve this base with weights of eight bits. None if it can.

    Args:
        num_positions: of the longest answer, prompt included; None: it is not known.
    """
    if base.family != "causal":
        return "the base is an encoder-decoder"
    if are_fused("cpu"):
        return "Triton's interpreter runs the steps"
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    about = describe(base.model, num_positions)
    if about.beyond_llama:
        has = ", ".join(about.beyond_llama)
        return (
            f"only plain Llama layers are compiled, and this {type(base.model).__name__} has {has}"
        )
    if about.activation != "silu":
        return f"hidden_act is {about.activation!r}; only 'silu' is compiled"
    if about.head_dim % 16:
        return f"its heads have {about.head_dim} dimensions, no multiple of 16"
    return None


def _num_threads(limits: FastLimits) -> int:
    """Return those of torch, or fewer: a few cores use all of the memory's bandwidth."""
    most = torch.get_num_threads()
    return most if limits.has_fixed_threads else min(most, _MOST_THREADS)


def _make_model(
    base: Pretrained, num_positions: int, weights: _Weights, limits: FastLimits, model: Any
) -> Model:
    """Return our model with the weights of `model`, which is the base's or of its kind."""
    if weights.in_bytes:
        from deployments.engine.cpu.llama import CompiledLlama

        return CompiledLlama(
            model,
            num_positions,
            _num_threads(limits),
            bits=weights.bits,
            chooses_threads=not limits.has_fixed_threads,
        )
    return make_torch_model(base, model, num_positions)


def _build_fast(
    base: Pretrained,
    limits: FastLimits,
    reader: PeftReader,
    weights: _Weights,
    adapters: Mapping[str, Path],
    batch_invariant: BatchInvariant,
    kv_cache_dtype: KvCacheDtype,
) -> ModelRunner:
    num_positions = _num_positions(base, limits)
    if num_positions < limits.num_positions:
        logger.warning(
            "%d positions are asked for (engine.max_input_tokens and max_output_tokens); the base "
            "has %d: longer prompts and answers are refused",
            limits.num_positions,
            num_positions,
        )
    # Rows are multiples of ALIGNMENT positions, and the tables of positions cover a whole row.
    model = _make_model(base, full_length(num_positions), weights, limits, base.model)
    keep_keys_values(model, kv_cache_dtype)
    rows = plan_rows_of(
        model,
        (reader.shapes(folder) for folder in adapters.values()),
        max_rows=limits.max_rows,
        num_positions=num_positions,
        num_slots=limits.max_adapters + SPARE_SLOTS,
        prefill_tokens=limits.prefill_tokens,
        budget=limits.kv_memory_bytes,
        is_quantised=base.quantization != "none",
    )
    invariance = make_invariant(model, batch_invariant)
    capacities, shape = rows.capacities, model.kv_shape
    size = sum(capacities) * shape.bytes_per_position / 2**20
    logger.info("KV cache: %.0f MiB in %s; rows: %s", size, shape.kept_in, rows.report())
    in_torch = isinstance(model, TorchBatches)
    threads = torch.get_num_threads() if in_torch else _num_threads(limits)
    info = DecoderInfo(
        name="fast",
        reason=f"continuous batching; {weights.reason}",
        device=str(model.device),
        dtype=str(shape.dtype).removeprefix("torch."),
        num_positions=min(num_positions, max(capacities)),
        eos_ids=base.eos_ids,
        adapters=frozenset(),
        hidden_ids=hidden_ids(base.tokenizer),
        refuses=refused_features(base),
        side_positions=base.side_positions,
        forces_end=base.forced.last is not None,
        num_token_ids=base.num_token_ids,
        weights=weights.reason,
        batch_invariant=invariance.is_on,
        batch_invariant_reason=invariance.reason,
        threads=threads if model.device.type == "cpu" else None,
        kv_cache_dtype=shape.kept_in,
        rows=rows.report(),
    )
    if weights.in_bytes:
        torch.set_num_threads(1)  # the step has threads of its own, which torch's would delay
    return ModelRunner(
        base,
        model,
        info=info,
        capacities=capacities,
        reader=reader,
        max_adapters=limits.max_adapters,
        num_mixtures=rows.num_mixtures,
        prefill_tokens=longest_prefill(model, limits.prefill_tokens, num_positions),
    )


def _num_positions(base: Pretrained, limits: FastLimits) -> int:
    """Return the positions of the longest answer, prompt included, that this base can write."""
    if base.family == "causal":
        longest: int = base.model.config.max_position_embeddings
        return min(limits.num_positions, longest)
    return min(limits.num_positions, 2 * (base.side_positions or limits.num_positions))
