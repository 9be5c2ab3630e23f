"""Run one model replica's engine, catalogue and adapter caches in this process."""

import asyncio
import contextlib
import dataclasses
import json
import random
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import torch

from adapters import changes
from adapters.ingest import VersionRequest, inspect_adapter
from adapters.storage.local import LocalStorage
from adapters.store import AdapterStore
from deployments.engine.core import EngineLimits
from deployments.engine.decoder_factory import FastLimits
from deployments.engine.engine import Engine
from deployments.engine.model_loader import Pretrained
from deployments.engine.request import Request, SamplingParams, TokenEvent
from deployments.interpreter import tune_interpreter
from deployments.model.adapter_manager import AdapterManager
from deployments.model.weights_reader import HostCache
from scripts.benchmarks.in_process.engine_runs import fast_decoder

NUM_POSITIONS = 256  # of a row
PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}  # as a model replica's


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One answer. Seconds count from before the lease."""

    first_token_s: float
    text: str
    was_resident: bool  # the adapter was on the device already
    failed: bool


class ChurnReplica:
    """An engine with the adapters of a catalogue, on the device and in main memory.

    Args:
        seed_dir: a folder of `write_catalog`.
        slots: adapters on the device at the same time.
        host_mib: main memory for adapters that were read.
    """

    def __init__(
        self, base: Pretrained, seed_dir: Path, state: Path, *, slots: int, rows: int, host_mib: int
    ) -> None:
        limits = FastLimits(max_rows=rows, num_positions=NUM_POSITIONS, max_adapters=slots)
        decoder = fast_decoder(base, limits)
        self.decoder = decoder
        self.state = state
        self._num_slots = slots
        self.store = AdapterStore(LocalStorage(state), seed_dir, state / "cache")
        self.engine = Engine.on_thread(
            decoder,
            EngineLimits(
                max_rows=rows,
                max_waiting=10_000,
                max_input_tokens=NUM_POSITIONS,
                prefill_tokens=PREFILL_TOKENS[decoder.device.type],
            ),
        )
        self.manager = AdapterManager(
            self.store,
            "bench",
            decoder,
            capacity=slots,
            host=HostCache(host_mib * 2**20),
            run=self.engine.run_between_steps,
        )
        self.manager.sync()
        self.manager.prefetch()  # a replica does it in its first seconds
        self.engine.run_between_steps(decoder.warm_up).result()
        tune_interpreter()
        self._vocab = decoder.vocab_size

    def prompt(self, num_tokens: int, seed: int = 0) -> tuple[int, ...]:
        rng = random.Random(seed)
        return tuple(rng.randrange(3, self._vocab) for _ in range(num_tokens))

    async def ask(
        self, name: str, version: str | None, prompt: tuple[int, ...], num_tokens: int
    ) -> Asked:
        started = time.perf_counter()
        async with self._leased(name, version) as (key, was_resident):
            request = Request("r", prompt, key, SamplingParams(num_tokens))
            first_s, text, failed = 0.0, [], False
            async for event in self.engine.generate(request):
                first_s = first_s or time.perf_counter() - started
                text.append(event.text)
                failed = event.error is not None
        return Asked(first_s, "".join(text), was_resident, failed)

    async def answer(
        self, name: str, prompt: tuple[int, ...], num_tokens: int
    ) -> AsyncGenerator[TokenEvent]:
        """Yield the events of one answer of the stable version."""
        async with self._leased(name, None) as (key, _):
            request = Request("r", prompt, key, SamplingParams(num_tokens))
            async for event in self.engine.generate(request):
                yield event

    @contextlib.asynccontextmanager
    async def _leased(self, name: str, version: str | None) -> AsyncIterator[tuple[str, bool]]:
        lease = self.manager.leases.lease(name, version)
        was_resident = lease.done()
        key = await asyncio.wrap_future(lease)
        try:
            yield key, was_resident
        finally:
            self.manager.leases.release(key)

    def add_version(self, name: str, version: str, *, weights_of: str | None = None) -> None:
        """Do what the operator's API does: store the files, try them out, list and serve them.

        The files are those of `weights_of`, or of the adapter itself, under another revision.
        """
        found = self.store.read().adapter(weights_of or name)
        assert found is not None
        folder = self.state / "sources" / version
        shutil.copytree(self.store.folder(found.stable), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": version}))
        record = inspect_adapter(folder, VersionRequest(name, None, "bench", version, str(folder)))
        self.store.put(record.digest, folder)
        problems = self.manager.dry_run(name, record)
        assert not problems, problems
        self.store.change(
            lambda c: changes.add_version(
                c, name=name, specialty=None, base_model="bench", version=record
            )
        )
        self.manager.sync()

    def switch(self, name: str, version: str) -> None:
        self.store.change(lambda c: changes.update(c, name, version=version))
        self.manager.sync()

    def free_slot(self) -> None:
        """Evict an adapter from the device if no slot is free."""
        resident = self.engine.info.adapters
        if len(resident) >= self._num_slots:
            self.timed_between_steps(lambda: self.decoder.evict(min(resident)))

    def timed_between_steps(self, task: Callable[[], Any]) -> float:
        """Run `task` on the engine's thread; return its seconds, the device's work included."""

        def timed() -> float:
            started = time.perf_counter()
            task()
            if self.decoder.device.type == "cuda":
                torch.cuda.synchronize(self.decoder.device)
            return time.perf_counter() - started

        return self.engine.run_between_steps(timed).result(120)

    def close(self) -> None:
        self.engine.close()


Make = Callable[[int], ChurnReplica]
"""Makes a replica with this number of slots."""
