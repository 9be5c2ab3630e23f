"""Settings -> a model ready to serve: base model, decoder, prompt format, and its adapters.

Runs on the engine's thread of a model replica. This is where adapters/ and engine/ meet.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base_models import resolve_base_model
from adapters.loading import AdapterError, check_catalogued
from adapters.prompting import Message, encode_prompt
from adapters.store import AdapterStore
from deployments.engine.decoder import GroupDecoder, StepDecoder
from deployments.model.adapter_manager import AdapterManager
from deployments.model.decoder_tasks import RunBetweenSteps
from deployments.model.host_cache import HostCache
from deployments.replica import open_adapter_store
from deployments.settings import Settings

if TYPE_CHECKING:  # torch is imported once the replica is to load
    from deployments.engine.decoder_factory import FastLimits

logger = logging.getLogger(__name__)

EncodePrompt = Callable[[Sequence[Message], str | None], list[int]]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model replica serves with.

    encode: messages, and the language to ask the answer in (None to leave it) -> prompt ids.
    make_manager: gives the model its adapters once the engine runs; None if it takes none.
    warm_up: what the decoder prepares between its first adapters and its first request.
    """

    base_model: str
    decoder: StepDecoder | GroupDecoder
    encode: EncodePrompt
    make_manager: Callable[[RunBetweenSteps], AdapterManager] | None = None
    warm_up: Callable[[], None] | None = None


def load_model(settings: Settings, device: str) -> LoadedModel:
    """Load everything onto `device` ("cpu" or "cuda").

    Raises:
        BaseModelError, CatalogError, AdapterError: naming the file and what to do about it.
        FastDecoderImpossible: `decoder: fast` was asked for; names what it cannot serve.
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
    found = _adapters_in_service(store, settings.base_model)
    folders = {name: folder for name, (_, folder) in found.items()}
    decoder = build_decoder(base, settings.engine.decoder, fast_limits(settings), folders)
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        resolved.name,
        time.perf_counter() - started,
        decoder.info.name,
        decoder.info.reason,
    )
    entry = store.seed.base_model(settings.base_model, family=resolved.family)

    def make_manager(run: RunBetweenSteps) -> AdapterManager:
        return AdapterManager(
            store,
            settings.base_model,
            decoder,
            capacity=settings.engine.max_adapters,
            host=HostCache(settings.engine.adapter_memory_mib * 2**20),
            run=run,
            verified=dict(found.values()),
        )

    def encode(messages: Sequence[Message], answer_language: str | None) -> list[int]:
        return encode_prompt(
            entry.prompt_format,
            messages,
            tokenizer=decoder.tokenizer,
            system_line=entry.system_line,
            answer_language=answer_language,
        )

    warm_up = decoder.warm_up if isinstance(decoder, ModelRunner) else None
    return LoadedModel(settings.base_model, decoder, encode, make_manager, warm_up)


def _adapters_in_service(store: AdapterStore, base_model: str) -> Mapping[str, tuple[str, Path]]:
    """Return name -> (digest, folder) of the adapters of this base, after checking their files.

    Of a catalogue that nobody changed, every adapter must be good. In a changed one a bad adapter
    is left out and logged, since the others are to serve.

    Raises:
        AdapterError: listing every problem of every adapter.
    """
    catalog = store.read()
    if not catalog.revision:
        entries = check_catalogued(store.seed, base_model)
        checked = {entry.name: store.seed.folder(entry) for entry in entries}
        adapters = {adapter.name: adapter for adapter in catalog.in_service(base_model)}
        return {n: (adapters[n].stable.digest, folder) for n, folder in checked.items()}
    found = {}
    for adapter in catalog.in_service(base_model):
        try:
            found[adapter.name] = (adapter.stable.digest, store.folder(adapter.stable))
        except (OSError, ValueError) as error:
            logger.error("adapter %s: %s", adapter.name, error)
    return found


def first_sync(manager: AdapterManager) -> None:
    """Load the adapters in service, as far as there are slots.

    Raises:
        AdapterError: one cannot be loaded, of a catalogue that nobody changed.
    """
    report = manager.sync()
    problems = [f"adapter '{a['name']}': {a['error']}" for a in report["adapters"] if a["error"]]
    if problems and not report["revision"]:
        raise AdapterError(problems)
    for name, why in report["skipped"].items():
        logger.info("adapter %s is not served: %s", name, why)


def fast_limits(settings: Settings) -> "FastLimits":
    """Return the sizes of the fast decoder."""
    from deployments.engine.decoder_factory import FastLimits

    engine = settings.engine
    return FastLimits(
        max_rows=engine.max_rows,
        num_positions=engine.max_input_tokens + engine.max_output_tokens,
        max_adapters=engine.max_adapters,
        kv_memory_bytes=None if engine.kv_memory_mib is None else engine.kv_memory_mib * 2**20,
    )


def _leave_out_bitsandbytes() -> None:
    """Make bitsandbytes count as not installed in this process.

    PEFT and transformers import it whenever it is installed, which takes 2 s of every start.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
