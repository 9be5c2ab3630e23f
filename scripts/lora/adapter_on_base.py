"""An adapter's folder onto a base model in memory, or a clear word on why it does not fit."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from adapters.validation import CONFIG_FILE, WEIGHTS_FILE


class AdapterError(ValueError):
    """The adapter is damaged, or of another base model; the text says what was found."""


def check_base(folder: Path, base_name: str) -> None:
    """Whether the adapter was trained on this base.

    Raises:
        AdapterError: it was not, its config cannot be read, or it has no safetensors.
    """
    file = folder / CONFIG_FILE
    try:
        trained_on = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file}: cannot be read as an adapter's config ({error})") from None
    if trained_on != base_name:
        raise AdapterError(
            f"{file}: the adapter was trained on {trained_on!r}, and the base model here is "
            f"{base_name!r}: give --base_model {trained_on}, or --base_model_name with a folder"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise AdapterError(f"{folder / WEIGHTS_FILE}: no such file; only safetensors are read")


def with_adapter(model: Any, folder: Path, name: str = "default") -> PeftModel:
    """The base, or a PEFT model with other adapters, with this one on it.

    Raises:
        AdapterError: a tensor is missing, or has another shape.
    """
    try:
        there = load_file(folder / WEIGHTS_FILE).keys()
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"--adapter {folder.name}: it is damaged, or of another base model: {error}"
        ) from None
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if missing := sorted(state.keys() - there):
        raise AdapterError(
            f"--adapter {folder.name}: {WEIGHTS_FILE} lacks {len(missing)} of {len(state)} "
            f"tensors, the first is {missing[0]}: it is damaged, or of a smaller base model"
        )
    return model
