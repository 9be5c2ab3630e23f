"""Write a merged model or a summed adapter as a folder that appears whole, or not at all."""

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from scripts.lora.errors import MergeError
from scripts.lora.saved_adapter import adapter_state, save_adapter

REPORT_FILE = "merge.json"


def num_bytes(model: Any) -> int:
    """Return the bytes of all parameters, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


@contextlib.contextmanager
def write_model_folder(
    out: Path, model: Any, tokenizer: Any, report: dict[str, Any], overwrite: bool
) -> Iterator[Path]:
    """Yield the folder while it is hidden; it becomes `out` when the block ends without an error.

    Raises:
        MergeError: no space left.
    """
    with _swapped_in(out, num_bytes(model), overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder
        text = json.dumps(report, indent=2) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")


def write_adapter_folder(
    out: Path,
    model: PeftModel,
    name: str,
    base_name: str,
    overwrite: bool,
    *,
    prompt_format: str | None,
) -> None:
    """Write adapter `name` of a model in bfloat16, like a trained one.

    Raises:
        MergeError: not finite, or no space left.
    """
    state = adapter_state(model, name)
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise MergeError(f"{len(bad)} tensors of the sum hold NaN or infinity: {bad[0]}")
    with _swapped_in(out, sum(value.nbytes for value in state.values()), overwrite) as folder:
        save_adapter(folder, model, state, base_name, name, prompt_format=prompt_format)


@contextlib.contextmanager
def _swapped_in(out: Path, size: int, overwrite: bool) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size:
        raise MergeError(_no_space(out, f"{free // 2**20} MiB are free, {size // 2**20} needed"))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch, "made")
        folder.mkdir()
        try:
            yield folder
        except Exception as error:  # tokenizers raises a plain Exception for a full disk
            full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
            if not full:
                raise
            raise MergeError(_no_space(out, "the disk is full")) from None
        if out.exists() and overwrite:
            out.rename(Path(scratch, "replaced"))
        folder.rename(out)


def _no_space(out: Path, why: str) -> str:
    return f"--out {out}: {why}; nothing was written: free some, or give a folder elsewhere"
