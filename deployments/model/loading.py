"""Settings -> a model ready to serve: base model, decoder, prompt format, and its adapters.

Runs on the engine's thread of a model replica. This is where adapters/ and engine/ meet.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adapters.base_models import resolve_base_model
from adapters.prompting import Message, encode_prompt
from adapters.seed_check import AdapterError
from adapters.store import AdapterStore
from deployments.engine.decoder import GroupDecoder, StepDecoder
from deployments.model.adapter_manager import AdapterManager
from deployments.model.decoder_tasks import RunBetweenSteps
from deployments.model.weights_reader import HostCache
from deployments.replica import open_adapter_store
from deployments.settings import Settings

if TYPE_CHECKING:  # torch is imported once the replica is to load
    from adapters.base_models import Family
    from deployments.engine.model_runner import ModelRunner
    from deployments.engine.peft_decoder import PeftDecoder

logger = logging.getLogger(__name__)


class MakeManager(Protocol):
    def __call__(self, *, run: RunBetweenSteps) -> AdapterManager: ...


class EncodePrompt(Protocol):
    """Write a conversation for the base model; `encode_prompt` says how."""

    def __call__(
        self, messages: Sequence[Message], *, answer_language: str | None
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model replica serves with.

    make_manager: gives the model its adapters once the engine runs; None if it takes none.
    warm_up: what the decoder prepares between its first adapters and its first request.
    """

    base_model: str
    decoder: StepDecoder | GroupDecoder
    encode: EncodePrompt
    make_manager: MakeManager | None = None
    warm_up: Callable[[], None] | None = None


def load_model(settings: Settings, device: str) -> LoadedModel:
    """Load everything onto `device` ("cpu" or "cuda").

    Raises:
        BaseModelError, CatalogError, AdapterError: naming the file and what to do about it.
        FastDecoderImpossible: `decoder: fast` was asked for; names what it cannot serve.
    """
    if settings.quantization == "none":
        _leave_out_bitsandbytes()
    store = open_adapter_store(settings)
    found = _adapters_in_service(store, settings.base_model)
    folders = {name: folder for name, (_, folder) in found.items()}
    decoder, family = _load_decoder(settings, device, folders)
    make_manager = functools.partial(
        AdapterManager,
        store,
        settings.base_model,
        decoder,
        capacity=settings.engine.max_adapters,
        host=HostCache(settings.engine.adapter_memory_mib * 2**20),
        verified=dict(found.values()),
    )
    entry = store.seed.base_model(settings.base_model, family=family)
    encode = functools.partial(
        encode_prompt,
        entry.prompt_format,
        tokenizer=decoder.tokenizer,
        system_line=entry.system_line,
    )
    warm_up = getattr(decoder, "warm_up", None)
    return LoadedModel(settings.base_model, decoder, encode, make_manager, warm_up)


def _load_decoder(
    settings: Settings, device: str, adapters: Mapping[str, Path]
) -> "tuple[ModelRunner | PeftDecoder, Family]":
    started, engine = time.perf_counter(), settings.engine
    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_loader import load_pretrained

    logger.info("torch, transformers and peft imported in %.1f s", time.perf_counter() - started)
    started = time.perf_counter()
    resolved = resolve_base_model(settings.base_model_or_dir, progress=False)
    base = load_pretrained(
        resolved.path,
        resolved.family,
        device=device,
        dtype=engine.dtype,
        quantization=settings.quantization,
    )
    limits = FastLimits(
        max_rows=engine.max_rows,
        num_positions=engine.max_input_tokens + engine.max_output_tokens,
        max_adapters=engine.max_adapters,
        kv_memory_bytes=None if engine.kv_memory_mib is None else engine.kv_memory_mib * 2**20,
    )
    decoder = build_decoder(base, engine.decoder, limits, adapters)
    seconds, info = time.perf_counter() - started, decoder.info
    logger.info(
        "base model %s loaded in %.1f s; decoder %s: %s",
        *(resolved.name, seconds, info.name, info.reason),
    )
    return decoder, resolved.family


def _adapters_in_service(store: AdapterStore, base_model: str) -> dict[str, tuple[str, Path]]:
    """Return name -> (digest, folder) of the adapters of this base, after comparing checksums.

    A damaged adapter is an AdapterError as long as the shipped catalogue was not changed; later it
    is left out, since the others are to serve.
    """
    catalog, found, problems = store.read_or_last_good(), {}, []
    for adapter in catalog.in_service(base_model):
        try:
            found[adapter.name] = (adapter.stable.digest, store.folder(adapter.stable))
        except (OSError, ValueError) as error:
            problems.append(f"adapter '{adapter.name}': {error}")
    if problems and not catalog.revision:
        raise AdapterError(problems)
    for problem in problems:
        logger.error("%s", problem)
    return found


def first_sync(manager: AdapterManager) -> None:
    """Load the adapters in service, as far as there are slots; fails as `load_model` does."""
    report = manager.sync()
    problems = [f"adapter '{a['name']}': {a['error']}" for a in report["adapters"] if a["error"]]
    if problems and not report["revision"]:
        raise AdapterError(problems)
    for name, why in report["skipped"].items():
        logger.info("adapter %s is not served: %s", name, why)


def _leave_out_bitsandbytes() -> None:
    """Make bitsandbytes count as not installed in this process.

    PEFT and transformers import it whenever it is installed, which takes 2 s of every start.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
