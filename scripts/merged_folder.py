"""Writes a merged model or a summed adapter as a folder that appears whole, or not at all."""

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
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from adapters.base_models import Family, family_of
from adapters.validation import WEIGHTS_FILE
from scripts.merge_checks import MergeError, Probe, num_bytes, relative_error

REPORT_FILE = "merge.json"


def load_base(path: Path, family: Family, dtype: str) -> Any:
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    return model_class.from_pretrained(path, dtype=getattr(torch, dtype), use_safetensors=True)


@contextlib.contextmanager
def write_model_folder(
    out: Path, model: Any, tokenizer: Any, report: dict[str, Any], overwrite: bool
) -> Iterator[Path]:
    """The folder while it is still hidden; it becomes `out` when the block ends without an error.

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
    out: Path, model: PeftModel, name: str, base_name: str, overwrite: bool
) -> None:
    """Adapter `name` of a model, in bfloat16 like a trained one.

    Raises:
        MergeError: not finite, or no space left.
    """
    state = {
        key: value.detach().to("cpu", torch.bfloat16).contiguous()
        for key, value in get_peft_model_state_dict(model, adapter_name=name).items()
    }
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise MergeError(f"{len(bad)} tensors of the sum hold NaN or infinity: {bad[0]}")
    with _swapped_in(out, sum(value.nbytes for value in state.values()), overwrite) as folder:
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = model.peft_config[name]
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        config.save_pretrained(str(folder))


def read_back(folder: Path, merged: Any, probe: Probe, dtype: str, device: str) -> dict[str, Any]:
    """Load the written folder as serving would and compare it with the model in memory.

    Raises:
        MergeError: its logits are not the very same.
    """
    loaded = load_base(folder, family_of(folder), dtype).to(device).eval()
    error = relative_error(probe.run(merged, 1).logits, probe.run(loaded, 1).logits)
    if error != 0:
        raise MergeError(
            f"the written model's logits differ from the merged one's by {error:.2g}: a weight is "
            "not saved as it is (tied or scaled on load); this base can't be merged into a folder"
        )
    return {"logits_equal": True}


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
        except Exception as error:  # tokenizers has no type of its own for a full disk
            full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
            if not full:
                raise
            raise MergeError(_no_space(out, "the disk is full")) from None
        if out.exists() and overwrite:
            out.rename(Path(scratch, "replaced"))
        folder.rename(out)


def _no_space(out: Path, why: str) -> str:
    return f"--out {out}: {why}; nothing was written: free some, or give a folder elsewhere"
