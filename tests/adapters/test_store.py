"""The live catalogue in a folder: what may happen to it, and what is refused."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import changes
from adapters.catalog import Catalog, CatalogError, dump, parse
from adapters.changes import ChangeRefused
from adapters.pins import check_pins, num_pinned
from adapters.seed import reseed
from adapters.storage.atomic import FileCalls
from adapters.storage.local import LocalStorage
from adapters.storage.protocol import StorageError
from adapters.store import DamagedAdapter, RevisionMoved
from tests.adapters.live_catalogs import Edit, add, make_seed, store_of, write_bundle


class FullDisk(FileCalls):
    def write(self, file: Path, content: bytes) -> None:
        file.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    def copy(self, source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise OSError(28, "No space left on device")


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    return make_seed(tmp_path / "seed")


def test_until_the_first_change_the_seed_is_the_catalogue(seed: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    store = store_of(seed, state)
    catalog = store.read()
    assert (catalog.revision, [a.name for a in catalog.adapters]) == (0, ["derm", "cardio"])
    assert store.etag() is None
    assert not state.exists()
    assert store.folder(catalog.adapters[0].stable) == seed / "weights" / "derm"


def test_a_change_is_seen_by_another_reader_and_carries_the_files(
    seed: Path, tmp_path: Path
) -> None:
    writer, reader = (store_of(seed, tmp_path / "state") for _ in range(2))
    reader.read()
    after = add(writer, tmp_path, "derm", "2")
    assert reader.read() == after
    derm = after.adapter("derm")
    assert derm is not None
    assert (derm.version, derm.previous, derm.state) == ("2", ["1"], "active")
    for version in derm.versions:  # the seed's too: a later seed cannot take it away
        assert reader.folder(version).parent == tmp_path / "state" / "weights"


def test_the_life_of_an_adapter(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    add(store, tmp_path, "derm", "2", activation="canary", weight=0.25)
    derm = store.read().adapter("derm")
    assert derm is not None
    assert [v.version for v in derm.served] == ["1", "2"]
    store.change(lambda c: changes.update(c, "derm", promote=True))
    promoted = store.read().adapter("derm")
    assert promoted is not None
    assert (promoted.version, promoted.previous, promoted.canary) == ("2", ["1"], None)
    store.change(lambda c: changes.update(c, "derm", canary_version="1", canary_weight=0.5))
    rolled = store.change(lambda c: changes.roll_back(c, "derm")).adapter("derm")
    assert rolled == promoted, "the first roll-back ends the trial"
    back = store.change(lambda c: changes.roll_back(c, "derm")).adapter("derm")
    assert back is not None
    assert (back.version, back.previous) == ("1", [])
    off = store.change(lambda c: changes.update(c, "derm", state="disabled", reason="recalled"))
    assert off.skipped("tiny") == {"derm": "its state is disabled: recalled"}
    on = store.change(lambda c: changes.update(c, "derm", state="active"))
    assert [a.name for a in on.in_service("tiny")] == ["derm", "cardio"]
    gone = store.change(lambda c: changes.remove(c, "derm"))
    assert [a.name for a in gone.adapters] == ["cardio"]
    assert store.read() == gone, "the seed does not bring it back"


@pytest.mark.parametrize(
    ("edit", "kind", "part"),
    [
        (lambda c: changes.roll_back(c, "derm"), "conflict", "no version before '1'"),
        (lambda c: changes.roll_back(c, "x" * 10_000), "not_found", "there are: derm, cardio"),
        (lambda c: changes.remove(c, "../etc"), "not_found", "no adapter"),
        (lambda c: changes.update(c, "derm"), "invalid", "given: none"),
        (
            lambda c: changes.update(c, "derm", state="active", promote=True),
            "invalid",
            "given: state, promote",
        ),
        (lambda c: changes.update(c, "derm", promote=True), "conflict", "no version on trial"),
        (lambda c: changes.update(c, "derm", version="9"), "not_found", "no version '9' (has: 1)"),
        (
            lambda c: changes.update(c, "derm", canary_version="1", canary_weight=0.5),
            "conflict",
            "serves already",
        ),
        (lambda c: changes.update(c, "derm", canary_weight=0.0), "conflict", "no version on trial"),
        (lambda c: changes.update(c, "derm", canary_weight=0.1), "invalid", "canary_version"),
        (lambda c: changes.update(c, "derm", canary_version="1"), "invalid", "canary_weight"),
        (
            lambda c: changes.update(c, "derm", state="active", pinned=False),
            "invalid",
            "given: state, pinned",
        ),
        (
            lambda c: changes.update(c, "derm", version="1", reason="recalled"),
            "invalid",
            "reason goes with state: disabled",
        ),
        (
            lambda c: changes.update(c, "derm", state="active", reason="well again"),
            "invalid",
            "reason goes with state: disabled",
        ),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    edit: Edit, kind: str, part: str, seed: Path, tmp_path: Path
) -> None:
    store = store_of(seed, tmp_path / "state")
    with pytest.raises(ChangeRefused) as caught:
        store.change(edit)
    assert caught.value.kind == kind
    assert part in str(caught.value)
    assert store.read().revision == 0


def test_a_pin_lasts_through_what_else_happens_to_the_adapter(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")

    def is_pinned() -> bool:
        derm = store_of(seed, tmp_path / "state").read().adapter("derm")
        assert derm is not None
        return derm.pinned

    assert not is_pinned()
    store.change(lambda c: changes.update(c, "derm", pinned=True))
    assert is_pinned()
    add(store, tmp_path, "derm", "2")
    store.change(lambda c: changes.roll_back(c, "derm"))
    store.change(lambda c: changes.update(c, "derm", state="disabled", reason="recalled"))
    store.change(lambda c: changes.update(c, "derm", state="active"))
    assert is_pinned()
    add(store, tmp_path, "derm", "3", pinned=False)
    assert not is_pinned()
    add(store, tmp_path, "derm", "4", pinned=True)
    store.change(lambda c: changes.remove(c, "derm"))
    add(store, tmp_path, "derm", "5")
    assert not is_pinned(), "another adapter of the same name"
    fresh = add(store, tmp_path, "new", "1", pinned=True).adapter("new")
    assert fresh is not None
    assert fresh.pinned


def test_a_catalogue_from_before_pins_loads(seed: Path, tmp_path: Path) -> None:
    after = add(store_of(seed, tmp_path / "state"), tmp_path, "derm", "2")
    written = yaml.safe_load(dump(after))
    for adapter in written["adapters"]:
        del adapter["pinned"]
    assert parse(yaml.safe_dump(written).encode(), "here") == after


def test_pins_leave_a_place_for_the_others(tmp_path: Path) -> None:
    seed = make_seed(tmp_path / "seed", names=("derm", "cardio", "neuro"))
    store = store_of(seed, tmp_path / "state")

    def changed(edit: Edit, num_slots: int = 3) -> Catalog:
        def checked(catalog: Catalog) -> Catalog:
            after = edit(catalog)
            check_pins(catalog, after, "tiny", num_slots=num_slots)
            return after

        return store.change(checked)

    changed(lambda c: changes.update(c, "derm", pinned=True))
    changed(lambda c: changes.update(c, "cardio", pinned=True))
    record = write_bundle(tmp_path / "2", "2")
    store.put(record.digest, tmp_path / "2")

    def on_trial(catalog: Catalog) -> Catalog:
        return changes.add_version(
            catalog,
            name="derm",
            specialty=None,
            base_model="tiny",
            version=record,
            activation="canary",
            weight=0.5,
        )

    third = "3 versions would be pinned, and a replica has 3 slots .* at most 2 can be"
    for edit in (on_trial, lambda c: changes.update(c, "neuro", pinned=True)):
        with pytest.raises(ChangeRefused, match=third) as caught:
            changed(edit)
        assert caught.value.kind == "conflict"
    changed(lambda c: changes.update(c, "derm", state="disabled"))
    both = changed(lambda c: changes.update(c, "neuro", pinned=True))
    assert (num_pinned(both, "tiny"), num_pinned(both, "other")) == (2, 0)
    with pytest.raises(ChangeRefused, match=third):
        changed(lambda c: changes.update(c, "derm", state="active"))
    # after a restart with fewer places, what adds no pin still goes through
    left = changed(lambda c: changes.update(c, "neuro", pinned=False), num_slots=1)
    assert num_pinned(left, "tiny") == 1


def test_an_added_adapter_may_not_collide(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    record = write_bundle(tmp_path / "new", "7")

    def added(name: str, specialty: str | None, base: str = "tiny", **options: Any) -> list[str]:
        with pytest.raises(ChangeRefused) as caught:
            store.change(
                lambda c: changes.add_version(
                    c, name=name, specialty=specialty, base_model=base, version=record, **options
                )
            )
        return caught.value.problems

    assert added("derm", "cardio", "other") == [
        "adapter 'derm' is for derm, not cardio",
        "adapter 'derm' is for tiny, not other",
    ]
    assert "two adapters in service: ['derm on tiny']" in added("derm2", "derm")[0]
    assert "name its specialty" in added("new", None)[0]
    assert "nothing" not in added("a/b", "x")[0]
    assert "a-z, 0-9" in added("a/b", "x")[0]
    assert "a-z, 0-9" in added("n" * 10_000, "x")[0]
    assert "no serving version to compare it with" in added("n", "n", activation="canary")[0]


def test_a_writer_that_looked_too_long_ago_is_told(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    store.change(lambda c: changes.remove(c, "derm"), expected_revision=0)
    with pytest.raises(RevisionMoved, match="at revision 1, not 0"):
        store.change(lambda c: changes.remove(c, "cardio"), expected_revision=0)
    assert [a.name for a in store.read().adapters] == ["cardio"]


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_cut_off_file_is_never_taken_for_a_catalogue(
    cut: int, seed: Path, tmp_path: Path
) -> None:
    store = store_of(seed, tmp_path / "state")
    add(store, tmp_path, "derm", "2")
    file = tmp_path / "state" / "catalog.yaml"
    content = file.read_bytes()
    with pytest.raises(CatalogError):
        parse(content[: len(content) * cut // 100], "here")
    assert parse(content, "here").revision == 1


def test_a_full_disk_leaves_everything_as_it_was(seed: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    add(store_of(seed, state), tmp_path, "derm", "2")
    before = {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}
    full = store_of(seed, state, FullDisk())
    with pytest.raises(StorageError, match="No space left"):
        full.change(lambda c: changes.roll_back(c, "derm"))
    with pytest.raises(StorageError, match="No space left"):
        add(full, tmp_path, "derm", "3")
    assert {p: p.read_bytes() for p in state.rglob("*") if p.is_file()} == before
    assert [p.name for p in state.rglob(".new-*")] == []


def test_damaged_files_are_not_handed_out(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    derm = add(store, tmp_path, "derm", "2").adapter("derm")
    assert derm is not None
    (store.folder(derm.stable) / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedAdapter, match="sha256"):
        store.folder(derm.stable)


def test_unlisted_files_are_collected_once_they_are_old(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    after = add(store, tmp_path, "derm", "2")
    orphan = write_bundle(tmp_path / "x", "x")
    store.put(orphan.digest, tmp_path / "x")
    assert store.collect() == []
    files = LocalStorage(tmp_path / "state")
    assert files.collect(after.digests, older_than_s=-1) == [orphan.digest]
    left = {p.name for p in (tmp_path / "state" / "weights").iterdir()}
    assert left == set(after.digests)


def test_what_has_just_left_the_catalogue_stays_for_an_hour(seed: Path, tmp_path: Path) -> None:
    """A replica that starts, or a question on its way, has the catalogue of before."""
    store, files = store_of(seed, tmp_path / "state"), LocalStorage(tmp_path / "state")
    version = add(store, tmp_path, "derm", "2").adapter("derm").stable  # type: ignore[union-attr]
    folder = store.folder(version)
    os.utime(folder, (0, 0))
    assert store.collect() == []
    store.change(lambda c: changes.remove(c, "derm"))
    assert store.collect() == []
    assert store.folder(version) == folder
    assert version.digest in files.collect(store.read().digests, older_than_s=-10)


def test_an_adapter_whose_files_are_lost_can_be_removed(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    version = add(store, tmp_path, "derm", "2").adapter("derm").stable  # type: ignore[union-attr]
    shutil.rmtree(store.folder(version))
    assert store.change(lambda c: changes.remove(c, "derm")).adapter("derm") is None


def test_adapters_that_nobody_touched_follow_the_seed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    old = make_seed(tmp_path / "old", names=("derm", "cardio", "neuro"))
    store = store_of(old, state)
    add(store, tmp_path, "derm", "2")
    store.change(lambda c: changes.remove(c, "neuro"))
    store.change(lambda c: changes.update(c, "cardio", pinned=True))
    fresh = make_seed(tmp_path / "new", version="5", names=("derm", "cardio", "neuro", "onco"))
    catalog = store_of(fresh, state).read()
    versions = {a.name: a.version for a in catalog.adapters}
    assert versions == {"derm": "2", "cardio": "5", "onco": "5"}
    assert [a.name for a in catalog.adapters if a.pinned] == ["cardio"]
    seed_live = store_of(fresh, tmp_path / "none").read()
    assert reseed(catalog, seed_live) == catalog, "doing it twice changes nothing"


def test_a_seed_that_moves_to_a_specialty_that_is_served_stays_as_it_was(tmp_path: Path) -> None:
    """Else a specialty had two adapters in service, and every later change were refused."""
    state = tmp_path / "state"
    old = make_seed(tmp_path / "old", names=("derm",))
    store = store_of(old, state)
    add(store, tmp_path, "skin", "9")
    fresh = make_seed(tmp_path / "new", version="5", names=("derm",))
    listed = (fresh / "catalog.yaml").read_text()
    (fresh / "catalog.yaml").write_text(listed.replace("specialty: derm", "specialty: skin"))
    later = store_of(fresh, state)
    assert {a.name: (a.specialty, a.version) for a in later.read().adapters} == {
        "derm": ("derm", "1"),
        "skin": ("skin", "9"),
    }
    assert later.change(lambda c: changes.remove(c, "skin")).removed == []
    assert later.change(lambda c: changes.remove(c, "derm")).removed == ["derm"]


def test_a_dump_is_read_back(seed: Path, tmp_path: Path) -> None:
    catalog = add(store_of(seed, tmp_path / "state"), tmp_path, "derm", "2")
    assert parse(dump(catalog), "x") == catalog
    listed = yaml.safe_load(dump(catalog))
    assert list(listed)[-1] == "num_adapters"
