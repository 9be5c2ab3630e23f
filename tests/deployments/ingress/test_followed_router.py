"""Which router a replica serves: the package's, until its own folder holds a version."""

import shutil
from pathlib import Path

import pytest

from deployments.ingress import followed
from deployments.ingress.followed import follow_classifier, served_router
from deployments.settings import SHIPPED_ROUTER, Settings, parse_settings
from deployments.startup.application_checks import check_args
from router.artefact import ArtefactError
from router.versions import publish, roll_back


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
    monkeypatch.setattr(followed, "SHIPPED_ROUTER", shipped)
    reloader = follow_classifier(settings, lambda: 0)
    assert not reloader.refresh()
    version = publish(tiny_router_dir, settings.router_dir)
    assert reloader.refresh()
    assert reloader.current.version == version
    with pytest.raises(ArtefactError, match="no version before"):
        roll_back(settings.router_dir)


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
