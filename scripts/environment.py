"""Say where a published number or file was made: commit, command, processor, package versions."""

import contextlib
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

COMMIT_VARIABLE = "POLYCLINIC_COMMIT"
_CPUINFO = Path("/proc/cpuinfo")
# What decides how the CPU's step multiplies (deployments/engine/cpu, oneDNN), as Linux names it.
_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")


def environment() -> dict[str, Any]:
    """Return commit, processor, number of cores and package versions."""
    packages = ("torch", "transformers", "peft", "ray")
    return {
        "commit": commit(),
        "processor": processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def commit() -> str:
    """Return this checkout's commit, with `-dirty` after it when files differ from the commit.

    Returns "unknown" without git. The variable POLYCLINIC_COMMIT overrides it: a copied tree has
    no repository, or lies inside another one.
    """
    if stated := os.environ.get(COMMIT_VARIABLE):
        return stated
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    root = Path(__file__).resolve().parent.parent
    try:
        git = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # git is not installed
        return "unknown"
    return git.stdout.strip() or "unknown"


def command_line(script: str, argv: Sequence[str]) -> str:
    """Return the command for the record; of a path outside this folder only the last part."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = Path(value).name if value.startswith(("/", "..", "~")) else value
        words.append(f"{option}{equals}{name}")
    return shlex.join(["python", "-m", f"scripts.{script}", *words])


def processor() -> str:
    """Return the processor's name as far as the system tells it, else its architecture; with its
    vector instructions where they are known: "AMD EPYC (avx2, avx512_vnni, avx512_bf16)"."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    known = [each for each in _INSTRUCTIONS if each in flags]
    return f"{name} ({', '.join(known)})" if known else name


def device_name(device: str) -> str:
    """Return the GPU's name, or "cpu"."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pss_mib(pids: Iterable[int]) -> float:
    """Return the sum of proportional set sizes, MiB; an ended process counts as zero."""
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total / 2**20
