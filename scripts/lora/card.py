"""Writes what a trained adapter consists of: weights, PEFT config, model card, loss history."""

import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from scripts.datasets.cleaning import ATTRIBUTIONS, origin
from scripts.datasets.record import DataSet


def write_adapter(
    out: Path,
    model: PeftModel,
    report: dict[str, Any],
    history: list[dict[str, float]],
    command: str,
    data: DataSet,
) -> None:
    """Save bfloat16 safetensors, adapter_config.json, README.md and history.jsonl into `out`.

    With matplotlib installed, loss.png too. Adds `sha256` and `bytes` to `report`, and
    prints the command that adds the adapter to a running clinic.

    Raises:
        OSError: they cannot be written, the disk is full perhaps; what was in `out` is as before.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as scratch:
        fresh = Path(scratch)
        try:
            _write_files(fresh, model, report, history, command, data)
        except SafetensorError as error:  # a full disk is no OSError there
            raise OSError(f"{out}: the adapter cannot be written: {error}") from None
        for file in fresh.iterdir():
            os.replace(file, out / file.name)
    add = f"python -m adapters add {out.name} --source {out} --version 1"
    print(f"to a running clinic: {add} --specialty {report['specialty']}")


def _write_files(
    out: Path,
    model: PeftModel,
    report: dict[str, Any],
    history: list[dict[str, float]],
    command: str,
    data: DataSet,
) -> None:
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    weights = out / "adapter_model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = report["base_model"]
    config.inference_mode = True
    config.save_pretrained(str(out))
    report["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    report["bytes"] = weights.stat().st_size
    (out / "README.md").write_text(_card(report, command, data), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in history)
    (out / "history.jsonl").write_text(lines, encoding="utf-8")
    _draw_loss(out / "loss.png", history)


def _draw_loss(file: Path, history: list[dict[str, float]]) -> None:
    """Training and validation loss by epoch; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 3), layout="constrained")).subplots()
    for name in ("train_loss", "validation_loss"):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name.replace("_", " "))
    axes.set(xlabel="epoch", ylabel="nats for each answer token")
    axes.legend()
    figure.savefig(file)


def _card(report: dict[str, Any], command: str, data: DataSet) -> str:
    sources = sorted({pair.source for pair in (*data.train, *data.validation)})
    families = {origin(source) for source in sources}
    credits = [ATTRIBUTIONS.get(family, f"{family}: see its own licence") for family in families]
    hashes = [f"- `{name}`: sha256 `{digest}`" for name, digest in sorted(data.files.items())]
    figures = json.dumps(report, indent=2)
    return "\n".join(
        [
            f"# {report['specialty']}: a LoRA adapter for {report['base_model']}",
            "",
            "Research software, **not medical advice**. The adapter changes how the base model "
            "writes more than what it knows; both invent facts.",
            "",
            "## Data",
            "",
            f"{report['num_train']} question and answer pairs for training, "
            f"{report['num_validation']} for validation, from {', '.join(sources) or 'the file'}.",
            *hashes,
            "",
            "Attribution:",
            *[f"- {credit}" for credit in sorted(credits)],
            "",
            "## Training",
            "",
            "Loss on the answer's tokens, in the serving prompt format; of all validations after "
            "the start, the weights with the lowest loss are kept (`history.jsonl`).",
            "",
            f"```\n{command}\n```",
            "",
            f"Commit `{commit()}`.",
            "",
            "## Figures",
            "",
            f"```json\n{figures}\n```",
            "",
        ]
    )


def commit() -> str:
    """The commit of this checkout, `-dirty` after it when files differ; "unknown" without git.

    The variable GIT_COMMIT overrides it: a copied tree may lie inside another repository.
    """
    if told := os.environ.get("GIT_COMMIT"):
        return told
    root = Path(__file__).resolve().parent.parent.parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return git.stdout.strip() or "unknown"


def command_line(script: str, argv: Sequence[str]) -> str:
    """The command for the record, without the machine's own paths."""
    words = [Path(w).name if w.startswith(("/", "..")) else w for w in argv]
    return shlex.join(["python", "-m", f"scripts.{script}", *words])
