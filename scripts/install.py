"""Make a Python environment that can run Polyclinic. Standard library only.

    python3 scripts/install.py [--extras test]      # what the Makefile's targets run first

An active virtual environment is used as it is; otherwise `.venv` is made in the project. A torch
that is already installed in the supported range is kept: then `.venv` sees the packages of the
Python that made it. Prints the interpreter to use as the last line of stdout; everything else goes
to stderr. Does nothing when the environment is already as asked for.
"""
# ruff: noqa: E402

import sys

MIN_PYTHON = (3, 11)
if sys.version_info < MIN_PYTHON:  # before the imports, which an older Python does not get past
    raise SystemExit(
        f"install: this is Python {sys.version.split()[0]}; Polyclinic needs 3.11 or newer: "
        "name one that you have, e.g. `make serve PYTHON=python3.12`"
    )

import argparse
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
SIZE_TIMEOUT_S = 20.0


class InstallError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 scripts/install.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--extras", default="", choices=["", *sorted(_extras())])
    args = parser.parse_args(argv)
    try:
        with _alone():
            python = install(args.extras)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: stopped; what is installed already is kept", file=sys.stderr)
        return 130
    print(python)
    return 0


def install(extra: str) -> Path:
    """The interpreter of an environment that has Polyclinic and the dependencies of `extra`.

    Raises:
        InstallError: no venv module, the environment's Python is too old, no pip, pip failed.
    """
    python = environment_python()
    stamp = python.parent.parent / "polyclinic-installed.json"
    held = _held(stamp)
    wanted = {"serve", *(_included(extra) if extra else ())}
    if wanted <= held:
        return python
    check_environment(python)
    requirement = torch_requirement()
    constraint = ("--constraint", str(CONSTRAINTS))
    if not has_torch(python):
        say(f"torch is not installed; {download_size(python, requirement)}")
        say(cpu_hint(python))
        pip(python, "install", *constraint, requirement)
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    say(f"installing Polyclinic and its dependencies{f' ({extra})' if extra else ''}")
    pip(python, "install", *constraint, "--editable", target)
    stamp.write_text(json.dumps({"digest": _digest(), "holds": sorted(held | wanted)}))
    return python


def environment_python() -> Path:
    """Interpreter of the active environment, or of `.venv`, made if it is not there."""
    conda_base = os.environ.get("CONDA_DEFAULT_ENV") == "base"  # everybody's: not ours to fill
    active = os.environ.get("VIRTUAL_ENV") or (
        None if conda_base else os.environ.get("CONDA_PREFIX")
    )
    if active and (Path(active) / "bin" / "python").exists():
        return Path(active) / "bin" / "python"
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    folder = ROOT / ".venv"
    python = folder / "bin" / "python"
    if python.exists():
        return python
    options = ["--system-site-packages"] if has_torch(Path(sys.executable)) else []
    say(f"making a virtual environment in {folder}")
    done = subprocess.run([sys.executable, "-m", "venv", *options, str(folder)], stdout=sys.stderr)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"`{sys.executable} -m venv` failed: install your system's venv package "
            "(on Debian: python3-venv), or activate a virtual environment first"
        )
    return python


def check_environment(python: Path) -> None:
    """Raises InstallError when `python` is too old or cannot get pip."""
    version = _output(python, "import platform; print(platform.python_version())")
    if version is None or _numbers(version)[:2] < MIN_PYTHON:
        raise InstallError(
            f"the environment's {python} is Python {version or '(it does not start)'}; Polyclinic "
            "needs 3.11 or newer: activate another environment, or remove this one and try again"
        )
    if _output(python, "import pip; print(pip.__version__)") is None:
        done = subprocess.run([str(python), "-m", "ensurepip"], stdout=sys.stderr)
        if done.returncode:
            raise InstallError(f"{python} has no pip: install pip into that environment first")


def torch_requirement() -> str:
    """The torch line of pyproject.toml, e.g. "torch>=2.11,<2.14"."""
    lines: list[str] = _project()["dependencies"]
    return next(line for line in lines if line.startswith("torch"))


def has_torch(python: Path) -> bool:
    """Whether `python` has a torch in the supported range."""
    version = _output(python, "from importlib import metadata; print(metadata.version('torch'))")
    return version is not None and in_range(version, torch_requirement())


def in_range(version: str, requirement: str) -> bool:
    """Whether "2.12.1+cpu" is in "torch>=2.11,<2.14"; only >= and < are understood."""
    found = _numbers(version)
    for part in requirement.removeprefix("torch").split(","):
        if part.startswith(">=") and not found >= _numbers(part[2:]):
            return False
        if part.startswith("<") and not found < _numbers(part[1:]):
            return False
    return True


def download_size(python: Path, requirement: str) -> str:
    """What pip would download for torch, in words. Takes SIZE_TIMEOUT_S at most."""
    deadline = time.monotonic() + SIZE_TIMEOUT_S
    command = [str(python), "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    command += ["--report", "-", requirement]
    sizes = []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SIZE_TIMEOUT_S)
        items: list[dict[str, Any]] = json.loads(done.stdout)["install"]
        for item in items:
            sizes.append(_size_bytes(item["download_info"]["url"], deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, ValueError, KeyError, OSError, http.client.HTTPException):
        if not sizes:
            return "the size of its download could not be learnt"
    at_least = "" if len(sizes) == len(items) else "at least "
    return (
        f"its download, with the {len(items) - 1} packages that it needs, is "
        f"{at_least}{sum(sizes) / 1e6:,.0f} MB"
    )


def _size_bytes(url: str, timeout_s: float) -> int:
    if url.startswith("file:"):
        return Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).stat().st_size
    if timeout_s <= 0:
        raise TimeoutError
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return int(response.headers.get("Content-Length", ""))


def cpu_hint(python: Path) -> str:
    """How to spare gigabytes of CUDA libraries on a machine without an NVIDIA GPU."""
    if shutil.which("nvidia-smi"):
        return "an NVIDIA GPU is there, so pip's default build is taken"
    return (
        "no NVIDIA GPU was found: if that size is gigabytes, stop here (Ctrl-C), install the CPU "
        "build with the command that the selector on PyTorch's 'Get Started' page gives, with "
        f"`{python} -m pip` for its pip, and run this again: an installed torch is kept"
    )


def pip(python: Path, *arguments: str) -> None:
    """Run pip, its output on stderr; raises InstallError when it fails."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    if not sys.stderr.isatty():  # a terminal gets progress bars
        command += ["--quiet"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise InstallError(
            "pip failed (its message is above): check the network and the package index that pip "
            "is set up for, then run this again; what is installed already is kept"
        )


def say(text: str) -> None:
    print(f"install: {text}", file=sys.stderr, flush=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Two `make` at once: the second waits for the first."""
    with PYPROJECT.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another install is running here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project


def _extras() -> dict[str, list[str]]:
    extras: dict[str, list[str]] = _project()["optional-dependencies"]
    return extras


def _included(extra: str) -> set[str]:
    """`extra` and those that it brings along: test -> {test, train}."""
    nested = [line for line in _extras()[extra] if line.startswith("polyclinic[")]
    names = {line.removeprefix("polyclinic[").rstrip("]") for line in nested}
    return {extra}.union(*(_included(name) for name in names))


def _held(stamp: Path) -> set[str]:
    """What the environment holds already, for today's pyproject.toml and constraints."""
    try:
        noted = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return set()
    return set(noted["holds"]) if noted.get("digest") == _digest() else set()


def _digest() -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (PYPROJECT, CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _output(python: Path, code: str) -> str | None:
    """What `python -c code` prints; None when it fails."""
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _numbers(version: str) -> tuple[int, ...]:
    release = version.partition("+")[0]
    digits = ["".join(filter(str.isdigit, part)) for part in release.split(".")]
    return tuple(int(part) for part in digits if part)


if __name__ == "__main__":
    raise SystemExit(main())
