"""One model replica's engine and adapters in process, with any number of adapters registered.

For scripts/benchmarks/churn.py: no Ray, no HTTP. Adapters are random; many names share a few weight
files, and each has a configuration of its own, so that the store and the tiers see them as
different content.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adapters.base_models import sha256_of
from adapters.catalog import Catalog
from adapters.seed import write_seed
from adapters.storage.local import LocalStorage
from adapters.store import AdapterStore
from adapters.versions import SEED_PATH, SEED_SOURCE, AdapterVersion, RegisteredAdapter
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.model.adapter_manager import AdapterManager
from deployments.model.host_memory import HostCache
from deployments.replica import tune_interpreter
from scripts.benchmarks.models import make_random_adapters

NUM_CONTENTS = 16
PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}  # a model replica's own


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """`was_resident`: the adapter was on the device. Seconds count from before the lease."""

    first_token_s: float
    total_s: float
    num_tokens: int
    text: str
    was_resident: bool
    failed: bool


class ChurnClinic:
    """
    Args:
        seed_dir: a folder of `write_catalog`.
        slots: adapters on the device at the same time.
        host_mib: of main memory for adapters that were read.
    """

    def __init__(
        self,
        base: Pretrained,
        seed_dir: Path,
        state: Path,
        *,
        slots: int,
        rows: int,
        host_mib: int,
        num_positions: int = 256,
    ) -> None:
        limits = FastLimits(max_rows=rows, num_positions=num_positions, max_adapters=slots)
        # End-of-sequence tokens are ignored: every answer has the length that was asked for.
        decoder = build_decoder(dataclasses.replace(base, eos_ids=frozenset()), "fast", limits, {})
        assert isinstance(decoder, ModelRunner)
        self.decoder = decoder
        self.seed_dir, self.state = seed_dir, state
        self.store = self.new_store()
        self.holder = AdapterManager(
            self.store, "bench", decoder, capacity=slots, host=HostCache(host_mib * 2**20)
        )
        self.engine = Engine(
            decoder,
            EngineLimits(
                max_rows=rows,
                max_waiting=10_000,
                max_input_tokens=num_positions,
                prefill_tokens=PREFILL_TOKENS[decoder.device.type],
            ),
        )
        self.holder.sync()
        self.holder.prefetch()  # a replica does it in its first seconds
        decoder.warm_up()
        tune_interpreter()
        self.engine.start()
        self.holder.attach(self.engine.run_between_steps)
        self._loaders = ThreadPoolExecutor(4)
        self._vocab = decoder.vocab_size

    def new_store(self) -> AdapterStore:
        return AdapterStore(LocalStorage(self.state), self.seed_dir, self.state / "cache")

    def prompt(self, num_tokens: int, seed: int = 0) -> tuple[int, ...]:
        rng = random.Random(seed)
        return tuple(rng.randrange(3, self._vocab) for _ in range(num_tokens))

    async def ask(
        self, name: str, version: str | None, prompt: tuple[int, ...], num_tokens: int
    ) -> Asked:
        started = time.perf_counter()
        async with self._leased(name, version) as (key, was_resident):
            request = Request("r", prompt, key, SamplingParams(num_tokens))
            first_s, text, count, failed = 0.0, [], 0, False
            async for event in self.engine.generate(request):
                first_s = first_s or time.perf_counter() - started
                text.append(event.text)
                count, failed = event.num_tokens, event.error is not None
        total_s = time.perf_counter() - started
        return Asked(first_s, total_s, count, "".join(text), was_resident, failed)

    @contextlib.asynccontextmanager
    async def _leased(self, name: str, version: str | None) -> AsyncIterator[tuple[str, bool]]:
        key = self.holder.try_lease(name, version)
        was_resident = key is not None
        if key is None:
            loading = self._loaders.submit(self.holder.lease, name, version)
            key = await asyncio.wrap_future(loading)
        try:
            yield key, was_resident
        finally:
            self.holder.release(key)

    def close(self) -> None:
        self._loaders.shutdown()
        self.engine.close()


def write_catalog(
    model: Any,
    folder: Path,
    *,
    num: int,
    rank: int,
    targets: list[str] | None,
    base_name: str = "bench",
) -> dict[str, Any]:
    """A seed of `num` adapters, each with its own specialty; returns their size in bytes."""
    contents = list(
        make_random_adapters(
            model, folder / "contents", num=min(num, NUM_CONTENTS), rank=rank, targets=targets
        ).values()
    )
    digests = [sha256_of(content / "adapter_model.safetensors") for content in contents]
    config = json.loads((contents[0] / "adapter_config.json").read_text())
    adapters = []
    for number in range(num):
        name, digest = f"a{number}", digests[number % len(contents)]
        target = folder / "weights" / name
        target.mkdir(parents=True)
        source = contents[number % len(contents)] / "adapter_model.safetensors"
        os.link(source, target / "adapter_model.safetensors")
        own = config | {"base_model_name_or_path": base_name, "revision": str(number)}
        (target / "adapter_config.json").write_text(json.dumps(own))
        adapters.append(_adapter(target, digest, rank, base_name))
    write_seed(folder, Catalog(revision=0, adapters=adapters))
    return {"adapter_bytes": (contents[0] / "adapter_model.safetensors").stat().st_size}


def _adapter(folder: Path, digest: str, rank: int, base_name: str) -> RegisteredAdapter:
    """Return the record of the files in `folder`; its name is the adapter's and the specialty."""
    version = AdapterVersion(
        version="1",
        sha256=digest,
        config_sha256=sha256_of(folder / "adapter_config.json"),
        path=f"{SEED_PATH}weights/{folder.name}",
        source=SEED_SOURCE,
        rank=rank,
        num_bytes=sum(file.stat().st_size for file in folder.iterdir()),
    )
    return RegisteredAdapter(
        name=folder.name,
        specialty=folder.name,
        base_model=base_name,
        state="active",
        version="1",
        versions=[version],
    )
