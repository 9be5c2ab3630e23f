"""What a published number has to say about where it was measured."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Commit, processor and package versions.

    A copy without its repository says its commit in the variable POLYCLINIC_COMMIT.
    """
    packages = ("torch", "transformers", "peft", "ray")
    return {
        "commit": _commit(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def device_name(device: str) -> str:
    """The GPU's name, or cpu."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def _commit() -> str | None:
    stated = os.environ.get("POLYCLINIC_COMMIT")
    if stated:
        return stated
    root = Path(__file__).resolve().parent.parent
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
        )
    except OSError:  # no git here
        return None
    return git.stdout.strip() or None


def save_report(report: Mapping[str, Any], out: Path | None) -> None:
    """What a benchmark found, as JSON in `out`; None: nowhere."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def pss_mib(pids: Iterable[int]) -> float:
    """Sum of the proportional set sizes, in MiB; processes that ended meanwhile count as zero."""
    total_kib = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total_kib += next(
            (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0
        )
    return total_kib / 1024
