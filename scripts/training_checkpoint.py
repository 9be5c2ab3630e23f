"""Whether an unfinished run may go on: it must have had the same arguments and data."""

import json
from pathlib import Path
from typing import Any

from scripts.lora_training import TrainingError

ARGUMENTS = "arguments.json"


def keep_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Write them beside the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(arguments, indent=2) + "\n"
    (folder / ARGUMENTS).write_text(text, encoding="utf-8")


def check_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Compare with those of the unfinished run in `folder`.

    Raises:
        TrainingError: nothing to go on from, damaged, or the arguments differ (each is named).
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
