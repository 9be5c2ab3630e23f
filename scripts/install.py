"""Make a Python environment that can run Polyclinic. Standard library only.

    python3 scripts/install.py [--extras test]      # what the Makefile's targets run first

An active virtual environment is used as it is; otherwise `.venv` is made in the project. A torch
that is already installed in the supported range is kept: then `.venv` sees the packages of the
Python that made it. Prints the interpreter to use as the last line of stdout; everything else goes
to stderr. Does nothing when the environment is already as asked for.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
MIN_PYTHON = (3, 11)
SIZE_TIMEOUT_S = 20


class InstallError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 scripts/install.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--extras", default="", help="comma-separated: train, test, dev")
    args = parser.parse_args(argv)
    try:
        python = install(args.extras)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


def install(extras: str) -> Path:
    """The interpreter of an environment that has Polyclinic and `extras`.

    Raises:
        InstallError: Python too old, no venv module, pip failed.
    """
    if sys.version_info < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        raise InstallError(
            f"this is Python {sys.version.split()[0]}; Polyclinic needs {wanted} or newer: "
            "run `make PYTHON=python3.12 ...` with one that you have"
        )
    python = environment_python()
    stamp = python.parent.parent / f"polyclinic-{extras or 'serve'}.stamp"
    wanted_stamp = _stamp(extras)
    if stamp.is_file() and stamp.read_text() == wanted_stamp:
        return python
    requirement = torch_requirement()
    if not has_torch(python, requirement):
        say(f"torch is not installed; {download_size(python, requirement)}")
        say(cpu_hint())
        pip(python, "install", requirement)
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    say(f"installing Polyclinic and its dependencies{f' ({extras})' if extras else ''}")
    pip(python, "install", "--constraint", str(CONSTRAINTS), "--editable", target)
    stamp.write_text(wanted_stamp)
    return python


def environment_python() -> Path:
    """Interpreter of the active virtual environment, or of `.venv`, made if it is not there."""
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
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


def torch_requirement() -> str:
    """The torch line of pyproject.toml, e.g. "torch>=2.11,<2.14"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines: list[str] = project["dependencies"]
    return next(line for line in lines if line.startswith("torch"))


def has_torch(python: Path, requirement: str | None = None) -> bool:
    """Whether `python` has a torch in the supported range."""
    wanted = requirement or torch_requirement()
    if (
        python.resolve() == Path(sys.executable).resolve()
        and python.parent == Path(sys.executable).parent
    ):
        try:
            return in_range(metadata.version("torch"), wanted)
        except metadata.PackageNotFoundError:
            return False
    code = "from importlib import metadata; print(metadata.version('torch'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and in_range(done.stdout.strip(), wanted)


def in_range(version: str, requirement: str) -> bool:
    """Whether "2.12.1+cpu" is in "torch>=2.11,<2.14"; only >= and < are understood."""
    found = _numbers(version)
    for part in requirement.removeprefix("torch").split(","):
        if part.startswith(">=") and not found >= _numbers(part[2:]):
            return False
        if part.startswith("<") and not found < _numbers(part[1:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = version.partition("+")[0]
    digits = ["".join(filter(str.isdigit, part)) for part in release.split(".")]
    return tuple(int(part) for part in digits if part)


def download_size(python: Path, requirement: str) -> str:
    """What pip would download for torch, in words; asks the index for the sizes."""
    command = [str(python), "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--report", "-", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * SIZE_TIMEOUT_S)
        items: list[dict[str, Any]] = json.loads(done.stdout)["install"]
        sizes = [_size(item["download_info"]["url"]) for item in items]
    except (subprocess.TimeoutExpired, ValueError, KeyError, OSError):
        return "its download size could not be learnt"
    total_mb = sum(sizes) / 1e6
    return f"its download (with {len(sizes) - 1} packages that it needs) is {total_mb:,.0f} MB"


def _size(url: str) -> int:
    if url.startswith("file:"):
        return Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).stat().st_size
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=SIZE_TIMEOUT_S) as response:
        return int(response.headers["Content-Length"])


def cpu_hint() -> str:
    """How to spare gigabytes of CUDA libraries on a machine without an NVIDIA GPU."""
    if shutil.which("nvidia-smi"):
        return "an NVIDIA GPU is there, so pip's default build is taken"
    return (
        "no NVIDIA GPU was found; if the size above is gigabytes, stop here (Ctrl-C), install "
        "PyTorch's CPU build into this Python as PyTorch's own start page says, and run this "
        "again: an installed torch is kept"
    )


def pip(python: Path, *arguments: str) -> None:
    """Run pip, its output on stderr; raises InstallError when it fails."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    if arguments[0] == "install" and not sys.stderr.isatty():
        command += ["--quiet"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise InstallError(
            "pip failed (its message is above): check the network and the package index that pip "
            "is set up for, then run this again; what is installed already is kept"
        )


def say(text: str) -> None:
    print(f"install: {text}", file=sys.stderr, flush=True)


def _stamp(extras: str) -> str:
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {extras} {ROOT}\n"


if __name__ == "__main__":
    raise SystemExit(main())
