"""A Serve on machines of `ray start` is drained before it is shut down, and not without."""

from pathlib import Path

import pytest
import ray
import yaml
from ray import serve

from deployments import launch
from deployments.startup.draining import Drain

CONFIG = {"applications": [{"name": "clinic", "import_path": "deployments.app:build"}]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done with Ray and Serve, in that order."""
    done: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **options: done.append(f"join {options['address']}"))
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("leave"))
    monkeypatch.setattr(serve, "shutdown", lambda: done.append("shut down"))
    monkeypatch.setattr(Drain, "prepare", lambda drain: done.append(drain._application))
    monkeypatch.setattr(Drain, "wait", lambda drain, timeout_s: True)
    monkeypatch.setattr(Drain, "run", lambda drain: done.append("drain"))
    return done


def test_it_drains_and_then_shuts_serve_down(config: Path, done: list[str]) -> None:
    assert launch.main(["--stop", str(config)]) == 0
    assert done == ["join auto", "clinic", "drain", "shut down", "leave"]


def test_nothing_is_shut_down_that_cannot_be_drained(
    config: Path,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Drain, "wait", lambda drain, timeout_s: False)
    assert launch.main(["--stop", str(config)]) == 1
    assert done == ["join auto", "clinic", "leave"]
    assert "application clinic does not run, so nothing can be drained" in capsys.readouterr().err


def test_without_ray_it_says_how_else_a_clinic_ends(
    config: Path,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nobody(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", nobody)
    assert launch.main(["--stop", str(config)]) == 1
    assert done == []
    said = capsys.readouterr().err
    assert "Could not find any running Ray instance" in said
    assert "ends with its launcher" in said


@pytest.mark.parametrize("other", [["--apply"], ["--dashboard", "http://127.0.0.1:1"]])
def test_it_stands_alone(config: Path, other: list[str]) -> None:
    with pytest.raises(SystemExit):
        launch.main(["--stop", *other, str(config)])
