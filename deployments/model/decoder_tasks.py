"""Changes of a decoder's adapters, each a task on the engine's thread between two of its steps."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from adapters.versions import AdapterVersion
from deployments.engine.errors import EngineError, EngineStopped
from deployments.model.weights_reader import AdapterDecoder, WeightsReader, one_line

# Seconds for one task. The first install on a GPU may compile kernels.
TASK_TIMEOUT_S = 300.0

RunBetweenSteps = Callable[[Callable[[], Any]], "Future[Any]"]


class DecoderTasks:
    """Any thread may call it.

    Args:
        run: runs a task on the engine's thread.
    """

    def __init__(self, decoder: AdapterDecoder, run: RunBetweenSteps) -> None:
        self._decoder = decoder
        self._run = run
        self._probed: set[str] = set()  # digests of contents that passed the probe

    def install(self, key: str, version: AdapterVersion, weights: Any) -> None:
        """Put weights into a slot that the caller reserved; probes only what was not probed yet."""
        probe = version.digest not in self._probed
        task = self._run(lambda: self._decoder.install(key, weights, probe=probe))
        task.result(TASK_TIMEOUT_S)
        self._probed.add(version.digest)

    def evict(self, key: str) -> "Future[Any]":
        """Submit the eviction, before any task that is submitted later."""

        def evict() -> None:
            # Not in the decoder: its install failed, and nothing is left to do.
            with contextlib.suppress(EngineError, KeyError):
                self._decoder.evict(key)

        try:
            return self._run(evict)
        except EngineStopped:  # and with it the device's memory
            stopped: Future[Any] = Future()
            stopped.set_result(None)
            return stopped

    def dry_run(self, key: str, version: AdapterVersion, reader: WeightsReader) -> list[str]:
        """Return what keeps a version from being served here; empty if nothing does.

        Raises:
            StorageError, EngineStopped: it could not be tried.
        """
        try:
            weights = reader.weights(version)
            self._run(lambda: self._decoder.dry_run(key, weights)).result(TASK_TIMEOUT_S)
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
        """Probe the content again if it comes back to the catalogue."""
        self._probed.discard(version.digest)
