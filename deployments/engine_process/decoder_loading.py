"""A plain description of a decoder -> the decoder, loaded onto its device."""

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch is imported once a decoder is to be loaded
    from deployments.engine.decoder_factory import Choice
    from deployments.engine.invariance import BatchInvariant
    from deployments.engine.model_loader import Dtype, Family
    from deployments.engine.model_runner import ModelRunner
    from deployments.engine.peft_decoder import PeftDecoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything that a decoder is made of, as plain data.

    path: the base model's folder.
    num_positions: of one answer with its prompt.
    adapters: folders of those that are to be served, by name; none of them is loaded yet.
    cpu_threads: None for every core that the process may use.
    """

    base_model: str
    path: str
    family: "Family"
    device: str
    dtype: "Dtype"
    quantization: Literal["auto", "none", "int8", "int4", "nf4"]
    choice: "Choice"
    max_rows: int
    num_positions: int
    max_adapters: int
    kv_memory_bytes: int | None
    cpu_threads: int | None
    batch_invariant: "BatchInvariant"
    adapters: Mapping[str, str]


def load_decoder(spec: DecoderSpec) -> "ModelRunner | PeftDecoder":
    """Load the base model and choose its decoder. Call it on the engine's thread.

    Raises:
        FastDecoderImpossible: `choice` is fast, or `batch_invariant` true; names what it cannot
            serve, or what cannot keep to it.
        OSError, ValueError: the folder lacks a file, or transformers cannot read it.
    """
    # On a CPU the fast decoder makes bytes of plain weights; on a GPU bitsandbytes loads them.
    on_cpu, quantization = spec.device == "cpu", spec.quantization
    loaded: Literal["none", "int8", "nf4"] = "none"
    if not on_cpu and (quantization == "int8" or quantization == "nf4"):
        loaded = quantization
    if loaded == "none":
        _leave_out_bitsandbytes()
    started = time.perf_counter()
    import torch

    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_loader import load_pretrained

    logger.info("torch, transformers and peft imported in %.1f s", time.perf_counter() - started)
    started = time.perf_counter()
    base = load_pretrained(
        Path(spec.path),
        spec.family,
        device=spec.device,
        dtype=spec.dtype,
        quantization=loaded,
    )
    limits = FastLimits(
        max_rows=spec.max_rows,
        num_positions=spec.num_positions,
        max_adapters=spec.max_adapters,
        kv_memory_bytes=spec.kv_memory_bytes,
        has_fixed_threads=spec.cpu_threads is not None,
    )
    folders = {name: Path(folder) for name, folder in spec.adapters.items()}
    weights = quantization if on_cpu and quantization != "nf4" else "none"
    decoder = build_decoder(
        base, spec.choice, limits, folders, weights=weights, batch_invariant=spec.batch_invariant
    )
    seconds, info = time.perf_counter() - started, decoder.info
    if info.weights.startswith(("int8", "int4")):
        torch.set_num_threads(1)  # the compiled step has threads of its own
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        *(spec.base_model, seconds, info.name, info.reason),
    )
    return decoder


def _leave_out_bitsandbytes() -> None:
    """Make bitsandbytes count as not installed in this process.

    PEFT and transformers import it whenever it is installed, which takes 2 s of every start.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
