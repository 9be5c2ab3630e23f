"""A base model with a fresh LoRA adapter on it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from adapters.bases.models import Family
from adapters.validation import CONFIG_FILE, WEIGHTS_FILE
from scripts.datasets.record import readable
from scripts.lora.base_model import Quantization, load_quantised
from scripts.lora.errors import TrainingError

DEFAULT_TARGETS: dict[Family, list[str]] = {"causal": ["q_proj", "v_proj"], "seq2seq": ["q", "v"]}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    rank: int
    alpha: int
    dropout: float
    target_modules: list[str] | None  # None: q and v
    layers: list[int] | None  # indices of the layers with an adapter; None: all
    rslora: bool
    init_adapter: Path | None  # start from these weights


def build(
    path: Path,
    family: Family,
    lora: LoraSettings,
    *,
    dtype: str,
    quantization: Quantization,
    device: str,
    gradient_checkpointing: bool,
) -> PeftModel:
    """Return the base model of folder `path` with an adapter; only the adapter's float32 trains.

    Raises:
        TrainingError: quantisation or float16 without a GPU, bitsandbytes missing, a target or
            layer that the model does not have (lists what it has), `init_adapter` of another shape.
    """
    base = load_quantised(path, family, dtype, quantization, device)
    targets = _targets(base, family, lora)
    if gradient_checkpointing:
        base.config.use_cache = False
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        layers_to_transform=lora.layers,
        task_type="CAUSAL_LM" if family == "causal" else "SEQ_2_SEQ_LM",
    )
    model = get_peft_model(base, config)
    if lora.init_adapter is not None:
        _start_from(model, lora.init_adapter)
    model.print_trainable_parameters()
    return model


def _targets(base: Any, family: Family, lora: LoraSettings) -> list[str]:
    targets = lora.target_modules or DEFAULT_TARGETS[family]
    linear = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if "all-linear" in targets and len(targets) > 1:
        raise TrainingError(
            f"--target_modules {' '.join(targets)}: all-linear stands alone, it takes them all"
        )
    num_layers = base.config.num_hidden_layers
    absent = [layer for layer in lora.layers or () if not 0 <= layer < num_layers]
    if absent:
        raise TrainingError(
            f"--layers {' '.join(map(str, absent))}: the base model has layers 0 to "
            f"{num_layers - 1}"
        )
    missing = [t for t in targets if t != "all-linear" and t not in linear]
    if missing:
        raise TrainingError(
            f"--target_modules {' '.join(missing)}: the base model has no such linear layer; "
            f"it has {', '.join(sorted(linear))}, or use all-linear"
        )
    return targets


def check_init_adapter(lora: LoraSettings, base_name: str) -> None:
    """Check that `init_adapter` is of this base and acts with the same strength.

    Raises:
        TrainingError: no such adapter, or it differs; names both values.
    """
    if lora.init_adapter is None:
        return
    file = lora.init_adapter / CONFIG_FILE
    if not file.is_file():
        raise TrainingError(f"--init_adapter: {file}: no such file")
    with readable(f"--init_adapter: {file}: cannot be read as an adapter's config", TrainingError):
        config = json.loads(file.read_text(encoding="utf-8"))
        there = {key: config[key] for key in ("base_model_name_or_path", "lora_alpha")}
        there["use_rslora"] = config.get("use_rslora", False)
    here = {
        "base_model_name_or_path": base_name,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
    }
    differing = [
        f"{key} {there[key]!r}, here {here[key]!r}" for key in here if there[key] != here[key]
    ]
    if differing:
        raise TrainingError(
            f"--init_adapter {lora.init_adapter.name}: it has {'; '.join(differing)}: its weights "
            "would not do here what they do there"
        )


def _start_from(model: PeftModel, folder: Path) -> None:
    """Copy the weights of a saved adapter with the same targets and rank."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise TrainingError(f"--init_adapter: {file}: no such file")
    try:
        result = set_peft_model_state_dict(model, load_file(file))
    except RuntimeError as error:  # another rank or width
        raise TrainingError(f"--init_adapter {folder.name}: {error}") from None
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise TrainingError(
            f"--init_adapter {folder.name}: its layers are not this run's: {len(missing)} are "
            f"missing, {len(result.unexpected_keys)} have no place: use the same --target_modules "
            "and --layers"
        )
