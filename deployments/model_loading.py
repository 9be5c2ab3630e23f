"""Settings -> a model ready to serve: base model, every catalogued adapter, prompt format.

Runs inside a model replica, on the replica's device. This is where adapters/ and engine/ meet.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base_models import resolve_base_model
from adapters.catalog import load_catalog
from adapters.loading import check_catalogued, load_catalogued
from adapters.prompting import Message, encode_prompt
from deployments.calls import Turn
from deployments.engine.decoder import GroupDecoder, StepDecoder
from deployments.settings import Settings

if TYPE_CHECKING:  # torch is imported once the replica is to load
    from deployments.engine.selection import FastLimits

logger = logging.getLogger(__name__)

EncodePrompt = Callable[[Sequence[Turn], str | None], list[int]]


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """An adapter on the device, and how long it took to get there."""

    name: str
    specialty: str
    version: str
    load_s: float


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model replica serves with.

    `encode` turns turns, and the language to ask the answer in (None: leave it), into prompt ids.
    `skipped` names the catalogued adapters that this base cannot use, and why.
    """

    base_model: str
    decoder: StepDecoder | GroupDecoder
    encode: EncodePrompt
    adapters: tuple[ResidentAdapter, ...]
    skipped: Mapping[str, str]


def load_model(settings: Settings, device: str) -> LoadedModel:
    """Load everything onto `device` ("cpu" or "cuda").

    Raises:
        BaseModelError, CatalogError, AdapterError: naming the file and the mend.
        FastDecoderImpossible: `decoder: fast`, and what stands in its way.
    """
    started = time.perf_counter()
    if settings.quantization == "none":
        _leave_out_bitsandbytes()
    from deployments.engine.fast import FastDecoder
    from deployments.engine.pretrained import load_pretrained
    from deployments.engine.selection import build_decoder

    logger.info("torch, transformers and peft imported in %.1f s", time.perf_counter() - started)
    started = time.perf_counter()
    resolved = resolve_base_model(settings.base_model_or_dir, progress=False)
    base = load_pretrained(
        resolved.path,
        resolved.family,
        device=device,
        dtype=settings.engine.dtype,
        quantization=settings.quantization,
    )
    catalog = load_catalog(settings.catalog_dir)
    served = check_catalogued(catalog, settings.base_model, tensors=False)
    decoder = build_decoder(
        base,
        settings.engine.decoder,
        fast_limits(settings, len(served)),
        {entry.name: catalog.folder(entry) for entry in served},
    )
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        resolved.name,
        time.perf_counter() - started,
        decoder.info.name,
        decoder.info.reason,
    )
    target = _TimedTarget(decoder.load_adapter)
    load_catalogued(catalog, settings.base_model, target)
    if isinstance(decoder, FastDecoder):
        decoder.warm_up()
    entry = catalog.base_model(settings.base_model, family=resolved.family)

    def encode(turns: Sequence[Turn], answer_language: str | None) -> list[int]:
        return encode_prompt(
            entry.prompt_format,
            [Message(turn.role, turn.content) for turn in turns],
            tokenizer=decoder.tokenizer,
            system_line=entry.system_line,
            answer_language=answer_language,
        )

    adapters = tuple(
        ResidentAdapter(a.name, a.specialty, a.version, target.seconds[a.name])
        for a in catalog.adapters_for(settings.base_model)
    )
    skipped = catalog.skipped(settings.base_model)
    return LoadedModel(settings.base_model, decoder, encode, adapters, skipped)


def fast_limits(settings: Settings, num_adapters: int) -> "FastLimits":
    """Sizes of the fast decoder; the catalogue's adapters always find room."""
    from deployments.engine.selection import FastLimits

    engine = settings.engine
    return FastLimits(
        max_rows=engine.max_rows,
        num_positions=engine.max_input_tokens + engine.max_output_tokens,
        max_adapters=max(engine.max_adapters, num_adapters),
        kv_memory_bytes=None if engine.kv_memory_mib is None else engine.kv_memory_mib * 2**20,
    )


def _leave_out_bitsandbytes() -> None:
    """PEFT and transformers import it whenever it is installed, for 2 s of a start that does not
    need it. An entry of None makes it count as not installed in this process."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


class _TimedTarget:
    """Passes adapters on to the decoder and keeps how long each took, in seconds."""

    def __init__(self, load: Callable[[str, Path], None]) -> None:
        self._load = load
        self.seconds: dict[str, float] = {}

    def load_adapter(self, name: str, directory: Path) -> None:
        started = time.perf_counter()
        self._load(name, directory)
        self.seconds[name] = time.perf_counter() - started
