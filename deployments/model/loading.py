"""Settings -> a model ready to serve: base model, every catalogued adapter, prompt format.

Runs inside a model replica, on the replica's device. This is where adapters/ and engine/ meet.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from adapters.base_models import resolve_base_model
from adapters.prompting import Message, encode_prompt
from adapters.seed_check import AdapterError
from adapters.store import AdapterStore, open_store
from deployments.engine.decoder import GroupDecoder, StepDecoder
from deployments.messages import Turn
from deployments.model.adapter_manager import AdapterManager
from deployments.model.host_memory import HostCache
from deployments.settings import Settings

if TYPE_CHECKING:  # torch is imported once the replica is to load
    from deployments.engine.decoder_factory import FastLimits

logger = logging.getLogger(__name__)

EncodePrompt = Callable[[Sequence[Turn], str | None], list[int]]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model replica serves with.

    `encode` turns turns, and the language to ask the answer in (None: leave it), into prompt ids.
    `holder` has the adapters; None: this model has none and takes none.
    """

    base_model: str
    decoder: StepDecoder | GroupDecoder
    encode: EncodePrompt
    holder: AdapterManager | None = None


def load_model(settings: Settings, device: str) -> LoadedModel:
    """Load everything onto `device` ("cpu" or "cuda").

    Raises:
        BaseModelError, CatalogError, AdapterError: naming the file and the mend.
        FastDecoderImpossible: `decoder: fast`, and what stands in its way.
    """
    started = time.perf_counter()
    if settings.quantization == "none":
        _leave_out_bitsandbytes()
    from deployments.engine.decoder_factory import build_decoder
    from deployments.engine.model_loader import load_pretrained
    from deployments.engine.model_runner import ModelRunner

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
    store = open_adapter_store(settings)
    folders = _folders_in_service(store, settings.base_model)
    limits = fast_limits(settings, len(folders))
    decoder = build_decoder(base, settings.engine.decoder, limits, folders)
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        resolved.name,
        time.perf_counter() - started,
        decoder.info.name,
        decoder.info.reason,
    )
    holder = AdapterManager(
        store,
        settings.base_model,
        decoder,
        capacity=limits.max_adapters,
        host=HostCache(settings.engine.adapter_memory_mib * 2**20),
    )
    _first_sync(holder)
    if isinstance(decoder, ModelRunner):
        decoder.warm_up()
    entry = store.seed.base_model(settings.base_model, family=resolved.family)

    def encode(turns: Sequence[Turn], answer_language: str | None) -> list[int]:
        return encode_prompt(
            entry.prompt_format,
            [Message(turn.role, turn.content) for turn in turns],
            tokenizer=decoder.tokenizer,
            system_line=entry.system_line,
            answer_language=answer_language,
        )

    return LoadedModel(settings.base_model, decoder, encode, holder)


def open_adapter_store(settings: Settings) -> AdapterStore:
    """The live catalogue that `settings` name.

    Raises:
        CatalogError, StorageError: naming the file and the mend.
    """
    cache = platformdirs.user_cache_path("polyclinic") / "adapters"
    return open_store(settings.adapter_state, settings.catalog_dir, cache)


def _folders_in_service(store: AdapterStore, base_model: str) -> dict[str, Path]:
    """Return where the adapters of this base lie; damaged ones are left out, and named."""
    catalog = store.read()
    folders = {}
    for adapter in catalog.in_service(base_model):
        try:
            folders[adapter.name] = store.folder(adapter.stable)
        except (OSError, ValueError) as error:
            logger.error("adapter %s: %s", adapter.name, error)
    return folders


def _first_sync(holder: AdapterManager) -> None:
    """Make the adapters resident. Of a catalogue that nobody changed, every one has to be good."""
    report = holder.sync()
    problems = [f"adapter '{a['name']}': {a['error']}" for a in report["adapters"] if a["error"]]
    if problems and not report["revision"]:
        raise AdapterError(problems)


def fast_limits(settings: Settings, num_adapters: int) -> "FastLimits":
    """Sizes of the fast decoder; the catalogue's adapters always find room."""
    from deployments.engine.decoder_factory import FastLimits

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
