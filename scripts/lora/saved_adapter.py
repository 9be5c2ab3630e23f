"""Save an adapter as safetensors, check whose base it is for, and put it on that base."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapters.prompting import PROMPT_FORMATS, PromptFormat
from adapters.validation import CONFIG_FILE, PROMPT_FORMAT_KEY, WEIGHTS_FILE, recorded_prompt_format
from scripts.datasets.record import readable
from scripts.lora.errors import AdapterMismatch


def adapter_state(model: PeftModel, name: str = "default") -> dict[str, torch.Tensor]:
    """Return the adapter's tensors on the CPU in bfloat16, as they are published."""
    return {
        key: value.detach().to("cpu", torch.bfloat16).contiguous()
        for key, value in get_peft_model_state_dict(model, adapter_name=name).items()
    }


def save_adapter(
    folder: Path,
    model: PeftModel,
    state: dict[str, torch.Tensor],
    base_name: str,
    name: str,
    *,
    prompt_format: str | None,
) -> None:
    """Write `state` and adapter `name`'s PEFT config, with the base's name in place of its path.

    Args:
        prompt_format: what it was trained with, for the metadata of the weights; None: not known.

    Raises:
        OSError, SafetensorError: they cannot be written, as on a full disk.
    """
    save_weights(state, folder / WEIGHTS_FILE, prompt_format)
    config = model.peft_config[name]
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    config.save_pretrained(str(folder))


def save_weights(
    state: dict[str, torch.Tensor], file: Path, prompt_format: str | None = None
) -> None:
    """Write tensors, with the prompt format in their metadata; the same input gives the same bytes.

    Raises:
        OSError, SafetensorError: they cannot be written, as on a full disk.
    """
    metadata = {"format": "pt"} | ({PROMPT_FORMAT_KEY: prompt_format} if prompt_format else {})
    save_file(state, file, metadata=metadata)
    # safetensors writes the metadata in an order that changes from call to call.
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = metadata
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise OSError(f"{file}: its header of {size} bytes cannot be written in order")
        opened.seek(8)
        opened.write(text.ljust(size))


def check_base(folder: Path, base_name: str) -> None:
    """Check that the adapter in `folder` was trained on this base.

    Raises:
        AdapterMismatch: it was not, its config cannot be read, or it has no safetensors.
    """
    file = folder / CONFIG_FILE
    with readable(f"{file}: cannot be read as an adapter's config", AdapterMismatch):
        trained_on = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    if trained_on != base_name:
        raise AdapterMismatch(
            f"{file}: the adapter was trained on {trained_on!r}, and the base model here is "
            f"{base_name!r}: give --base_model {trained_on}, or --base_model_name with a folder"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise AdapterMismatch(f"{folder / WEIGHTS_FILE}: no such file; only safetensors are read")


def prompt_format_of(folders: Sequence[Path]) -> PromptFormat | None:
    """Return the prompt format that these adapters record; None if they record none.

    Raises:
        AdapterMismatch: they record different ones, or one that is not known.
    """
    found = {folder: recorded_prompt_format(folder / WEIGHTS_FILE) for folder in folders}
    first = found[folders[0]]
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{folder.name}: {name or 'none'}" for folder, name in found.items())
        raise AdapterMismatch(f"--adapter: they were trained in different prompt formats ({shown})")
    if first is None:
        return None
    for known in PROMPT_FORMATS:
        if first == known:
            return known
    raise AdapterMismatch(
        f"{folders[0] / WEIGHTS_FILE}: its metadata names the prompt format {first[:80]!r}; known "
        f"are {', '.join(PROMPT_FORMATS)}"
    )


def with_adapter(model: Any, folder: Path, name: str = "default") -> PeftModel:
    """Return the base, or a PEFT model with other adapters, with this adapter on it.

    Raises:
        AdapterMismatch: a tensor is missing, or has another shape.
    """
    try:
        there = load_file(folder / WEIGHTS_FILE).keys()
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise AdapterMismatch(
            f"--adapter {folder.name}: it is damaged, or of another base model: {error}"
        ) from None
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if missing := sorted(state.keys() - there):
        raise AdapterMismatch(
            f"--adapter {folder.name}: {WEIGHTS_FILE} lacks {len(missing)} of {len(state)} "
            f"tensors, the first is {missing[0]}: it is damaged, or of a smaller base model"
        )
    return model
