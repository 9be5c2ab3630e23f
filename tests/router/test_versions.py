"""Publishing and rolling back: readers see one whole artefact, whatever fails."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from router import versions
from router.artefact import MANIFEST, WEIGHTS, ArtefactError, load_artefact, read_manifest
from router.encoder import ENCODER
from router.versions import CURRENT, LOCK, VERSIONS, etag, publish, read_current, resolve, roll_back


def renamed(artefact: Path, copy: Path, version: str) -> Path:
    """A copy under another version."""
    shutil.copytree(artefact, copy)
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    manifest["version"] = version
    (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return copy


@pytest.fixture
def three(tiny_router_dir: Path, tmp_path: Path) -> list[Path]:
    return [renamed(tiny_router_dir, tmp_path / f"v{n}", f"v{n}") for n in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "versions-of-the-router"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_what_is_published_is_served(three: list[Path], folder: Path) -> None:
    for number, artefact in enumerate(three, start=1):
        assert publish(artefact, folder) == f"v{number}"
        assert contents(resolve(folder)) == contents(artefact)
    assert read_current(folder).previous == ("v1", "v2")
    names = {p.name for p in (folder / VERSIONS).iterdir()} | {p.name for p in folder.iterdir()}
    assert names == {"v1", "v2", "v3", VERSIONS, CURRENT, LOCK}  # nothing half written is left


def test_an_artefact_is_its_own_only_version(tiny_router_dir: Path, tmp_path: Path) -> None:
    assert resolve(tiny_router_dir) == tiny_router_dir
    with pytest.raises(ArtefactError, match=r"manifest\.json: it is missing"):
        load_artefact(resolve(tmp_path / "nothing"))


def test_rolling_back_goes_one_version_at_a_time(three: list[Path], folder: Path) -> None:
    for artefact in three:
        publish(artefact, folder)
    for number in (2, 1):
        assert roll_back(folder) == f"v{number}"
        assert contents(resolve(folder)) == contents(three[number - 1])
    with pytest.raises(ArtefactError, match="there is no version before v1"):
        roll_back(folder)
    assert read_current(folder).version == "v1"


def test_after_a_roll_back_another_version_may_follow(three: list[Path], folder: Path) -> None:
    publish(three[0], folder)
    publish(three[1], folder)
    roll_back(folder)
    publish(three[2], folder)
    assert roll_back(folder) == "v1"
    assert publish(three[2], folder) == "v3"  # it is there already
    assert roll_back(folder) == "v1"


def test_the_same_artefact_twice_is_one_version(three: list[Path], folder: Path) -> None:
    publish(three[0], folder)
    publish(three[0], folder)
    assert read_current(folder).previous == ()


def test_each_change_has_another_etag(three: list[Path], folder: Path) -> None:
    etags = []
    for artefact in three:
        publish(artefact, folder)
        etags.append(etag(folder))
    assert len(set(etags)) == 3
    roll_back(folder)
    assert etag(folder) == etags[1]


def test_a_manifest_without_version_has_an_etag_too(router_copy: Path) -> None:
    """Loading it, which follows a change of the etag, names the problem."""
    before = etag(router_copy)
    manifest = read_manifest(router_copy / MANIFEST)
    del manifest["version"]
    (router_copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert etag(router_copy) != before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": "v1"}',
        '{"version": "v1", "previous": null}',
        '{"version": "../../elsewhere", "previous": []}',
        '{"version": "v1", "previous": ["a/b"]}',
        '{"version": "..", "previous": []}',
        '{"version": "", "previous": []}',
        '{"version": ".hidden", "previous": []}',
        '{"version": null, "previous": [1, "/etc"]}',
    ],
)
def test_a_damaged_current_file_is_refused(three: list[Path], folder: Path, content: str) -> None:
    publish(three[0], folder)
    (folder / CURRENT).write_text(content)
    actions: list[Callable[[Path], object]] = [resolve, etag, roll_back]
    for action in actions:
        with pytest.raises(ArtefactError, match=r"current\.json: .*Fix: "):
            action(folder)


@pytest.mark.parametrize("version", ["../v9", "a/b", "..", "", ".v", "v 1", "x" * 101])
def test_an_unsafe_version_is_not_published(
    tiny_router_dir: Path, tmp_path: Path, folder: Path, version: str
) -> None:
    bad = renamed(tiny_router_dir, tmp_path / "bad", version)
    with pytest.raises(ArtefactError, match="is not a version's name"):
        publish(bad, folder)
    assert not folder.exists()


def test_another_artefact_of_the_same_name_is_refused(
    three: list[Path], tmp_path: Path, folder: Path
) -> None:
    publish(three[0], folder)
    manifest = read_manifest(three[1] / MANIFEST) | {"version": "v1", "command": "another"}
    (three[1] / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtefactError, match="another artefact is already called v1"):
        publish(three[1], folder)


def test_a_folder_that_is_an_artefact_takes_no_versions(
    router_copy: Path, three: list[Path]
) -> None:
    before = contents(router_copy)
    for artefact in (three[0], router_copy):
        with pytest.raises(ArtefactError, match="an artefact itself; versions need a folder"):
            publish(artefact, router_copy)
    assert contents(router_copy) == before


def test_a_damaged_artefact_is_not_published(three: list[Path], folder: Path) -> None:
    publish(three[0], folder)
    for name in (WEIGHTS, ENCODER, "features.npz"):
        content = (three[1] / name).read_bytes()
        (three[1] / name).write_bytes(b"damaged")
        with pytest.raises(ArtefactError, match=rf"{name}: its sha256"):
            publish(three[1], folder)
        (three[1] / name).write_bytes(content)
    assert read_current(folder).version == "v1"


def test_a_damaged_version_does_not_come_back(three: list[Path], folder: Path) -> None:
    publish(three[0], folder)
    publish(three[1], folder)
    (folder / VERSIONS / "v1" / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match=r"v1/weights\.npz: its sha256"):
        roll_back(folder)
    with pytest.raises(ArtefactError, match=r"v1/weights\.npz: its sha256"):
        publish(three[0], folder)
    assert read_current(folder).version == "v2"


def test_a_copy_that_fails_leaves_the_current_version(
    three: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(three[0], folder)

    def fails_half_way(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copyfile(source / MANIFEST, target / MANIFEST)
        raise OSError("No space left on device")

    monkeypatch.setattr(versions.shutil, "copytree", fails_half_way)
    with pytest.raises(OSError, match="No space left"):
        publish(three[1], folder)
    assert read_current(folder).version == "v1"
    assert [p.name for p in (folder / VERSIONS).iterdir()] == ["v1"]
    monkeypatch.undo()
    assert publish(three[1], folder) == "v2"


def test_readers_never_see_a_half_state(three: list[Path], folder: Path) -> None:
    """Each reader loads what it resolved while versions come and go."""
    publish(three[0], folder)
    publish(three[1], folder)
    problems: list[Exception] = []
    seen: set[str] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                etag(folder)
                seen.add(load_artefact(resolve(folder)).version)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(6):
        roll_back(folder)
        publish(three[2], folder)
        roll_back(folder)
        shutil.rmtree(folder / VERSIONS / "v3")
        publish(three[1], folder)
    is_over.set()
    for reader in readers:
        reader.join()
    assert not [e for e in problems if "v3" not in str(e)]  # only v3 was ever taken away
    assert {"v1", "v2"} <= seen


@pytest.mark.slow
def test_two_processes_that_publish_lose_no_version(three: list[Path], folder: Path) -> None:
    """Without a lock, both would read the same current.json and one version would be lost."""
    publish(three[0], folder)
    command = (
        "import sys, pathlib; from router.versions import publish; "
        "publish(*map(pathlib.Path, sys.argv[1:]))"
    )
    with FileLock(folder / LOCK):
        waiting = [
            subprocess.Popen([sys.executable, "-c", command, str(artefact), str(folder)])
            for artefact in three[1:]
        ]
        with pytest.raises(subprocess.TimeoutExpired):
            waiting[0].wait(2)
        assert read_current(folder).version == "v1"
    assert [process.wait(60) for process in waiting] == [0, 0]
    current = read_current(folder)
    assert {current.version, *current.previous} == {"v1", "v2", "v3"}
    assert current.previous[0] == "v1"
