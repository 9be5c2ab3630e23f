"""What the operator asks of a model replica: what it holds and does, and to follow a change."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adapters.prompt_check import unwritable
from adapters.versions import AdapterVersion
from deployments.clocks import ClockOffsets
from deployments.engine.engine import Engine
from deployments.model.adapter_manager import AdapterManager
from deployments.model.loading import RunningModel
from deployments.model.start_times import StartTimes
from deployments.replica import replica_id

# Adapters that the operator adds or changes at the same time; others wait.
_NUM_OPERATIONS = 4


def operation_threads() -> ThreadPoolExecutor:
    """Return threads for changes. Not those that tokenise: an operator's source may be slow."""
    return ThreadPoolExecutor(_NUM_OPERATIONS, thread_name_prefix="adapter-change")


class OperatorCalls:
    """Calls through Serve, for ModelReplica, which sets these."""

    _config: str
    _refused: list[str]
    _clocks: ClockOffsets
    _model: RunningModel
    _started: StartTimes
    _engine: Engine
    _adapters: AdapterManager | None
    _operations: ThreadPoolExecutor

    async def info(self, sender: str | None = None, sent_at: float = 0.0) -> dict[str, Any]:
        """Return what this replica serves, for /readyz and the operator.

        Args:
            sender: the router replica that asks once a second, if it is one.
            sent_at: Unix seconds, by its clock.

        Raises:
            EngineStopped: it cannot serve any more.
        """
        if sender is not None:
            self._clocks.hear(sender, sent_at)
        self._engine.check()
        decoder = self._engine.info
        return {
            "replica": replica_id(),
            "config": self._config,
            "base_model": self._model.base_model,
            "decoder": decoder.name,
            "decoder_reason": decoder.reason,
            "device": decoder.device,
            "dtype": decoder.dtype,
            "weights": decoder.weights,
            "threads": decoder.threads,
            "batch_invariant": decoder.batch_invariant,
            "batch_invariant_reason": decoder.batch_invariant_reason,
            "kv_cache_dtype": decoder.kv_cache_dtype,
            "rows": dict(decoder.rows),
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            **self._adapter_info(),
            "rows_running": self._engine.num_running,
            "requests_waiting": self._engine.num_waiting,
            "start": self._started.report(),
            "degraded": self._refused,
        }

    def _adapter_info(self) -> dict[str, Any]:
        if self._adapters is None:
            return {"adapters": [], "adapters_skipped": {}, "adapters_held": []}
        report = self._adapters.report()
        return {
            "adapters": report["adapters"],
            "adapters_skipped": report["skipped"],
            "adapters_leaving": report["leaving"],
            **self._adapters.residency(),
            "adapters_revision": report["revision"],
            "adapters_error": report["last_error"],
        }

    async def adapter_report(self) -> dict[str, Any]:
        """Return AdapterManager.report() with `replica`. It has no effect."""
        report: dict[str, Any] = {"revision": None, "adapters": [], "leaving": [], "error": None}
        if self._adapters is not None:
            report = self._adapters.report()
        return {"replica": replica_id(), **report}

    async def sync_adapters(self) -> dict[str, Any]:
        """Follow the live catalogue now; returns `adapter_report()`."""
        if self._adapters is not None:
            await self._operate(self._adapters.try_sync)
        return await self.adapter_report()

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        """Return what keeps a version that is not listed yet from being served on this base."""
        manager = self._adapters
        if manager is None:
            return ["this model takes no adapters"]
        problems: list[str] = await self._operate(lambda: manager.dry_run(name, version))
        if version.prompt_format and (
            found := unwritable(self._model.encode, version.prompt_format)
        ):
            shape, why = found
            problems.append(
                f"its prompt format {version.prompt_format} cannot write {shape}: {why}"
            )
        return problems

    async def _operate(self, operation: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._operations, operation)
