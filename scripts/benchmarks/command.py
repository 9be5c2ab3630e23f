"""The parts that all benchmark commands share: arguments, percentiles, and the printed report."""

import argparse
import json
import os
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.arguments import BASE_MODEL, positive
from scripts.environment import device_name, environment

WEIGHTS = ("none", "auto", "int8", "int4")  # of our engine on a CPU


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="write the JSON here too")


def add_model_arguments(
    parser: argparse.ArgumentParser, *, devices: Sequence[str] | None = None, rank: int | None = 8
) -> None:
    """Add the arguments that choose a base model and its random adapters, and `--out`.

    `devices`: the only ones allowed; None: whatever torch knows. `rank`: the default.
    """
    add = parser.add_argument
    add("--model", default=BASE_MODEL, help="folder, name, or a shape with random weights")
    add("--device", default="cpu", choices=devices, help="cpu, cuda or cuda:N")
    dtypes = ["auto", "float32", "bfloat16"]
    add("--dtype", default="auto", choices=dtypes, help="of weights and activations")
    add("--rank", type=positive, default=rank, help="of the adapters")
    add("--targets", nargs="+", help="adapted layers; default: q and v projections")
    add("--threads", type=int, help="of torch; default: torch's own choice")
    add_out(parser)


def publish(
    what: str,
    arguments: Sequence[str],
    measured: Mapping[str, Any],
    *,
    out: Path | None = None,
    lines: Iterable[tuple[str, Any]] = (),
) -> None:
    """Print `lines` as a table, then the whole report as one line of JSON; write it to `out`.

    The report says where it was measured: commit, processor and package versions.
    """
    command = shlex.join(["python", "-m", "scripts.benchmark", *arguments])
    report = {"what": what, **environment(), "command": command, **measured}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    for name, value in lines:
        print(f"{name:<28} {json.dumps(value)}")
    print(json.dumps(report))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that the report records."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("out", "what", "run")
    }


def conditions(args: argparse.Namespace, load_before: Sequence[float]) -> dict[str, Any]:
    """Return the arguments, the device, and the load average before the run and now."""
    return {
        "settings": settings_of(args),
        "device": device_name(args.device),
        "load_average": {"before": load_before, "after": os.getloadavg()},
    }


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value at position `share` (0 to 1) of the sorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Iterable[float], percentile: int = 95, digits: int = 3) -> dict[str, float]:
    """Return count, median, one percentile and maximum, as the reports show them."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), digits),
        f"p{percentile}": round(quantile(ordered, percentile / 100), digits),
        "max": round(ordered[-1], digits),
    }
