"""The installer's decisions; pip itself is not run."""

import fcntl
import http.client
import json
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scripts import install
from scripts.install import InstallError, download_size, in_range, main, torch_requirement

HERE = Path(sys.executable)


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
    assert not names & {"torch", "triton", "polyclinic"}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]


def test_an_old_python_gets_one_clear_line() -> None:
    code = (
        "import runpy, sys; sys.version_info = (3, 10, 1); sys.modules['tomllib'] = None; "
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, install.__file__], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Polyclinic needs 3.11 or newer: name one that you have" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    requires = tomllib.loads(install.PYPROJECT.read_text())["project"]["requires-python"]
    assert requires == ">=" + ".".join(map(str, install.MIN_PYTHON))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of an active environment, as `activate` leaves things."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    for variable in ("CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "env"))
    return python


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip is asked for; torch is there, unless the test says otherwise."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda python, *args: calls.append(args))
    monkeypatch.setattr(install, "has_torch", lambda python: True)
    monkeypatch.setattr(install, "check_environment", lambda python: None)
    return calls


def test_an_active_environment_is_used(environment: Path) -> None:
    assert install.environment_python() == environment


def test_condas_base_is_not_filled(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setenv("CONDA_PREFIX", str(environment.parent.parent))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "work")
    assert install.environment_python() == environment
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    assert install.environment_python() != environment


@pytest.mark.parametrize("torch_is_there", [True, False])
def test_a_venv_sees_an_installed_torch_and_else_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_is_there: bool
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setattr(install.sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "has_torch", lambda python: torch_is_there)
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.environment_python() == tmp_path / ".venv" / "bin" / "python"
    assert ("--system-site-packages" in ran[0]) is torch_is_there


def test_an_environment_that_is_too_old_or_broken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InstallError, match="does not start"):
        install.check_environment(tmp_path / "python")
    install.check_environment(HERE)
    monkeypatch.setattr(install, "_output", lambda python, code: "3.10.9")
    with pytest.raises(InstallError, match=r"is Python 3\.10\.9; Polyclinic needs 3\.11"):
        install.check_environment(HERE)


def test_torch_comes_first_and_both_steps_are_pinned(
    environment: Path,
    pip_calls: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(install, "has_torch", lambda python: False)
    monkeypatch.setattr(install, "download_size", lambda python, requirement: "it is 900 MB")
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert install.install("train") == environment
    first, second = pip_calls
    assert first[-1] == torch_requirement()
    assert second[-2:] == ("--editable", f"{install.ROOT}[train]")
    assert all(str(install.CONSTRAINTS) in call for call in pip_calls)
    said = capsys.readouterr().err
    assert said.index("900 MB") < said.index("no NVIDIA GPU") < said.index("installing Polyclinic")
    assert f"{environment} -m pip" in said


def test_a_second_run_does_nothing_and_larger_extras_cover_smaller(
    environment: Path, pip_calls: list[tuple[str, ...]], tmp_path: Path, monkeypatch: Any
) -> None:
    assert install.install("") == environment
    assert install.install("") == environment
    assert len(pip_calls) == 1
    install.install("dev")
    for extra in ("dev", "test", "train", ""):
        install.install(extra)
    assert len(pip_calls) == 2
    changed = tmp_path / "constraints.txt"
    changed.write_text("ray==9\n")
    monkeypatch.setattr(install, "CONSTRAINTS", changed)
    install.install("")
    assert len(pip_calls) == 3


def test_a_failed_pip_is_told_and_leaves_no_stamp(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "has_torch", lambda python: True)
    environment.unlink()
    environment.write_text(
        '#!/bin/sh\ncase "$*" in *platform*|*__version__*) echo 3.11.1;; *) false;; esac'
    )
    environment.chmod(0o755)
    assert main(["--extras", "test"]) == 1
    captured = capfd.readouterr()
    assert "check the network and the package index" in captured.err
    assert captured.out == ""
    assert install._held(environment.parent.parent / "polyclinic-installed.json") == set()


def test_an_unknown_extra_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--extras", "tests"])
    assert "choose from" in capsys.readouterr().err


def test_a_second_install_waits_for_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "install", lambda extra: HERE)
    with install.PYPROJECT.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        started = time.monotonic()
        assert main([]) == 0
    assert time.monotonic() - started >= 0.15
    captured = capsys.readouterr()
    assert "another install is running here" in captured.err
    assert captured.out.splitlines() == [str(HERE)]


class Report:
    """Stands in for pip's dry run over these URLs."""

    def __init__(self, *urls: str) -> None:
        self.text = json.dumps({"install": [{"download_info": {"url": url}} for url in urls]})

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--dry-run" in command
        return subprocess.CompletedProcess(command, 0, stdout=self.text)


def test_the_size_is_summed_over_what_pip_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = [tmp_path / "torch 1.whl", tmp_path / "nvidia.whl"]
    for wheel in wheels:
        wheel.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(install.subprocess, "run", Report(*(wheel.as_uri() for wheel in wheels)))
    assert download_size(HERE, "torch") == (
        "its download, with the 1 packages that it needs, is 6 MB"
    )


@pytest.mark.parametrize(
    "failure", [OSError("no route"), http.client.BadStatusLine("x"), ValueError("no length")]
)
def test_a_size_that_is_learnt_in_part_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(install.urllib.request, "urlopen", fail)
    monkeypatch.setattr(install.subprocess, "run", Report(wheel.as_uri(), "https://localhost/x"))
    assert "is at least 3 MB" in download_size(HERE, "torch")
    monkeypatch.setattr(install.subprocess, "run", Report("https://localhost/x"))
    assert "could not be learnt" in download_size(HERE, "torch")


def test_a_slow_index_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SIZE_TIMEOUT_S", 0.2)

    def slow(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(install.subprocess, "run", slow)
    assert "could not be learnt" in download_size(HERE, "torch")
    monkeypatch.setattr(install, "SIZE_TIMEOUT_S", 0)
    monkeypatch.setattr(install.subprocess, "run", Report("https://localhost/x"))
    assert "could not be learnt" in download_size(HERE, "torch")
