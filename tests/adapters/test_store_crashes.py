"""The live catalogue: any sequence of changes and crashes leaves one that some serial order makes.

A crash is injected at every call of the file system in turn; whatever the dead writer did after it
fails too, as in a process that is gone. Its lock is let go of, as the kernel would.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import changes
from adapters.catalog import Catalog
from adapters.changes import ChangeRefused
from adapters.storage.atomic import FileCalls
from adapters.storage.local import LocalStorage
from adapters.store import AdapterStore
from tests.adapters.live_catalogs import Edit, make_seed, store_of, write_bundle

ROOT = Path(__file__).resolve().parent.parent.parent


class Crash(BaseException):
    """The process is gone."""


class CrashingCalls(FileCalls):
    """Dies at call number `dies_at`, before or after its effect; every later call fails too."""

    def __init__(self, dies_at: int, *, after: bool = False) -> None:
        self.num_calls = 0
        self._dies_at = dies_at
        self._after = after

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name == "num_calls":
            return found

        def call(*args: Any) -> None:
            self.num_calls += 1
            if self.num_calls == self._dies_at and self._after:
                found(*args)
            if self.num_calls >= self._dies_at:
                raise Crash
            found(*args)

        return call


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    return make_seed(tmp_path / "seed")


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "canary", "promote", "rollback", "disable", "activate", "pin", "remove"]
        ),
        st.sampled_from(["derm", "cardio", "new"]),
        st.one_of(st.none(), st.integers(1, 14)),  # the call at which the writer dies
        st.booleans(),  # before its effect, or after
    ),
    min_size=1,
    max_size=6,
)


def edit_of(kind: str, name: str, version: str, folder: Path) -> Edit:
    if kind in ("add", "canary"):
        record = write_bundle(folder / version, version)
        options: dict[str, Any] = {"activation": "active"}
        if kind == "canary":
            options = {"activation": "canary", "weight": 0.5}
        return lambda c: changes.add_version(
            c, name=name, specialty=name, base_model="tiny", version=record, **options
        )
    return {
        "promote": lambda c: changes.update(c, name, promote=True),
        "rollback": lambda c: changes.roll_back(c, name),
        "disable": lambda c: changes.update(c, name, state="disabled"),
        "activate": lambda c: changes.update(c, name, state="active"),
        "pin": lambda c: changes.update(c, name, pinned=True),
        "remove": lambda c: changes.remove(c, name),
    }[kind]


def attempt(store: AdapterStore, folder: Path, kind: str, name: str, version: str) -> None:
    edit = edit_of(kind, name, version, folder)
    if kind in ("add", "canary"):
        record = write_bundle(folder / version, version)
        store.put(record.digest, folder / version)
    store.change(edit)


def comparable(catalog: Catalog) -> dict[str, Any]:
    """Without where the files lie: a crash may leave a seed's version copied or not."""
    content = catalog.model_dump()
    for adapter in content["adapters"]:
        for version in adapter["versions"]:
            del version["path"]
    return content


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=OPERATIONS)
def test_any_sequence_of_changes_and_crashes_is_some_serial_order(
    operations: list[tuple[str, str, int | None, bool]],
) -> None:
    """A change that died counts either as done or as not done; one that returned is done."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seed, state = make_seed(folder / "seed"), folder / "state"
        model = store_of(seed, state).read()
        for number, (kind, name, dies_at, after) in enumerate(operations):
            version = f"v{number}"
            calls = CrashingCalls(dies_at, after=after) if dies_at else FileCalls()
            edit = edit_of(kind, name, version, folder / "sources")
            try:
                done: Catalog | None = edit(model)
            except ChangeRefused:
                done = None
            if done is not None:
                done = done.model_copy(update={"revision": model.revision + 1})
            crashed = refused = False
            try:
                attempt(store_of(seed, state, calls), folder / "sources", kind, name, version)
            except Crash:
                crashed = True
            except ChangeRefused:
                refused = True
            found = store_of(seed, state).read()
            if crashed:
                allowed = [model] if done is None else [model, done]
                matching = [m for m in allowed if comparable(m) == comparable(found)]
                assert matching, "neither done nor undone"
                model = matching[0]
            else:
                assert refused == (done is None)
                model = done or model
                assert comparable(found) == comparable(model)
            for adapter in found.adapters:
                for listed in adapter.versions:
                    store_of(seed, state).folder(listed)  # raises when a file is not whole
        leftovers = list(state.rglob(".new-*"))
        LocalStorage(state).collect(found.digests, older_than_s=-1)
        assert not list(state.rglob(".new-*")), leftovers


def test_a_crash_at_every_single_call(seed: Path, tmp_path: Path) -> None:
    """One update, dying at each of its calls: before the rename it is undone, after it is done."""
    probe = CrashingCalls(10_000)
    attempt(store_of(seed, tmp_path / "probe", probe), tmp_path / "s", "add", "derm", "2")
    assert probe.num_calls > 10
    outcomes = []
    for after in (False, True):
        for dies_at in range(1, probe.num_calls + 1):
            state = tmp_path / f"state-{dies_at}-{after}"
            calls = CrashingCalls(dies_at, after=after)
            with pytest.raises(Crash):
                attempt(store_of(seed, state, calls), tmp_path / "s", "add", "derm", "2")
            catalog = store_of(seed, state).read()
            outcomes.append(catalog.revision)
            attempt(store_of(seed, state), tmp_path / "s", "add", "derm", "3")
            derm = store_of(seed, state).read().adapter("derm")
            assert derm is not None
            assert derm.version == "3"
    assert set(outcomes) == {0, 1}


WRITER = """
import sys
from pathlib import Path
from adapters import changes
from adapters.catalog import load_catalog
from adapters.store import open_store
seed, state, mine, count = sys.argv[1:]
store = open_store(state, Path(seed), Path(state) / "cache")
for number in range(int(count)):
    fields = {"state": "active"}
    if number % 2 == 0:
        fields = {"state": "disabled", "reason": str(number)}
    store.change(lambda c: changes.update(c, mine, **fields))
print("done")
"""


def test_two_processes_that_write_at_once_lose_nothing(seed: Path, tmp_path: Path) -> None:
    state, count = tmp_path / "state", 25
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(seed), str(state), name, str(count)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("derm", "cardio")
    ]
    assert [w.communicate(timeout=60)[0].strip() for w in writers] == ["done", "done"]
    catalog = store_of(seed, state).read()
    assert catalog.revision == 2 * count
    assert {a.name: (a.state, a.reason) for a in catalog.adapters} == {
        name: ("disabled", str(count - 1)) for name in ("derm", "cardio")
    }
