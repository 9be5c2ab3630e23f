"""The installer's decisions; pip itself is not run."""

import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import install
from scripts.install import InstallError, download_size, in_range, torch_requirement


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("2.13.9", True),
        ("2.10.1", False),
        ("2.14.0", False),
        ("3.0", False),
    ],
)
def test_the_range_of_torch(version: str, fits: bool) -> None:
    assert in_range(version, "torch>=2.11,<2.14") is fits


def test_the_requirement_is_the_projects() -> None:
    project = tomllib.loads((install.ROOT / "pyproject.toml").read_text())["project"]
    assert torch_requirement() in project["dependencies"]
    assert torch_requirement() == "torch>=2.11,<2.14"


def test_constraints_pin_everything_but_torch() -> None:
    lines = [
        line
        for line in install.CONSTRAINTS.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all("==" in line and "//" not in line for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"ray", "transformers", "peft", "starlette"} <= names
    assert not names & {"torch", "polyclinic"}


def test_an_active_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert install.environment_python() == python


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "MIN_PYTHON", (99, 0))
    with pytest.raises(InstallError, match=r"Polyclinic needs 99\.0 or newer"):
        install.install("")


def test_the_size_is_summed_over_what_pip_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"x" * 3_000_000)
    report = f'{{"install": [{{"download_info": {{"url": "file://{wheel}"}}}}]}}'
    done = subprocess.CompletedProcess([], 0, stdout=report, stderr="")
    monkeypatch.setattr(install.subprocess, "run", lambda *args, **kwargs: done)
    assert download_size(Path(sys.executable), "torch") == (
        "its download (with 0 packages that it needs) is 3 MB"
    )


def test_a_size_that_cannot_be_learnt_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="offline")
    monkeypatch.setattr(install.subprocess, "run", lambda *args, **kwargs: done)
    assert "could not be learnt" in download_size(Path(sys.executable), "torch")


def test_a_second_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    monkeypatch.setattr(install, "has_torch", lambda *args: True)
    monkeypatch.setattr(install, "pip", lambda python, *args: calls.append(args))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert install.install("test") == python
    assert install.install("test") == python
    assert len(calls) == 1
    assert install.install("dev") == python
    assert len(calls) == 2
