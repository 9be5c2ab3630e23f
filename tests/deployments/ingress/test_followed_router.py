"""Which router a replica serves: the package's, until its own folder holds a version."""

import shutil
from pathlib import Path

import pytest

from adapters import changes
from adapters.storage.last_good import LastGood
from adapters.store import open_store
from deployments.ingress import followed_classifier
from deployments.ingress.followed_classifier import follow_classifier, served_router
from deployments.reloader import Reloader
from deployments.settings import SHIPPED_ROUTER, Settings, parse_settings
from deployments.startup.application_checks import check_args
from router.artefact import ArtefactError
from router.classifier import Classifier
from router.versions import publish, roll_back
from tests.adapters.live_catalogs import make_seed
from tests.deployments.ingress.test_followed_classifier import renamed


def settings_with(tmp_path: Path, **router: str) -> Settings:
    return parse_settings({"state_dir": str(tmp_path / "state"), "router": router})


def test_the_default_follows_the_live_state(
    tmp_path: Path, tiny_router_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make serve` as it is: the first published version is taken up without a restart."""
    settings = settings_with(tmp_path)
    assert settings.router_dir == tmp_path / "state" / "router"
    assert served_router(settings) == SHIPPED_ROUTER
    shipped = tmp_path / "shipped"
    shutil.copytree(tiny_router_dir, shipped)
    monkeypatch.setattr(followed_classifier, "SHIPPED_ROUTER", shipped)
    reloader = follow_classifier(settings, lambda: 0)
    assert not reloader.refresh()
    version = publish(tiny_router_dir, settings.router_dir)
    assert reloader.refresh()
    assert reloader.current.version == version
    with pytest.raises(ArtefactError, match="no version before"):
        roll_back(settings.router_dir)


def test_a_router_that_starts_while_the_state_is_away_says_which_one_it_serves(
    tmp_path: Path, tiny_router_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, state = settings_with(tmp_path), tmp_path / "state"
    shipped = renamed(tiny_router_dir, tmp_path / "shipped", "shipped")
    monkeypatch.setattr(followed_classifier, "SHIPPED_ROUTER", shipped)
    seed, kept = make_seed(tmp_path / "seed"), LastGood(tmp_path / "last_good")

    def started() -> Reloader[Classifier]:
        store = open_store(str(state), seed, tmp_path / "cache", kept)
        return follow_classifier(settings, lambda: 0, store)

    never_changed = started()
    assert (never_changed.current.version, never_changed.problem) == ("shipped", None)
    store = open_store(str(state), seed, tmp_path / "cache", kept)
    store.change(lambda catalog: changes.update(catalog, "derm", state="disabled"))
    store.read()
    version = publish(renamed(tiny_router_dir, tmp_path / "own", "own"), settings.router_dir)
    assert started().current.version == version == "own"
    away = state.rename(tmp_path / "away")
    late = started()
    assert late.current.version == "shipped"
    assert "cannot be followed: the state is away" in str(late.problem)
    away.rename(state)
    assert late.refresh()
    assert (late.current.version, late.problem) == ("own", None)


@pytest.mark.parametrize("made", [False, True])
def test_a_named_folder_may_come_later(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "versions"
    if made:
        folder.mkdir()
    settings = settings_with(tmp_path, artefact=str(folder))
    assert check_args({"router": {"artefact": str(folder)}}) == []
    assert served_router(settings) == SHIPPED_ROUTER


def test_a_path_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    typo = tmp_path / "no" / "such"
    [problem] = check_args({"router": {"artefact": str(typo)}})
    assert str(typo) in problem
    assert "add_specialty" in problem
    (tmp_path / "notes.txt").write_text("x")
    [problem] = check_args({"router": {"artefact": str(tmp_path)}})
    assert "neither a trained router" in problem
    [problem] = check_args({"router": {"artefact": str(tmp_path / "notes.txt")}})
    assert "neither a trained router" in problem
