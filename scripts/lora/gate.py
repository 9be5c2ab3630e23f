"""The gate's judgement of an evaluation: whether the adapter proved better than its base."""

import json
import math
from pathlib import Path
from typing import Any

from scripts.datasets.record import readable

Result = dict[str, Any]  # of scripts.evaluate_adapter
GATE = 30  # validation questions: fewer prove nothing


def read_result(file: Path) -> Result:
    """Read a result of scripts.evaluate_adapter.

    Raises:
        DataError: unreadable, incomplete, or with an interval that is not finite.
    """
    with readable(f"--evaluation {file}: no result of scripts.evaluate_adapter"):
        result: Result = json.loads(file.read_text(encoding="utf-8"))
        for metric in ("nll", "rouge_l", "bleu"):
            low, high = result["metrics"][metric]["difference"]["interval"]
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"the interval of {metric} is [{low}, {high}]")
        figures(result)
        result["adapter_sha256"], result["split"]
    return result


def unproven(result: Result, min_questions: int, min_gain: float) -> list[str]:
    """Return every condition on the figures that is not met; none when the adapter is better.

    Args:
        min_gain: nats a token that the likelihood of the references must rise by, with 97.5 %
            confidence.
    """
    failed = []
    if result.get("limit") is not None:
        failed.append(f"the evaluation took --limit {result['limit']}; run it without the limit")
    if result["split"] != "validation":
        failed.append(f"the evaluation is on the split {result['split']!r}; validation is needed")
    if (num := result["num_questions"]) < min_questions:
        failed.append(f"{num} validation questions; {min_questions} are needed")
    low, high = result["metrics"]["nll"]["difference"]["interval"]
    if not high < -min_gain:
        failed.append(
            "the likelihood of the references does not rise: the negative log-likelihood changes "
            f"by [{low:.3f}, {high:.3f}] nats a token, and the interval must be below "
            f"{-min_gain}"
        )
    for metric, shown in (("rouge_l", "ROUGE-L"), ("bleu", "BLEU")):
        low, high = result["metrics"][metric]["difference"]["interval"]
        if high < 0:
            failed.append(f"{shown} is worse: it changes by [{low:.2f}, {high:.2f}]")
    if result["answers_changed"] == 0:
        failed.append("every answer is the base's own")
    return failed


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the catalogue keeps of an evaluation."""
    metrics = result["metrics"]
    figures: dict[str, Any] = {"split": "validation", "num_questions": result["num_questions"]}
    for name, digits in (("nll", 4), ("rouge_l", 2), ("bleu", 2)):
        for system in ("base", "adapter"):
            figures[f"{name}_{system}"] = round(metrics[name]["systems"][system]["value"], digits)
        interval = metrics[name]["difference"]["interval"]
        figures[f"{name}_difference_interval"] = [round(bound, digits) for bound in interval]
    return figures | {"answers_changed": result["answers_changed"], "commit": result["commit"]}
