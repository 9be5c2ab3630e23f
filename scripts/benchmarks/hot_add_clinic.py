"""What scripts/benchmarks/hot_add.py serves: a base model, random adapters, keys, and the settings
of an application with several model replicas. Files only: nothing is started here.
"""

import argparse
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base_models import resolve_base_model
from deployments.api.api_keys import KeyKind, KeyStore, new_key
from deployments.settings import PROJECT_ROOT
from scripts.benchmarks.churn_clinic import write_catalog
from scripts.benchmarks.models import (
    RANDOM_SHAPES,
    byte_pair_tokenizer,
    load_skeleton,
    make_random_adapters,
    rank_of_size,
    save_base,
)

MAX_INPUT_TOKENS = 256
_OTHER_WEIGHTS = 1000  # first seed of the new versions; those of the catalogue begin at 0
# So high that the limiter works on every request and refuses none.
_REQUESTS_PER_MINUTE, _TOKENS_PER_MINUTE = 1_000_000, 1_000_000_000


@dataclass(frozen=True, slots=True)
class HotAddClinic:
    """
    Attributes:
        application: for `serve_process.serving`.
        sources: folders of adapters that the catalogue does not list, all different.
        user, admin: header fields with a key.
        adapter: rank and bytes of an adapter, for the report.
        router_encoder: which one the router has; no question of the benchmark is routed.
    """

    application: dict[str, Any]
    sources: list[Path]
    user: dict[str, str]
    admin: dict[str, str]
    adapter: dict[str, int]
    router_encoder: str


def prepare(args: argparse.Namespace, folder: Path) -> HotAddClinic:
    """Write everything below `folder`."""
    base_name, base_path = _base(args, folder)
    skeleton = load_skeleton(base_path)
    rank = args.rank or rank_of_size(skeleton, int(args.megabytes * 1e6), args.targets)
    size = write_catalog(
        skeleton,
        folder / "seed",
        num=args.adapters,
        rank=rank,
        targets=args.targets,
        base_name=base_name,
    )
    sources = make_random_adapters(
        skeleton,
        folder / "sources",
        num=args.adds + args.changes,
        rank=rank,
        targets=args.targets,
        first_seed=_OTHER_WEIGHTS,
    )
    for source in sources.values():
        _name_base(source / "adapter_config.json", base_name)
    router, router_encoder = _router(folder)
    user, admin = _key_headers(folder / "state", "user", "admin")
    return HotAddClinic(
        _application(args, folder, base_name, router),
        list(sources.values()),
        user,
        admin,
        {"rank": rank, **size},
        router_encoder,
    )


def cpu_threads(args: argparse.Namespace) -> int:
    """Torch threads of each replica on the CPU: a fair share of the cores, if not given."""
    cores = len(os.sched_getaffinity(0))
    return int(args.cpu_threads or max(1, cores // args.replicas))


def _base(args: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """(its name in the settings, its folder)"""
    if args.model not in RANDOM_SHAPES:
        return args.model, resolve_base_model(args.model, progress=False).path
    made = save_base(args.model, folder / args.model, args.device, args.dtype)
    return str(made), made


def _name_base(config: Path, base_name: str) -> None:
    content = json.loads(config.read_text()) | {"base_model_name_or_path": base_name}
    config.write_text(json.dumps(content))


def _key_headers(state: Path, *kinds: KeyKind) -> list[dict[str, str]]:
    made = [
        new_key(
            kind, requests_per_minute=_REQUESTS_PER_MINUTE, tokens_per_minute=_TOKENS_PER_MINUTE
        )
        for kind in kinds
    ]
    KeyStore(state).change(lambda records: [record for _, record in made])
    return [{"authorization": f"Bearer {key}"} for key, _ in made]


def _application(
    args: argparse.Namespace, folder: Path, base_name: str, router: dict[str, str]
) -> dict[str, Any]:
    engine = {
        "dtype": args.dtype,
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
            "router": router,
            "engine": engine,
        },
    }
    if args.device == "cpu":
        engine["cpu_threads"] = cpu_threads(args)
        application["deployments"] = [_several_on_one_cpu(args.replicas)]
    return application


def _several_on_one_cpu(replicas: int) -> dict[str, Any]:
    """The application keeps to one replica on the CPU, since more only share its cores. Serve's own
    configuration has the last word, and here sharing is what is wanted."""
    return {
        "name": "Model",
        "ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0},
        "autoscaling_config": {
            "min_replicas": replicas,
            "initial_replicas": replicas,
            "max_replicas": replicas,
        },
    }


def _router(folder: Path) -> tuple[dict[str, str], str]:
    """(its settings, what its encoder is). The shipped encoder needs onnxruntime; without it a
    random one stands in, since every request names its adapter and none is classified."""
    if importlib.util.find_spec("onnxruntime") is not None:
        return {}, "the shipped one"
    artefact, encoder = folder / "router", folder / "router-encoder"
    shutil.copytree(PROJECT_ROOT / "router" / "model", artefact)
    manifest = json.loads((artefact / "manifest.json").read_text())
    manifest["encoder"]["name"] = str(encoder)
    (artefact / "manifest.json").write_text(json.dumps(manifest))
    _save_random_encoder(encoder, _encoder_width(artefact))
    return {"artefact": str(artefact)}, "a random one: onnxruntime is not installed"


def _encoder_width(artefact: Path) -> int:
    import numpy as np

    with np.load(artefact / "weights.npz", allow_pickle=False) as arrays:
        return int(arrays["mean"].shape[0])


def _save_random_encoder(folder: Path, width: int) -> None:
    from transformers import BertConfig, BertModel

    tokenizer = byte_pair_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def names_of(adapters: int) -> tuple[str, Sequence[str]]:
    """(the adapter that gets new versions, those that the streams ask)"""
    first, *others = (f"a{number}" for number in range(adapters))
    return first, others
