"""A file or folder in the working folder that has the name of one of our packages is not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layout import PACKAGES, ROOT

NOT_OURS = "raise SystemExit('a file of the working folder was imported')\n"
OURS = ("adapters", "references", "router", "scripts", "tests")
SHADOWS = [
    *(f"{name}.py" for name in OURS),
    *(f"{name}/__init__.py" for name in OURS),
    *(f"{name}/notes.txt" for name in (*PACKAGES, "tests")),  # a folder without any module
    "router/policy.py",
]
IMPORTS = "import deployments.app, deployments.launch, router.policy, adapters.store; print('ours')"


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(NOT_OURS)


@pytest.mark.slow
def test_the_launcher_runs_beside_files_with_our_packages_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}.py" for name in OURS), "deployments/notes.txt")
    done = run(tmp_path, "-m", "deployments.launch", "none.yaml")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "none.yaml: no such file" in done.stderr
    # As `serve run` does it: the working folder first, then the import path.
    served = run(tmp_path, "-c", f"import sys; sys.path.insert(0, '.'); {IMPORTS}")
    assert served.stdout == "ours\n", served.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", SHADOWS)
def test_none_of_them_is_imported(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    modules = "deployments, router.policy, adapters.versions, references.passage"
    imports = f"import {modules}; print('ours')"
    done = run(tmp_path, "-c", imports)
    assert done.stdout == "ours\n", done.stderr


@pytest.mark.slow
def test_scripts_find_the_others_too(tmp_path: Path) -> None:
    put(tmp_path, "adapters.py", "router.py", "deployments.py")
    done = run(tmp_path, "-m", "scripts.promote_adapter", "--help")
    assert done.returncode == 0, done.stderr
    assert "--adapter" in done.stdout


def test_another_module_that_is_imported_already_is_named(tmp_path: Path) -> None:
    put(tmp_path, "router/notes.txt")
    (tmp_path / "adapters.py").write_text("")
    done = run(tmp_path, "-c", "import adapters, deployments")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: 'adapters' is a package of this project")
    assert str(tmp_path / "adapters.py") in error
    assert "Rename that one" in error
