"""Write the small clinic that is broken: a random base, adapters, two replicas of everything."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.benchmarks.bases.models import load_skeleton, word_tokenizer
from scripts.benchmarks.in_process.random_adapters import write_catalog
from scripts.benchmarks.live_adapters.hot_add_service import several_on_one_cpu

ADAPTERS = ("a0", "a1", "a2")
MAX_TOKENS = 240
MAX_ROWS = 8
_NUM_WORDS = 500
_MAX_WAITING = 64
_STAND_IN_ROWS = 64
_STAND_IN = "scripts.benchmarks.over_http.stand_in_model:build_clinic"


def write_base(folder: Path, seed: int) -> Path:
    """Write a Llama with random weights that takes a millisecond or two for a token."""
    words = [f"w{number}" for number in range(3, _NUM_WORDS)]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=_NUM_WORDS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(words, "causal").save_pretrained(folder)
    return folder


def num_at_once(*, replicas: int, routers: int, is_stand_in: bool) -> int:
    """Return how many requests all routers together have in progress at most: each lets in what
    the model replicas hold, and what may wait (deployments/ingress/deployment.py)."""
    rows = _STAND_IN_ROWS if is_stand_in else MAX_ROWS
    return routers * (2 * rows * replicas + _MAX_WAITING)


def write_clinic(
    folder: Path, *, replicas: int, routers: int, step_s: float | None = None
) -> dict[str, Any]:
    """Write base, seed and state below `folder`; return the application for serve.yaml.

    Args:
        step_s: seconds of a step of a decoder that stands in for the model and takes no processor
            time; its texts too tell adapters, versions and questions apart. None: the model.
    """
    base = write_base(folder / "base", seed=0)
    skeleton = load_skeleton(base)
    alike: dict[str, Any] = {"rank": 4, "targets": None, "base_name": str(base)}
    write_catalog(skeleton, folder / "seed", num=len(ADAPTERS), **alike)
    module = "deployments.app:build" if step_s is None else _STAND_IN
    return {
        "name": "clinic",
        "route_prefix": "/",
        "import_path": module,
        "args": {
            **({} if step_s is None else {"step_s": step_s, "tells": True}),
            "base_model": str(base),
            "adapters": str(folder / "seed"),
            "state_dir": str(folder / "state"),
            "device": "cpu",
            "auth": {"mode": "open", "open_admin": True},
            "router": {"replicas": routers},
            "engine": {
                "dtype": "float32",
                "max_rows": MAX_ROWS if step_s is None else _STAND_IN_ROWS,
                "max_waiting": _MAX_WAITING,
                "max_input_tokens": 64,
                "max_output_tokens": MAX_TOKENS,
                "default_output_tokens": 64,
                "cpu_threads": 1,
            },
        },
        "deployments": [several_on_one_cpu(replicas)],
    }
