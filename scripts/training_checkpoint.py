"""Keeps the state of an unfinished training run in a folder, as safetensors and JSON."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scripts.lora_training import LoopState, TrainingError

_TENSORS = "state-{epoch}.safetensors"
_STATE = "state.json"


def save_checkpoint(folder: Path, state: LoopState, arguments: dict[str, Any]) -> None:
    """Replace what `folder` holds; a crash in between leaves the earlier state usable."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / _TENSORS.format(epoch=state.epoch)
    save_file({n: t.cpu().contiguous() for n, t in state.tensors.items()}, tensors)
    content = {
        "arguments": arguments,
        "epoch": state.epoch,
        "num_steps": state.num_steps,
        "best_epoch": state.best_epoch,
        "history": state.history,
    }
    fresh = folder / f"{_STATE}.new"
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, folder / _STATE)
    for other in folder.glob(_TENSORS.format(epoch="*")):
        if other != tensors:
            other.unlink()


def load_checkpoint(folder: Path, arguments: dict[str, Any]) -> LoopState:
    """The state of an interrupted run that had the same arguments and data.

    Raises:
        TrainingError: nothing to go on from, damaged, or the arguments differ (each is named).
    """
    try:
        content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        saved = content["arguments"]
        tensors = load_file(folder / _TENSORS.format(epoch=content["epoch"]))
    except FileNotFoundError:
        raise TrainingError(
            f"--resume: {folder} holds no unfinished run; start without --resume"
        ) from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(
            f"--resume: {folder} cannot be read ({error}); remove it and start without --resume"
        ) from None
    differing = [
        f"{key} was {saved.get(key)!r}, now {arguments.get(key)!r}"
        for key in sorted(saved.keys() | arguments.keys())
        if saved.get(key) != arguments.get(key)
    ]
    if differing:
        raise TrainingError(
            f"--resume: the unfinished run had other arguments: {'; '.join(differing)}; give the "
            "same ones, or start without --resume"
        )
    return LoopState(
        epoch=content["epoch"],
        num_steps=content["num_steps"],
        history=content["history"],
        best_epoch=content["best_epoch"],
        tensors=tensors,
    )
