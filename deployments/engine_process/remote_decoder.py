"""The decoder in the engine's process, as the replica's adapters see it."""

import weakref
from pathlib import Path

from deployments.engine_process.client import EngineProcess


class RemoteWeights:
    """Weights of an adapter in the engine's process, which frees them with this object."""

    def __init__(self, process: EngineProcess, handle: int, num_bytes: int) -> None:
        self.handle = handle
        self.num_bytes = num_bytes
        weakref.finalize(self, process.forget, handle)


class RemoteDecoder:
    """The decoder of an EngineProcess, as adapters see it (AdapterDecoder, weights_reader.py)."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process

    def read_adapter(self, directory: Path) -> RemoteWeights:
        return RemoteWeights(self._process, *self._process.call("read", str(directory)))

    def num_host_bytes(self, weights: RemoteWeights) -> int:
        return weights.num_bytes

    def install(self, name: str, weights: RemoteWeights, *, probe: bool = True) -> None:
        self._process.call("install", name, weights.handle, probe)

    def dry_run(self, name: str, weights: RemoteWeights) -> None:
        self._process.call("dry_run", name, weights.handle)

    def evict(self, name: str) -> None:
        self._process.call("evict", name)

    def warm_up(self) -> None:
        self._process.call("warm_up")
