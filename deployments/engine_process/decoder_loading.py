"""A plain description of a decoder -> the decoder, loaded onto its device."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch is imported once a decoder is to be loaded
    from deployments.engine.decoder_factory import Choice, Weights
    from deployments.engine.model_loader import Dtype, Family, Quantization
    from deployments.engine.model_runner import ModelRunner
    from deployments.engine.models.invariance import BatchInvariant
    from deployments.engine.models.kv_cache_dtype import KvCacheDtype
    from deployments.engine.peft_decoder import PeftDecoder

logger = logging.getLogger(__name__)

_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything that a decoder is made of, as plain data.

    path: the base model's folder.
    num_positions: of one answer with its prompt.
    prefill_tokens: that one step reads.
    adapters: folders of those that are to be served, by name; none of them is loaded yet.
    cpu_threads: None for every core that the process may use.
    """

    base_model: str
    path: str
    family: "Family"
    device: str
    dtype: "Dtype"
    quantization: Literal["auto", "none", "int8", "int4", "nf4", "fp8"]
    choice: "Choice"
    max_rows: int
    num_positions: int
    max_adapters: int
    prefill_tokens: int
    kv_memory_bytes: int | None
    kv_cache_dtype: "KvCacheDtype"
    cpu_threads: int | None
    batch_invariant: "BatchInvariant"
    adapters: Mapping[str, str]


def load_decoder(spec: DecoderSpec) -> "ModelRunner | PeftDecoder":
    """Load the base model and choose its decoder. Call it on the engine's thread.

    Raises:
        FastDecoderImpossible: `choice` is fast, and names what it cannot serve; the GPU lacks what
            the quantization needs; or something cannot keep to `batch_invariant` or
            `kv_cache_dtype`.
        OSError, ValueError: the folder lacks a file, transformers cannot read it, or the GPU is too
            small for one answer.
        MemoryError: it is too small for the weights.
    """
    # On a CPU the fast decoder makes bytes of plain weights; on a GPU they are quantised as they
    # are read, by bitsandbytes for the reference decoder alone.
    on_cpu, quantization = spec.device == "cpu", spec.quantization
    is_reference = spec.choice == "reference"
    loaded: Quantization = "none"
    if not on_cpu and quantization in ("int8", "nf4", "fp8"):
        loaded = quantization
    if on_cpu or not is_reference or (loaded == "none" and not _is_quantised(Path(spec.path))):
        _leave_out_bitsandbytes()
    started = time.perf_counter()
    import torch

    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_loader import load_pretrained

    logger.info("torch, transformers and peft imported in %.1f s", time.perf_counter() - started)
    if loaded == "fp8":
        require_fp8(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    started = time.perf_counter()
    limits = FastLimits(
        max_rows=spec.max_rows,
        num_positions=spec.num_positions,
        max_adapters=spec.max_adapters,
        kv_memory_bytes=spec.kv_memory_bytes,
        prefill_tokens=spec.prefill_tokens,
        has_fixed_threads=spec.cpu_threads is not None,
    )
    folders = {name: Path(folder) for name, folder in spec.adapters.items()}
    weights: Weights = "none"
    if quantization in ("auto", "none", "int8", "int4") and on_cpu:
        weights = quantization
    try:
        base = load_pretrained(
            Path(spec.path),
            spec.family,
            device=spec.device,
            dtype=spec.dtype,
            quantization=loaded,
            with_bitsandbytes=is_reference,
        )
        decoder = build_decoder(
            base,
            spec.choice,
            limits,
            folders,
            weights=weights,
            batch_invariant=spec.batch_invariant,
            kv_cache_dtype=spec.kv_cache_dtype,
        )
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the GPU is too small for the weights of base_model (quantization: {quantization}): "
            f"set quantization: nf4 or int8, or take a larger GPU ({error})"
        ) from None
    seconds, info = time.perf_counter() - started, decoder.info
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        *(spec.base_model, seconds, info.name, info.reason),
    )
    return decoder


def require_fp8(capability: tuple[int, int], name: str) -> None:
    """Refuse a GPU without instructions for fp8.

    Raises:
        FastDecoderImpossible: naming the GPU and what it can do instead.
    """
    from deployments.engine.errors import FastDecoderImpossible

    if capability < _FP8_CAPABILITY:
        raise FastDecoderImpossible(
            f"quantization: 'fp8' needs a GPU of compute capability 8.9 (Ada) or 9.0 (Hopper) and "
            f"later, and {name} has {capability[0]}.{capability[1]}: set quantization: int8, nf4 "
            "or none"
        )


def _is_quantised(folder: Path) -> bool:
    """Return whether the weights of a base model's folder are quantised."""
    return "quantization_config" in json.loads((folder / "config.json").read_bytes())


def _leave_out_bitsandbytes() -> None:
    """Make bitsandbytes count as not installed in this process.

    PEFT and transformers import it whenever it is installed, which takes 2 s of every start.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
