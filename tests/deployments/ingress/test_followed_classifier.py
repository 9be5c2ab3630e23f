"""A replica follows its artefact: new versions, damaged ones, roll-backs, pauses."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments import reloader
from deployments.ingress.followed_classifier import follow_classifier
from deployments.reloader import Reloader
from deployments.settings import Settings
from router.artefact import MANIFEST, WEIGHTS, ArtefactError
from router.classifier import Classifier
from router.versions import CURRENT, VERSIONS, publish, resolve, roll_back

PERIOD_S = 0.01


def renamed(artefact: Path, copy: Path, version: str) -> Path:
    shutil.copytree(artefact, copy)
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    (copy / MANIFEST).write_text(json.dumps(manifest | {"version": version}), encoding="utf-8")
    return copy


@pytest.fixture
def artefacts(tiny_router_dir: Path, tmp_path: Path) -> list[Path]:
    return [renamed(tiny_router_dir, tmp_path / f"v{n}", f"v{n}") for n in (1, 2)]


@pytest.fixture
def folder(artefacts: list[Path], tmp_path: Path) -> Path:
    """Its first version is in force."""
    publish(artefacts[0], tmp_path / "state")
    return tmp_path / "state"


def settings_for(folder: Path) -> Settings:
    return Settings.model_validate({"router": {"artefact": str(folder)}})


@pytest.fixture
def followed(folder: Path) -> Iterator[Reloader[Classifier]]:
    follower = follow_classifier(settings_for(folder), lambda: PERIOD_S)
    yield follower
    follower.stop()
    if follower._thread.ident is not None:
        follower._thread.join(timeout=5)
    assert not follower._thread.is_alive(), "the thread did not stop"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(PERIOD_S)


def test_refresh_says_whether_another_artefact_came_into_force(
    followed: Reloader[Classifier], folder: Path, artefacts: list[Path]
) -> None:
    first = followed.current
    assert first.version == "v1"
    assert followed.refresh() is False
    assert followed.current is first  # nothing was loaded again
    publish(artefacts[1], folder)
    assert followed.refresh() is True
    assert followed.current.version == "v2"
    assert first.version == "v1"  # whoever took it may go on with it
    assert first.classify([["rash"]])
    roll_back(folder)
    assert followed.refresh() is True
    assert followed.current.version == "v1"
    assert followed.problem is None


def test_versions_that_vanish_leave_the_last_one_in_service(
    followed: Reloader[Classifier], folder: Path
) -> None:
    """A state that is not mounted any more is no state that never had a version."""
    away = folder.rename(folder.with_name("away"))
    for make in (lambda: None, folder.mkdir, (folder / VERSIONS).mkdir):
        make()
        assert followed.refresh() is False
        assert followed.current.version == "v1"
        assert "its versions are gone: put it back" in str(followed.problem)
    shutil.rmtree(folder)
    away.rename(folder)
    assert followed.refresh() is False
    assert (followed.current.version, followed.problem) == ("v1", None)


def test_the_thread_follows_new_versions_and_roll_backs(
    followed: Reloader[Classifier], folder: Path, artefacts: list[Path]
) -> None:
    followed.start()
    publish(artefacts[1], folder)
    wait_for(lambda: followed.current.version == "v2")
    roll_back(folder)
    wait_for(lambda: followed.current.version == "v1")


def damage_weights(folder: Path) -> None:
    (resolve(folder) / WEIGHTS).write_bytes(b"damaged")


def damage_current(folder: Path) -> None:
    """In one step, so that a look at it finds nothing else."""
    (folder / "damaged").write_text("{")
    (folder / "damaged").replace(folder / CURRENT)


def damage_manifest(folder: Path) -> None:
    (resolve(folder) / MANIFEST).write_text("{")


def drop_version(folder: Path) -> None:
    file = resolve(folder) / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["version"]
    file.write_text(json.dumps(manifest), encoding="utf-8")


def remove_version(folder: Path) -> None:
    shutil.rmtree(folder / VERSIONS / "v2")


def damage_encoder(folder: Path) -> None:
    """Vouched for by the manifest, so that only loading it shows the damage."""
    artefact = resolve(folder)
    (artefact / "encoder.onnx").write_bytes(b"damaged")
    manifest = json.loads((artefact / MANIFEST).read_text(encoding="utf-8"))
    digest = hashlib.sha256(b"damaged").hexdigest()
    manifest["files"]["encoder.onnx"]["sha256"] = digest
    (artefact / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


DAMAGES = [
    (damage_weights, r"weights.npz: its sha256"),
    (damage_current, "current.json: it cannot be read"),
    (damage_manifest, "manifest.json: it is not JSON"),
    (drop_version, "KeyError('version')"),
    (remove_version, "manifest.json: it is missing"),
    (damage_encoder, "encoder.onnx: it is not an encoder"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_version_is_refused_and_the_one_before_serves_on(
    followed: Reloader[Classifier],
    folder: Path,
    artefacts: list[Path],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    publish(artefacts[1], folder)
    content = (folder / CURRENT).read_text()
    damage(folder)
    serving = followed.current
    assert followed.refresh() is False
    assert followed.current is serving
    assert followed.problem is not None
    assert message in followed.problem
    shutil.rmtree(folder / VERSIONS / "v2", ignore_errors=True)  # mended by hand
    shutil.copytree(artefacts[1], folder / VERSIONS / "v2")
    (folder / CURRENT).write_text(content)
    assert followed.refresh() is True
    assert followed.current.version == "v2"
    assert followed.problem is None


def test_a_roll_back_clears_the_problem(
    followed: Reloader[Classifier], folder: Path, artefacts: list[Path]
) -> None:
    publish(artefacts[1], folder)
    damage_weights(folder)
    followed.refresh()
    assert followed.problem is not None
    roll_back(folder)
    assert followed.refresh() is False  # v1 is what serves
    assert followed.problem is None


def test_the_thread_survives_a_damaged_version(
    followed: Reloader[Classifier],
    folder: Path,
    artefacts: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    followed.start()
    publish(artefacts[1], folder)
    wait_for(lambda: followed.current.version == "v2")
    roll_back(folder)
    wait_for(lambda: followed.current.version == "v1")
    damage_current(folder)
    wait_for(lambda: followed.problem is not None)
    time.sleep(10 * PERIOD_S)
    kept = [r for r in caplog.records if r.getMessage().startswith("kept router v1")]
    assert len(kept) == 1  # said once, not at each look
    (folder / CURRENT).write_text('{"version": "v2", "previous": ["v1"]}')
    wait_for(lambda: followed.current.version == "v2")


def test_a_first_artefact_that_does_not_load_is_refused(folder: Path) -> None:
    damage_weights(folder)
    with pytest.raises(ArtefactError, match=r"weights\.npz: its sha256"):
        follow_classifier(settings_for(folder), lambda: 1.0)


def test_a_period_of_nothing_pauses(
    folder: Path, artefacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloader, "PAUSED_CHECK_S", PERIOD_S)
    period_s = [0.0]
    num_asked = threading.Semaphore(0)

    def period() -> float:
        num_asked.release()
        return period_s[0]

    follower = follow_classifier(settings_for(folder), period)
    follower.start()
    publish(artefacts[1], folder)
    for _ in range(10):  # looks at whether it is paused, not at the folder
        assert num_asked.acquire(timeout=5)
    assert follower.current.version == "v1"
    period_s[0] = PERIOD_S
    wait_for(lambda: follower.current.version == "v2")
    follower.stop()
    follower._thread.join(timeout=5)
    assert not follower._thread.is_alive()


def test_a_plain_artefact_replaced_in_place_is_followed(
    router_copy: Path, artefacts: list[Path]
) -> None:
    follower = follow_classifier(settings_for(router_copy), lambda: 1.0)
    shutil.rmtree(router_copy)
    shutil.copytree(artefacts[1], router_copy)
    assert follower.refresh() is True
    assert follower.current.version == "v2"
