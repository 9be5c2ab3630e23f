"""scripts/install.sh with a Python that only notes what it is asked for; pip itself is not run."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deployments.settings import PROJECT_ROOT

BASE = Path(sys.base_prefix) / "bin" / "python3"
# Runs code as the real one does, makes folders that look like environments, installs nothing.
FAKE = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  -V) echo Python {version} ;;
  "-c import sys; sys.exit(sys.version_info"*) exit {is_old} ;;
  -) exit {without_torch} ;;
  "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m pip install"*) exit {pip_status} ;;
  "-m pip"*) ;;
  *) exec {base} "$@" ;;
esac
"""


class Project:
    """A copy of what the script reads, an interpreter, and the calls that it saw."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("scripts/install.sh", "pyproject.toml", "constraints.txt", "Makefile"):
            shutil.copy(PROJECT_ROOT / name, self.root / name)
        self.log = folder / "calls"
        self.python = folder / "python"
        self.environment: dict[str, str] = {}
        self.interpreter()

    def interpreter(
        self, *, version: str = "3.12.1", has_torch: bool = True, pip_status: int = 0
    ) -> None:
        is_old = int(version < "3.11")
        fake = FAKE.format(
            log=self.log,
            version=version,
            is_old=is_old,
            without_torch=int(not has_torch),
            pip_status=pip_status,
            base=BASE,
        )
        self.python.write_text(fake)
        self.python.chmod(0o755)

    def install(self, extra: str) -> subprocess.CompletedProcess[str]:
        hidden = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        return subprocess.run(
            ["sh", str(self.root / "scripts" / "install.sh"), extra],
            env={**kept, "PYTHON": str(self.python), **self.environment},
            capture_output=True,
            text=True,
        )

    def calls(self, start: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(start)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def activated(project: Project, variable: str = "VIRTUAL_ENV") -> Path:
    """An environment as `activate` leaves things."""
    python = project.root.parent / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(project.python, python)
    project.environment[variable] = str(python.parent.parent)
    return python


def test_a_clean_checkout_gets_an_environment_and_a_second_run_does_nothing(
    project: Project,
) -> None:
    python = project.root / ".venv" / "bin" / "python"
    for _ in range(2):
        done = project.install("test")
        assert (done.returncode, done.stdout) == (0, f"{python}\n"), done.stderr
    assert len(project.calls("-m venv")) == 1
    (pip,) = project.calls("-m pip install")
    assert pip.endswith("-c constraints.txt -e .[test]")


def test_modules_are_compiled_where_a_service_may_not_write(project: Project) -> None:
    module = project.root / "deployments" / "module.py"
    module.parent.mkdir()
    module.write_text("x = 1\n")
    project.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = project.install("serve")
    assert done.returncode == 0, done.stderr
    assert list((module.parent / "__pycache__").glob("module.*.pyc"))


def test_larger_extras_hold_the_smaller_and_a_changed_pin_is_installed(project: Project) -> None:
    project.install("serve")
    project.install("dev")
    for extra in ("dev", "test", "train", "serve"):
        project.install(extra)
    assert [call.split()[-1] for call in project.calls("-m pip install")] == [".", ".[dev]"]
    for extra in ("long", "test"):
        project.install(extra)
    last = [call.split()[-1] for call in project.calls("-m pip install")][2:]
    assert last == [".[long]"]
    with (project.root / "constraints.txt").open("a") as constraints:
        constraints.write("another==1\n")
    project.install("serve")
    assert len(project.calls("-m pip install")) == 4


@pytest.mark.parametrize("has_torch", [True, False])
def test_a_venv_sees_an_installed_torch_and_else_nothing(project: Project, has_torch: bool) -> None:
    project.interpreter(has_torch=has_torch)
    done = project.install("serve")
    (venv,) = project.calls("-m venv")
    assert ("--system-site-packages" in venv) is has_torch
    if not has_torch and shutil.which("nvidia-smi") is None:
        assert "no NVIDIA GPU was found" in done.stderr


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.11.0", True),
        ("2.13.9+cpu", True),
        ("2.10.1", False),
        ("2.14.0", False),
        ("3.0", False),
        (None, False),
    ],
)
def test_the_range_of_torch_is_the_projects(
    project: Project, tmp_path: Path, version: str | None, fits: bool
) -> None:
    text = (project.root / "scripts" / "install.sh").read_text()
    code = text.split("<<'PYTHON' 2>/dev/null\n")[1].split("\nPYTHON\n")[0]
    folder = tmp_path / "packages" / f"torch-{version}.dist-info"
    folder.mkdir(parents=True)
    if version is not None:
        (folder / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    done = subprocess.run(
        [str(BASE), "-S", "-c", code],
        cwd=project.root,
        env={"PYTHONPATH": str(folder.parent)},
        capture_output=True,
    )
    assert (done.returncode == 0) is fits, done.stderr


def test_an_active_environment_is_used(project: Project) -> None:
    python = activated(project)
    assert project.install("serve").stdout == f"{python}\n"
    assert project.calls("-m venv") == []


@pytest.mark.parametrize(("name", "is_used"), [("work", True), ("base", False)])
def test_condas_base_environment_is_left_alone(project: Project, name: str, is_used: bool) -> None:
    python = activated(project, "CONDA_PREFIX")
    project.environment["CONDA_DEFAULT_ENV"] = name
    assert (project.install("serve").stdout == f"{python}\n") is is_used


def test_an_old_python_gets_one_clear_line(project: Project) -> None:
    project.interpreter(version="3.10.9")
    done = project.install("serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "is Python 3.10.9; Polyclinic needs Python 3.11 or newer: name one" in done.stderr
    activated(project)
    assert "activate another environment" in project.install("serve").stderr
    requires = tomllib.loads((project.root / "pyproject.toml").read_text())["project"]
    assert requires["requires-python"] == ">=3.11"


def test_a_failed_pip_is_reported_and_tried_again(project: Project) -> None:
    project.interpreter(pip_status=1)
    python = activated(project)
    done = project.install("test")
    assert (done.returncode, done.stdout) == (1, "")
    assert "check the network and the package index" in done.stderr
    project.interpreter()
    shutil.copy(project.python, python)
    assert project.install("test").returncode == 0


def test_an_unknown_extra_is_refused(project: Project) -> None:
    done = project.install("tests")
    assert done.returncode == 1
    assert "'tests': serve, train, bench, test, long or dev is expected" in done.stderr


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs util-linux")
def test_a_second_install_waits_for_the_first(project: Project) -> None:
    with subprocess.Popen(["flock", str(project.root / "pyproject.toml"), "sleep", "0.5"]) as other:
        subprocess.run(["sleep", "0.1"], check=True)
        assert project.install("serve").returncode == 0
        assert other.poll() is not None, "it did not wait"


@pytest.mark.parametrize(
    ("target", "extra"), [("serve", "serve"), ("test", "test"), ("check", "dev")]
)
def test_each_make_target_asks_for_its_extra(project: Project, target: str, extra: str) -> None:
    done = subprocess.run(
        ["make", "-n", target, f"PYTHON={project.python}"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'PYTHON="{project.python}" sh scripts/install.sh {extra})' in done.stdout


def test_constraints_pin_everything_but_torch() -> None:
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "//" not in pin for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"ray", "transformers", "peft", "starlette"} <= names
    assert not names & {"torch", "triton", "polyclinic"}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]
