"""Write what `scripts.benchmark hot_add` serves: base model, adapters, keys and settings.

Files only: nothing is started here.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bases.models import resolve_base_model
from scripts.benchmarks.bases.models import load_skeleton, save_base
from scripts.benchmarks.bases.shapes import SHAPES
from scripts.benchmarks.in_process.random_adapters import (
    make_random_adapters,
    rank_of_size,
    write_catalog,
)
from scripts.benchmarks.over_http.serve_process import key_headers

MAX_INPUT_TOKENS = 256
_OTHER_WEIGHTS = 1000  # first seed of the new versions; those of the catalogue begin at 0


@dataclass(frozen=True, slots=True)
class HotAddService:
    """What is served, and what is added to it."""

    application: dict[str, Any]  # for `serve_process.serving`
    sources: list[Path]  # folders of adapters that the catalogue does not list, all different
    user: dict[str, str]  # header fields with a key
    admin: dict[str, str]  # header fields with a key
    adapter: dict[str, int]  # rank and bytes of an adapter, for the report


def prepare(args: argparse.Namespace, folder: Path) -> HotAddService:
    """Write everything into `folder`."""
    base_name, base_path = _base(args, folder)
    skeleton = load_skeleton(base_path)
    rank = args.rank or rank_of_size(skeleton, int(args.megabytes * 1e6), args.targets)
    alike: dict[str, Any] = {"rank": rank, "targets": args.targets, "base_name": base_name}
    size = write_catalog(skeleton, folder / "seed", num=args.adapters, **alike)
    num, seed = args.adds + args.changes, _OTHER_WEIGHTS
    sources = make_random_adapters(skeleton, folder / "sources", num=num, first_seed=seed, **alike)
    user, admin = key_headers(folder / "state", "user", "admin")
    application = _application(args, folder, base_name)
    return HotAddService(application, list(sources.values()), user, admin, {"rank": rank, **size})


def cpu_threads(args: argparse.Namespace) -> int:
    """Return the torch threads of each replica on the CPU: given, or its share of the cores."""
    cores = len(os.sched_getaffinity(0))
    return int(args.threads or max(1, cores // args.replicas))


def _base(args: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """Return its name in the settings, and its folder."""
    if args.model not in SHAPES:
        return args.model, resolve_base_model(args.model, progress=False).path
    made = save_base(args.model, folder / args.model, args.device, args.dtype)
    return str(made), made


def _application(args: argparse.Namespace, folder: Path, base_name: str) -> dict[str, Any]:
    engine = {
        "dtype": args.dtype,
        # Every stream asks the same question, and random adapters repeat themselves.
        "prefix_cache": False,
        "prompt_lookup": False,
        "max_rows": args.rows,
        "max_input_tokens": MAX_INPUT_TOKENS,
        "max_output_tokens": args.output_tokens,
        "default_output_tokens": args.output_tokens,
        "max_adapters": args.slots,
    }
    application: dict[str, Any] = {
        "name": "clinic",
        "route_prefix": "/",
        "import_path": "deployments.app:build",
        "args": {
            "base_model": base_name,
            "adapters": str(folder / "seed"),
            "state_dir": str(folder / "state"),
            "device": args.device,
            "auth": {"mode": "keys"},
            "model_replicas": {"min": args.replicas, "max": args.replicas},
            "engine": engine,
        },
    }
    if args.device == "cpu":
        engine["cpu_threads"] = cpu_threads(args)
        application["deployments"] = [several_on_one_cpu(args.replicas)]
    return application


def several_on_one_cpu(replicas: int) -> dict[str, Any]:
    """Return what makes Serve run several model replicas on one CPU: its own configuration has the
    last word, and the application keeps to one."""
    return {
        "name": "Model",
        "ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0},
        "autoscaling_config": {
            "min_replicas": replicas,
            "initial_replicas": replicas,
            "max_replicas": replicas,
        },
    }
