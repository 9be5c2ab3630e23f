"""Settings -> a model that runs: its engine, its prompt format, and its adapters.

This is where adapters/ and engine/ meet.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from adapters.bases.models import BaseModelError, resolve_base_model
from adapters.catalog import Catalog
from adapters.prompt_check import (
    EncodePrompt,
    checked_entry,
    encoder_of,
    goes_on,
    not_in_vocabulary,
    unwritable,
)
from adapters.seed_check import AdapterError
from adapters.store import AdapterStore
from adapters.token_prompts import BadTokenId, decode_prompts, encode_text
from adapters.versions import RegisteredAdapter
from deployments.engine.core import EngineLimits
from deployments.engine.decoder import DecoderInfo
from deployments.engine.detokenizer import Decode, text_decoder, token_bytes
from deployments.engine.engine import Engine
from deployments.engine.thread import TorchThread, use_cores_on
from deployments.engine_process.client import EngineProcess
from deployments.engine_process.decoder_loading import DecoderSpec, load_decoder
from deployments.engine_process.remote_decoder import RemoteDecoder
from deployments.model.adapter_manager import AdapterManager
from deployments.model.decoder_tasks import RunBetweenSteps
from deployments.model.weights_reader import HostCache
from deployments.replica import open_adapter_store
from deployments.settings import EngineSettings, Settings

logger = logging.getLogger(__name__)

# A stream's text goes out at most this often, so that a client's chunk carries several fast tokens.
# Without a GPU the processors are needed for the tokens: a piece of text that travels alone takes
# two milliseconds of them on its way to the client, most of it for waking up four processes.
_EMIT_INTERVAL_S = {"cpu": 0.06, "cuda": 0.03}
# Of all streams: without a GPU 16 of them get a piece of text each 80 ms, together.
_MAX_EVENTS_PER_S = {"cpu": 200.0, "cuda": 4000.0}
# Prompt tokens that one step reads: about half a second of a CPU, some ten milliseconds of a GPU.
_PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}
_LONG_PROMPT_SLOWDOWN = {"cpu": None, "cuda": 1.3}
# A step of a GPU takes milliseconds; a large base may read a prompt for minutes on a CPU.
_STEP_TIMEOUT_S = {"cpu": 300.0, "cuda": 30.0}

# Seconds in which the process of an engine that cannot be prompted ends.
_CLOSE_S = 5.0

LoadModel = Callable[[Settings, str], "LoadedModel"]
DecodePrompts = Callable[[Sequence[Sequence[int]]], list[str] | BadTokenId]
EncodeText = Callable[[str | Sequence[int]], list[int] | BadTokenId]


class MakeManager(Protocol):
    def __call__(self, *, run: RunBetweenSteps) -> AdapterManager: ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose decoder an engine is to run.

    decoder: a StepDecoder or GroupDecoder; RemoteDecoder of one in another process.
    make_manager: gives the model its adapters once the engine runs; None if it takes none.
    warm_up: what the decoder prepares between its first adapters and its first request.
    decode: gives the texts of token ids; None if it cannot.
    encode_text: gives the token ids of what is continued as it stands; None if it cannot.
    """

    base_model: str
    decoder: Any
    encode: EncodePrompt
    make_manager: MakeManager | None = None
    warm_up: Callable[[], None] | None = None
    decode: DecodePrompts | None = None
    encode_text: EncodeText | None = None


@dataclass(frozen=True, slots=True)
class RunningModel(LoadedModel):
    """A model and the engine that runs it, wherever its decoder is.

    engine_pid: of the process that the decoder is in, if that is not this one.
    """

    engine: Engine = field(kw_only=True)
    engine_pid: int | None = field(default=None, kw_only=True)


def load_model(settings: Settings, device: str) -> LoadedModel:
    """Load everything onto `device` ("cpu" or "cuda"), in this process.

    Raises:
        BaseModelError, CatalogError, AdapterError: naming the file and what to do about it.
        FastDecoderImpossible: `decoder: fast` was asked for; names what it cannot serve.
    """
    parts = _Parts(settings, device)
    decoder = load_decoder(parts.spec)
    tokenizer = decoder.tokenizer
    return parts.of_model(decoder, decoder.info, tokenizer, parts.encode_with(tokenizer))


def start_on_thread(load: LoadModel, settings: Settings, device: str) -> RunningModel:
    """Load a model in this process and run it on a thread of its own."""
    thread = TorchThread()
    if device == "cpu":
        use_cores_on(thread, settings.engine.cpu_threads)
    model = thread.submit(lambda: load(settings, device)).result()
    engine = Engine.on_thread(model.decoder, engine_limits(settings.engine, device), thread=thread)
    return _running(model, engine)


def start_process(
    settings: Settings,
    device: str,
    on_lost: Callable[[], None] = lambda: None,
) -> RunningModel:
    """Load a model in a process of its own, which runs its engine. Raises as `load_model` does.

    Args:
        on_lost: called on a thread if that process, once started, dies or is killed because it
            hangs.
    """
    parts = _Parts(settings, device)
    limits = engine_limits(settings.engine, device)
    with ThreadPoolExecutor(1) as beside:  # the process imports and loads meanwhile
        text = beside.submit(parts.load_text)
        process = EngineProcess(
            parts.spec,
            limits,
            lambda ids: text.result().decode(ids),
            lambda token_id: text.result().token_bytes(token_id),
            on_lost,
        )
    try:
        known, decoder = text.result(), RemoteDecoder(process)
        model = parts.of_model(decoder, process.info, known.tokenizer, known.encode)
    except Exception:
        process.close(_CLOSE_S)
        raise
    return _running(model, Engine(process, limits), process.pid)


def _running(model: LoadedModel, engine: Engine, pid: int | None = None) -> RunningModel:
    known = (getattr(model, one.name) for one in fields(model))
    return RunningModel(*known, engine=engine, engine_pid=pid)


@dataclass(frozen=True, slots=True)
class _Text:
    """A tokenizer, how conversations are written with it, and the text of its tokens."""

    tokenizer: Any
    encode: EncodePrompt
    decode: Decode
    token_bytes: Callable[[int], bytes]


class _Parts:
    """What a model is made of: its store, the adapters in service, its base model's folder."""

    def __init__(self, settings: Settings, device: str) -> None:
        self._settings = settings
        self._store = open_adapter_store(settings)
        self._catalog = self._store.read_or_last_good()
        self._found = _adapters_in_service(self._store, self._catalog, settings.base_model)
        engine = settings.engine
        resolved = resolve_base_model(settings.base_model_or_dir, progress=False)
        self._family = resolved.family
        kv_mib = engine.kv_memory_mib
        self.spec = DecoderSpec(
            base_model=resolved.name,
            path=str(resolved.path),
            family=resolved.family,
            device=device,
            dtype=engine.dtype,
            quantization=settings.quantization,
            choice=engine.decoder,
            batch_invariant=engine.batch_invariant,
            max_rows=engine.max_rows,
            num_positions=engine.max_input_tokens + engine.max_output_tokens,
            max_adapters=engine.max_adapters,
            prefill_tokens=prefill_tokens(engine, device),
            kv_cache_dtype=engine.kv_cache_dtype,
            kv_memory_bytes=None if kv_mib is None else kv_mib * 2**20,
            cpu_threads=engine.cpu_threads,
            adapters={name: str(folder) for name, (_, folder) in self._found.items()},
        )

    def load_text(self) -> _Text:
        """Load the tokenizer. Raises as `encode_with`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.spec.path, trust_remote_code=False)
        encode = self.encode_with(tokenizer)
        return _Text(tokenizer, encode, text_decoder(tokenizer), token_bytes(tokenizer))

    def encode_with(self, tokenizer: Any) -> EncodePrompt:
        """Return how conversations are written, tried on every shape of them.

        Raises:
            BaseModelError: the base cannot be prompted.
            AdapterError: nor as an adapter was trained.
        """
        base_model = self._settings.base_model
        entry = checked_entry(self._store.seed, base_model, self._family, tokenizer)
        encode = encoder_of(entry, tokenizer)
        _check_prompt_formats(encode, self._catalog.in_service(base_model))
        return encode

    def of_model(
        self, decoder: Any, info: DecoderInfo, tokenizer: Any, encode: EncodePrompt
    ) -> LoadedModel:
        engine, base_model = self._settings.engine, self._settings.base_model
        entry = self._store.seed.base_model(base_model, family=self._family)
        size = info.num_token_ids
        if size is not None and (found := not_in_vocabulary(encode, size)):
            shape, token_id = found
            raise BaseModelError(
                f"base_model: {base_model!r} has the token ids 0 to {size - 1}, and its prompt "
                f"format '{entry.prompt_format}' writes {shape} with the id {token_id} "
                f"({tokenizer.convert_ids_to_tokens(token_id)!r}): serve the base that was saved "
                "with that tokenizer, or set another prompt_format under base_models of the "
                "catalogue"
            )
        if entry.prompt_format == "chat" and (why := goes_on(tokenizer, info.eos_ids)):
            logger.warning("%s", why)
        make_manager = functools.partial(
            AdapterManager,
            self._store,
            base_model,
            decoder,
            capacity=engine.max_adapters,
            host=HostCache(engine.adapter_memory_mib * 2**20),
            verified=dict(self._found.values()),
        )
        return LoadedModel(
            base_model,
            decoder,
            encode,
            make_manager,
            warm_up=getattr(decoder, "warm_up", None),
            decode=functools.partial(decode_prompts, tokenizer=tokenizer),
            encode_text=functools.partial(encode_text, tokenizer=tokenizer),
        )


def prefill_tokens(settings: EngineSettings, device: str) -> int:
    """Return the prompt tokens that one step reads."""
    return settings.prefill_tokens_per_step or _PREFILL_TOKENS[device.split(":")[0]]


def engine_limits(settings: EngineSettings, device: str) -> EngineLimits:
    kind = device.split(":")[0]
    return EngineLimits(
        max_rows=settings.max_rows,
        max_waiting=settings.max_waiting,
        max_input_tokens=settings.max_input_tokens,
        prefill_tokens=prefill_tokens(settings, device),
        reuses_prefixes=settings.prefix_cache,
        tries_drafts=settings.prompt_lookup,
        long_prompt_slowdown=settings.long_prompt_slowdown or _LONG_PROMPT_SLOWDOWN[kind],
        emit_interval_s=_EMIT_INTERVAL_S[kind],
        max_events_per_s=_MAX_EVENTS_PER_S[kind],
        emits_together=kind == "cpu",
        step_timeout_s=settings.step_timeout_s or _STEP_TIMEOUT_S[kind],
    )


def _adapters_in_service(
    store: AdapterStore, catalog: Catalog, base_model: str
) -> dict[str, tuple[str, Path]]:
    """Return name -> (digest, folder) of the adapters of this base, after comparing checksums.

    A damaged adapter is an AdapterError as long as the shipped catalogue was not changed; later it
    is left out, since the others are to serve.
    """
    found, problems = {}, []
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


def _check_prompt_formats(encode: EncodePrompt, adapters: Sequence[RegisteredAdapter]) -> None:
    """Raise AdapterError if this base cannot be prompted as an adapter was trained."""
    problems = [
        f"adapter '{adapter.name}', version {version.version}: its prompt format "
        f"'{version.prompt_format}' cannot write {found[0]}: {found[1]}"
        for adapter in adapters
        for version in adapter.served
        if version.prompt_format and (found := unwritable(encode, version.prompt_format))
    ]
    if problems:
        raise AdapterError(problems)


def first_sync(manager: AdapterManager) -> None:
    """Load the adapters in service, as far as there are slots; fails as `load_model` does."""
    report = manager.sync()
    problems = [f"adapter '{a['name']}': {a['error']}" for a in report["adapters"] if a["error"]]
    if problems and not report["revision"]:
        raise AdapterError(problems)
    for name, why in report["skipped"].items():
        logger.info("adapter %s is not served: %s", name, why)
