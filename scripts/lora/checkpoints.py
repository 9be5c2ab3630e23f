"""The folder of an unfinished run: its arguments, its checkpoints, and what to do with them.

A run is resumed only with the same arguments and data. Checkpoints hold the optimiser as PyTorch
saves it, so they are for this machine only; what is published is safetensors.
"""

import json
from pathlib import Path
from typing import Any

from scripts.lora.errors import TrainingError

CHECKPOINT = "unfinished"  # folder below --out, removed when the run ends
ARGUMENTS = "arguments.json"


def keep_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Write the arguments next to the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(arguments, indent=2) + "\n"
    (folder / ARGUMENTS).write_text(text, encoding="utf-8")


def check_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Compare with the arguments of the unfinished run in `folder`.

    Raises:
        TrainingError: nothing to resume, damaged, or the arguments differ (each is named).
    """
    try:
        saved = json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(
            f"--resume: {folder} holds no unfinished run; start without --resume"
        ) from None
    except (OSError, ValueError) as error:
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


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; None without one.

    Trainer writes `trainer_state.json` last, so a kill or a full disk leaves a folder without it.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def what_now(folder: Path) -> str:
    """Say what to do after a run in `folder` ended early."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "No checkpoint was written yet: fix that and start again"
    return f"Fix that; the same command with --resume goes on from {checkpoint.name}"
