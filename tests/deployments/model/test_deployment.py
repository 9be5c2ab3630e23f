"""A model replica as a whole: which thread does what, and how it starts and stops."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.prompting import Message
from adapters.seed_check import AdapterError
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import SamplingParams
from deployments.messages import GenerateRequest
from deployments.model.deployment import ModelReplica
from deployments.model.loading import LoadedModel, load_model
from deployments.replica import open_adapter_store
from deployments.settings import Settings

pytestmark = pytest.mark.slow

NUM_THREADS = 2


class Calls:
    """Of which thread each call was, and how many threads torch had there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.threads: dict[str, set[tuple[int, int]]] = {}

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)
        self._patch.setattr(owner, name, self.watched(name, original))

    def watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            where = (threading.get_ident(), torch.get_num_threads())
            self.threads.setdefault(name, set()).add(where)
            return original(*args, **kwargs)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    before = torch.get_num_threads()
    yield Calls(monkeypatch)
    torch.set_num_threads(before)


def settings_of(base: Path, catalog: Path, state: Path, **engine: Any) -> Settings:
    engine = {
        "dtype": "float32",
        "max_rows": 2,
        "default_output_tokens": 8,
        "max_output_tokens": 32,
    } | engine
    fields = {"base_model": str(base), "adapters": str(catalog), "state_dir": str(state)}
    return Settings.model_validate({**fields, "engine": engine})


def call(adapter: str | None, max_tokens: int = 4) -> GenerateRequest:
    turns = (Message("user", "What is eczema?"),)
    return GenerateRequest("r", turns, adapter, SamplingParams(max_tokens), stream=False)


async def test_torch_runs_on_one_thread_from_the_load_to_the_last_step(
    calls: Calls, tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A second thread would open a second pool of OpenMP threads on the same cores, and a step on
    the CPU would take 1.6 times as long. Reading adapters beside the answers opens none."""
    for method in ("step", "install", "evict", "dry_run", "warm_up", "set_adapter"):
        calls.watch(ModelRunner, method)
    calls.watch(ModelRunner, "read_adapter")
    base, catalog = tiny_catalogs["llama"]
    settings = settings_of(base, catalog, tmp_path, cpu_threads=NUM_THREADS, max_adapters=1)
    replica = ModelReplica(settings, "cpu", calls.watched("load", load_model))
    try:
        for adapter in ("derm", "cardio", None, "derm"):  # one slot: they evict each other
            assert (await replica.answer(call(adapter))).error is None
        version = open_adapter_store(settings).read().adapters[0].stable
        assert await replica.try_adapter("again", version) == []
    finally:
        replica.close()
    reads = calls.threads.pop("read_adapter")
    assert set(calls.threads) == {
        *("load", "step", "install", "evict", "dry_run", "warm_up", "set_adapter")
    }
    [(engine_thread, num_threads)] = set().union(*calls.threads.values())
    assert num_threads == NUM_THREADS
    assert {num for _, num in reads} == {1}
    assert engine_thread not in {thread for thread, _ in reads}
    assert engine_thread != threading.get_ident()


def test_a_load_that_fails_is_raised(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    def fail(settings: Settings, device: str) -> LoadedModel:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        ModelReplica(settings_of(*tiny_catalogs["llama"], tmp_path), "cpu", fail)


@pytest.mark.parametrize("damaged", ["weights", "tensors"])
def test_a_bad_adapter_of_the_shipped_catalogue_refuses_the_start(
    damaged: str, tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, shipped = tiny_catalogs["llama"]
    catalog = Path(shutil.copytree(shipped, tmp_path / "catalog"))
    file = catalog / "weights" / "derm" / "adapter_model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    if damaged == "weights":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        save_file({n: t * torch.nan for n, t in load_file(file).items()}, file)
        listed = catalog / "catalog.yaml"
        after = hashlib.sha256(file.read_bytes()).hexdigest()
        listed.write_text(listed.read_text().replace(before, after))
    with pytest.raises(AdapterError, match="adapter 'derm'"):
        ModelReplica(settings_of(base, catalog, tmp_path / "state"), "cpu", load_model)


@pytest.mark.parametrize("num_adapters", [1, 2])
def test_max_adapters_alone_gives_the_slots(
    num_adapters: int,
    tiny_catalogs: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many are in service; and at the start each is hashed once."""
    hashed: list[str] = []

    def file_digest(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return original(file, name)

    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    settings = settings_of(*tiny_catalogs["llama"], tmp_path, max_adapters=num_adapters)
    replica = ModelReplica(settings, "cpu", load_model)
    try:
        assert replica._adapters is not None
        tiers = [a["tier"] for a in replica._adapters.report()["adapters"]]
        assert tiers.count("device") == num_adapters
    finally:
        replica.close()
    weights = [file for file in hashed if str(file).endswith("adapter_model.safetensors")]
    assert len(weights) == len(set(weights)) == 2


POOLS = """
import os, threading
from deployments.engine.thread import TorchThread
from deployments.engine.thread import use_cores_on

thread = TorchThread()
use_cores_on(thread, 2)
import torch
from safetensors.torch import load_file, save_file

from adapters.seed_check import AdapterError

def num_threads():
    return len(os.listdir("/proc/self/task"))

def work():
    torch.ones(4_000_000).add_(1).sum()
    return num_threads()

def elsewhere():
    found = []
    other = threading.Thread(target=lambda: found.append(work()))
    other.start()
    other.join()
    return found[0] - 1  # itself

before = num_threads()
print(thread.submit(work).result() - before, elsewhere() - before, work() - before)
"""


def test_only_the_engines_thread_has_a_pool() -> None:
    """It gets one thread more for its two cores, whatever other threads compute afterwards."""
    run = subprocess.run(
        [sys.executable, "-c", POOLS], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.split() == ["1", "1", "1"], run.stderr


async def test_a_prompt_is_read_once_for_a_tenant(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Through the engine's process and back."""
    for is_on in (True, False):
        settings = settings_of(*tiny_catalogs["llama"], tmp_path, prefix_cache=is_on, max_rows=4)
        replica = ModelReplica(settings, "cpu")
        try:
            asked = [
                replace(call(adapter), turns=(Message("user", "hives and itches " * 6),), tenant=of)
                for adapter, of in (("derm", "a"), ("derm", "b"), ("cardio", "a"), ("derm", "a"))
            ]
            answers = [await replica.answer(one) for one in asked]
        finally:
            replica.close()
        assert all(answer.error is None for answer in answers)
        last = answers[-1].num_prompt_tokens - 1 if is_on else 0
        assert [answer.num_cached_tokens for answer in answers] == [0, 0, 0, last]
