"""Write what a trained adapter consists of: weights, PEFT config, model card, loss history."""

import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from adapters.validation import WEIGHTS_FILE
from scripts.datasets.attributions import ATTRIBUTIONS, origin
from scripts.datasets.pairs import DataSet
from scripts.environment import commit
from scripts.lora.saved_adapter import adapter_state, save_adapter
from scripts.pages.markdown import render

TEMPLATE = Path(__file__).with_name("card.md.j2")
History = list[dict[str, float]]


def write_adapter(
    out: Path,
    model: PeftModel,
    report: dict[str, Any],
    history: History,
    command: str,
    data: DataSet,
) -> None:
    """Save bfloat16 safetensors, adapter_config.json, README.md and history.jsonl into `out`.

    With matplotlib installed, loss.png too. Adds `sha256` and `bytes` to `report`.

    Raises:
        OSError: they cannot be written, as on a full disk; what was in `out` is as before.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as scratch:
        fresh = Path(scratch)
        try:
            save_adapter(
                fresh,
                model,
                adapter_state(model),
                report["base_model"],
                "default",
                prompt_format=report["prompt_format"],
            )
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise OSError(f"{out}: the adapter cannot be written: {error}") from None
        weights = (fresh / WEIGHTS_FILE).read_bytes()
        report |= {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
        (fresh / "README.md").write_text(_card(report, command, data), encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in history)
        (fresh / "history.jsonl").write_text(lines, encoding="utf-8")
        _draw_loss(fresh / "loss.png", history)
        for file in fresh.iterdir():
            os.replace(file, out / file.name)


def _card(report: dict[str, Any], command: str, data: DataSet) -> str:
    sources = sorted({pair.source for pair in (*data.train, *data.validation)})
    families = {origin(source) for source in sources}
    return render(
        TEMPLATE,
        report=report,
        sources=sources,
        files=sorted(data.files.items()),
        credits=sorted(ATTRIBUTIONS.get(f, f"{f}: see its own licence") for f in families),
        command=command,
        commit=commit(),
        figures=json.dumps(report, indent=2),
    )


def _draw_loss(file: Path, history: History) -> None:
    """Draw training and validation loss by epoch; do nothing without matplotlib."""
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
