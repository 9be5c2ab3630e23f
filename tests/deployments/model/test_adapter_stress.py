"""Any number of threads at once on a replica's AdapterManager, with a decoder that watches.

Its rules: one task at a time, never more versions than the pool has slots, no version leaves
while it is leased, and one that is out of service leaves with its last answer.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import changes
from adapters.catalog import Catalog
from adapters.changes import ChangeRefused
from deployments.engine.errors import EngineError
from deployments.model.adapter_manager import AdapterManager
from deployments.model.weights_reader import HostCache
from tests.adapters.live_catalogs import make_seed, store_of, write_bundle

pytestmark = pytest.mark.slow  # whole runs: seconds together

NAMES = ("a", "b", "c", "d", "e")
CAPACITY = 2


class WatchingDecoder:
    """`num_places`: of the pool; one more than the manager's capacity, for what is tried out."""

    def __init__(self, num_places: int) -> None:
        self.held: set[str] = set()
        self.leases: Counter[str] = Counter()
        self.faults: list[str] = []
        self.most = 0
        self._num_places = num_places
        self._lock = threading.Lock()  # of what is noted; a task holds `_task`
        self._task = threading.Lock()

    @contextmanager
    def _one_at_a_time(self, what: str) -> Iterator[None]:
        if not self._task.acquire(blocking=False):
            self.faults.append(f"{what} during another task")
            self._task.acquire()
        try:
            with self._lock:
                yield
        finally:
            self._task.release()

    def read_adapter(self, directory: Path) -> str:
        text = (directory / "adapter_model.safetensors").read_text()
        if text.startswith("broken"):
            raise RuntimeError("CUDA out of memory")
        return text

    def num_host_bytes(self, weights: str) -> int:
        return 20

    def install(self, name: str, weights: str, *, probe: bool = True) -> None:
        with self._one_at_a_time(f"install {name}"):
            self.held.add(name)
            self.most = max(self.most, len(self.held))
            if len(self.held) > self._num_places - 1:
                self.faults.append(f"install {name}: {len(self.held)} of {self._num_places - 1}")

    def dry_run(self, name: str, weights: str) -> None:
        with self._one_at_a_time(f"try {name}"):
            if len(self.held) >= self._num_places:
                self.faults.append(f"try {name}: no place is free")

    def evict(self, name: str) -> None:
        with self._one_at_a_time(f"evict {name}"):
            if self.leases[name]:
                self.faults.append(f"evict {name}: {self.leases[name]} leases")
            self.held.remove(name)

    def began(self, key: str) -> None:
        with self._lock:
            if key not in self.held:
                self.faults.append(f"lease of {key}: not on the device")
            self.leases[key] += 1

    def ended(self, key: str) -> None:
        with self._lock:
            if key not in self.held:
                self.faults.append(f"{key} left while it was leased")
            self.leases[key] -= 1


class Replica:
    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.seed = make_seed(folder / "seed", names=NAMES)
        self.decoder = WatchingDecoder(CAPACITY + 1)
        self._engine = ThreadPoolExecutor(1)
        self.manager = AdapterManager(
            store_of(self.seed, folder / "state"),
            "tiny",
            self.decoder,
            capacity=CAPACITY,
            host=HostCache(40),  # of two bundles, so that most are read again
            run=self._engine.submit,
            clock=clock,
        )

    def answer(self, name: str, version: str | None, pause: Any) -> None:
        try:
            key = self.manager.leases.lease(name, version).result(60)
        except EngineError:  # gone, disabled, or broken
            return
        self.decoder.began(key)
        pause()
        self.decoder.ended(key)
        self.manager.leases.release(key)

    def close(self) -> None:
        self._engine.shutdown()

    def check_at_rest(self) -> None:
        self.manager.sync()
        self._engine.submit(lambda: None).result(10)
        report = self.manager.report()
        on_device = {
            f"{a['name']}@{a['version']}" for a in report["adapters"] if a["tier"] == "device"
        }
        assert {key.partition("#")[0] for key in self.decoder.held} == on_device
        assert report["leaving"] == []
        num_good = sum(a["error"] is None for a in report["adapters"])
        assert len(on_device) == min(CAPACITY, num_good)
        assert not +self.decoder.leases
        assert self.decoder.faults == []


@pytest.fixture
def quick_switching() -> Iterator[None]:
    """Threads take turns a thousand times more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def operate(replica: Replica, dice: random.Random, number: int) -> None:
    """One change of the catalogue, as another process makes it."""
    store = store_of(replica.seed, replica.folder / "state")
    name = dice.choice(NAMES)

    def change(catalog: Catalog) -> Catalog:
        found = catalog.adapter(name)
        kind = dice.choice(("version", "state", "rollback", "add"))
        if kind == "add" or found is None:
            text = f"v{number}"
            record = write_bundle(replica.folder / "new" / text, text)
            store.put(record.digest, replica.folder / "new" / text)
            return changes.add_version(
                catalog, name=name, specialty=name, base_model="tiny", version=record
            )
        if kind == "version":
            version = dice.choice(found.versions).version
            return changes.update(catalog, name, version=version)
        if kind == "state":
            return changes.update(
                catalog, name, state="active" if found.state == "disabled" else "disabled"
            )
        return changes.roll_back(catalog, name)

    with suppress(ChangeRefused):
        store.change(change)
    replica.manager.sync()


@pytest.mark.parametrize("seed", range(3))
def test_many_threads_break_no_rule(seed: int, tmp_path: Path, quick_switching: None) -> None:
    replica = Replica(tmp_path)
    replica.manager.sync()
    stop = threading.Event()

    def ask(number: int) -> int:
        dice, count = random.Random(f"{seed}-{number}"), 0
        while not stop.is_set():
            version = dice.choice((None, None, "1", "v3"))
            replica.answer(dice.choice(NAMES), version, lambda: stop.wait(dice.random() * 1e-3))
            count += 1
        return count

    def follow() -> int:
        count = 0
        while not stop.wait(0.002):
            replica.manager.sync()
            count += 1
        return count

    record = write_bundle(tmp_path / "tried", "tried")
    store_of(replica.seed, tmp_path / "state").put(record.digest, tmp_path / "tried")

    def dry_run() -> int:
        count = 0
        while not stop.wait(0.001):
            assert replica.manager.dry_run("new", record) == []
            count += 1
        return count

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(ask, number) for number in range(6)]
        running += [pool.submit(follow), pool.submit(dry_run)]
        dice = random.Random(seed)
        try:
            for number in range(60):
                operate(replica, dice, number)
        finally:
            stop.set()
        assert all(future.result(40) > 3 for future in running)
    replica.check_at_rest()
    assert replica.decoder.most == CAPACITY
    replica.close()


# --- one thread, any sequence ---

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["lease", "old", "release", "sync", "update", "state", "remove", "broken"]),
        st.sampled_from(NAMES),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=25,
)


class TickingClock:
    """Half a minute passes with every look, so that waiting for a place ends at once."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 31.0
        return self.now


def step(replica: Replica, leases: list[str], kind: str, name: str, number: int) -> None:
    store = store_of(replica.seed, replica.folder / "state")
    if kind in ("lease", "old"):
        with suppress(EngineError):  # gone, broken, or every place is leased
            key = replica.manager.leases.lease(name, "1" if kind == "old" else None).result(60)
            replica.decoder.began(key)
            leases.append(key)
    elif kind == "release" and leases:
        key = leases.pop(number % len(leases))
        replica.decoder.ended(key)
        replica.manager.leases.release(key)
    elif kind == "sync":
        replica.manager.sync()
    elif kind in ("update", "broken"):
        text = f"{kind}{number}-{store.read().revision}"
        record = write_bundle(replica.folder / "new" / text, text)
        store.put(record.digest, replica.folder / "new" / text)
        store.change(
            lambda c: changes.add_version(
                c, name=name, specialty=name, base_model="tiny", version=record
            )
        )
    elif kind in ("state", "remove"):
        found = store.read().adapter(name)
        if found is not None and kind == "remove":
            store.change(lambda c: changes.remove(c, name))
        elif found is not None:
            wanted: Any = "active" if found.state == "disabled" else "disabled"
            store.change(lambda c: changes.update(c, name, state=wanted))


@settings(max_examples=30, deadline=None)
@given(steps=STEPS)
def test_any_sequence_breaks_no_rule(steps: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        replica = Replica(Path(scratch), TickingClock())
        leases: list[str] = []
        replica.manager.sync()
        for kind, name, number in steps:
            step(replica, leases, kind, name, number)
            assert len(replica.decoder.held) <= CAPACITY
            assert set(leases) <= replica.decoder.held
            assert replica.decoder.faults == []
        for key in leases:
            replica.decoder.ended(key)
            replica.manager.leases.release(key)
        replica.check_at_rest()
        replica.close()
