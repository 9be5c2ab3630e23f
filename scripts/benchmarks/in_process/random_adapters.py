"""LoRA adapters with random weights, and catalogues of any number of them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from adapters.catalog import Catalog
from adapters.seed import seed_version, write_seed
from adapters.versions import RegisteredAdapter

NUM_CONTENTS = 16  # different weight files of a catalogue


def rank_of_size(model: Any, num_bytes: int, targets: Sequence[str] | None) -> int:
    """Return the rank, at least 1, whose adapter file comes nearest to `num_bytes`."""
    shapes = _lora_shapes(model, _lora_config(model, 1, targets))
    bytes_per_rank = 4 * sum(shape.numel() for shape in shapes.values())  # float32
    return max(1, round(num_bytes / bytes_per_rank))


def make_random_adapters(
    model: Any,
    folder: Path,
    *,
    num: int,
    rank: int,
    targets: Sequence[str] | None,
    base_name: str | None = None,
    first_seed: int = 0,
) -> dict[str, Path]:
    """Write `num` LoRA adapters with random A and B; return name -> folder. The model is unchanged.

    Args:
        targets: names of linear layers; None: the q and v projections.
        base_name: that the adapters say they belong to.
        first_seed: of the first adapter's weights; each further adapter takes the next seed.
    """
    config = _lora_config(model, rank, targets)
    shapes = _lora_shapes(model, config)
    config.base_model_name_or_path = base_name  # PEFT has noted the model's
    return {
        f"a{number}": _write_adapter(folder / f"a{number}", config, shapes, first_seed + number)
        for number in range(num)
    }


def _lora_config(model: Any, rank: int, targets: Sequence[str] | None) -> LoraConfig:
    is_t5 = model.config.is_encoder_decoder
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets or (["q", "v"] if is_t5 else ["q_proj", "v_proj"])),
        task_type="SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM",
        init_lora_weights=False,
    )


def _lora_shapes(model: Any, config: LoraConfig) -> dict[str, torch.Size]:
    """Return name in the adapter's file -> shape."""
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    wrapped = get_peft_model(skeleton, config)
    return {
        name.replace(".default.", "."): parameter.shape
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name
    }


def _write_adapter(
    folder: Path, config: LoraConfig, shapes: dict[str, torch.Size], seed: int
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * (shape[1] ** -0.5 if "_A" in name else 0.02)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_catalog(
    model: Any,
    folder: Path,
    *,
    num: int,
    rank: int,
    targets: list[str] | None,
    base_name: str = "bench",
) -> dict[str, Any]:
    """Write a catalogue of `num` adapters, each with its own specialty; return their size.

    NUM_CONTENTS weight files are shared by all names. Each has its own configuration, so that the
    store and the caches see different content.
    """
    alike: dict[str, Any] = {"rank": rank, "targets": targets, "base_name": base_name}
    made = make_random_adapters(model, folder / "contents", num=min(num, NUM_CONTENTS), **alike)
    contents = list(made.values())
    config = json.loads((contents[0] / "adapter_config.json").read_text())
    adapters = []
    for number in range(num):
        name = f"a{number}"
        target = folder / "weights" / name
        target.mkdir(parents=True)
        source = contents[number % len(contents)] / "adapter_model.safetensors"
        os.link(source, target / "adapter_model.safetensors")
        (target / "adapter_config.json").write_text(json.dumps(config | {"revision": str(number)}))
        version = seed_version(target, f"weights/{name}", version="1", rank=rank)
        about: dict[str, Any] = {
            "name": name,
            "specialty": name,
            "base_model": base_name,
            "version": "1",
        }
        adapters.append(RegisteredAdapter(**about, state="active", versions=[version]))
    write_seed(folder, Catalog(revision=0, adapters=adapters))
    return {"adapter_bytes": (contents[0] / "adapter_model.safetensors").stat().st_size}
