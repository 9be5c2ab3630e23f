"""What a published number has to say about where it was measured."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Commit, processor and package versions."""
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
    )
    packages = ("torch", "transformers", "peft", "ray")
    return {
        "commit": git.stdout.strip() or None,
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
