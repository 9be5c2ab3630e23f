"""Reads the weights of adapter versions and puts them into a decoder, between two of its steps."""

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adapters.store import AdapterStore
from adapters.versions import AdapterVersion
from deployments.engine.request import EngineError, EngineStopped
from deployments.model.adapter_registry import adapter_key
from deployments.model.host_memory import HostCache

logger = logging.getLogger(__name__)

ERRAND_TIMEOUT_S = 60.0

ResultT = TypeVar("ResultT")
Errand = Callable[[], Any]


class AdapterDecoder(Protocol):
    """What the loader asks of a decoder. All but the first two run between two steps."""

    def read_adapter(self, directory: Path) -> Any: ...

    def num_host_bytes(self, weights: Any) -> int:
        """Of main memory, for what `read_adapter` gave; 0: not worth keeping."""

    def install(self, name: str, weights: Any, *, probe: bool = True) -> None: ...

    def dry_run(self, name: str, weights: Any) -> None: ...

    def evict(self, name: str) -> None: ...


class AdapterLoader:
    """Any thread may call it.

    Args:
        host: keeps weights that were read, within its bytes.
    """

    def __init__(self, store: AdapterStore, decoder: AdapterDecoder, host: HostCache) -> None:
        self._store = store
        self._decoder = decoder
        self._host = host
        self._submit: Callable[[Errand], Future[Any]] = _at_once
        self._probed: set[str] = set()
        self._unreadable: set[str] = set()

    def attach(self, run_between_steps: Callable[[Errand], Future[Any]]) -> None:
        """From now on the decoder is changed through the running engine."""
        self._submit = run_between_steps

    def weights(self, version: AdapterVersion) -> Any:
        """From memory, or read now, which may take long."""
        weights = self._host.get(version.digest)
        if weights is None:
            weights = self._decoder.read_adapter(self._store.folder(version))
            self._host.put(version.digest, weights, self._decoder.num_host_bytes(weights))
        return weights

    def prefetch(self, version: AdapterVersion) -> None:
        """Into memory, if there is room for it beside what is there. What cannot be read is found
        when it is asked for."""
        digest = version.digest
        if digest in self._host or digest in self._unreadable:
            return
        if self._host.has_room(version.num_bytes):
            try:
                self.weights(version)
            except Exception as error:  # the thread that reads ahead goes on with the next
                self._unreadable.add(digest)
                logger.warning("not read ahead: version %s: %s", version.version, one_line(error))

    def has_in_memory(self, version: AdapterVersion) -> bool:
        return version.digest in self._host

    def install(self, key: str, version: AdapterVersion, weights: Any) -> None:
        """The caller has a place for it. A content that was probed here is not probed again."""
        probe = version.digest not in self._probed
        self._run(lambda: self._decoder.install(key, weights, probe=probe))
        self._probed.add(version.digest)

    def evict(self, key: str) -> "Future[Any]":
        """Before whatever is submitted later."""

        def errand() -> None:
            # Not on the device: its install failed, and there is nothing left to do.
            with contextlib.suppress(EngineError, KeyError):
                self._decoder.evict(key)

        try:
            return self._submit(errand)
        except EngineStopped:  # and with it the device's memory
            return _at_once(lambda: None)

    def dry_run(self, name: str, version: AdapterVersion) -> list[str]:
        """What keeps a version from being served here; empty: nothing.

        Raises:
            StorageError, EngineStopped: it could not be tried.
        """
        try:
            weights = self.weights(version)
            self._run(lambda: self._decoder.dry_run(adapter_key(name, version), weights))
        except (OSError, EngineStopped):
            raise
        except EngineError as error:
            problems = getattr(error, "problems", None)
            return list(problems) if problems else [str(error)]
        except Exception as error:  # PEFT, safetensors and torch each have kinds of their own
            return [f"{type(error).__name__}: {one_line(error)}"]
        self._probed.add(version.digest)
        return []

    def forget(self, version: AdapterVersion) -> None:
        """It left the catalogue."""
        self._host.drop(version.digest)
        self._probed.discard(version.digest)
        self._unreadable.discard(version.digest)

    def _run(self, errand: Callable[[], ResultT]) -> ResultT:
        result: ResultT = self._submit(errand).result(ERRAND_TIMEOUT_S)
        return result


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _at_once(errand: Errand) -> "Future[Any]":
    """Before the engine starts, the loader's own thread may change the decoder."""
    future: Future[Any] = Future()
    try:
        future.set_result(errand())
    except Exception as error:
        future.set_exception(error)
    return future
