"""Write the table of bases in docs/engine.md from the fast decoder's descriptions.

    python -m scripts.pages.bases

It stands between the lines `<!-- bases -->` and `<!-- /bases -->`. A test compares it with
`table()`. The last line of stdout is one JSON object.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.engine.models.architectures import ARCHITECTURES
from deployments.engine.models.bart import BART_MODELS
from deployments.engine.models.t5 import T5_MODELS
from deployments.engine.models.t5gemma import T5GEMMA_MODELS
from scripts.arguments import CommandParser
from scripts.benchmarks.bases.shapes import model_class
from scripts.datasets.record import DataError
from scripts.pages.markdown import head, put_between, row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engine.md"
TINY = "2 layers of 64, float32: `test_architectures.py`"
# Shapes (benchmarks/bases/shapes.py) that test_bfloat16.py runs on a GPU, by the model's class.
FULL_SIZE = {
    "LlamaForCausalLM": "llama-1b-shape",
    "T5ForConditionalGeneration": "flan-t5-xl-shape",
}
# What `scripts.benchmark tolerance` found on a GPU.
MEASURED = PAGE.parent / "benchmarks" / "gpu_4_h200.json"


def main(argv: Sequence[str] | None = None) -> int:
    return CommandParser("bases", __doc__).run(argv, lambda: (DataError, OSError), _write)


def _write(args: argparse.Namespace, words: Sequence[str]) -> dict[str, str]:
    put_between(PAGE, "bases", table())
    return {"out": str(PAGE)}


def table() -> str:
    """Return a line for each architecture that the fast decoder runs."""
    names = ("bases", "`architectures` in config.json", "beyond Llama, or T5", "tested at, by")
    return "\n".join([head(*names), *(row(*cells) for cells in _rows())])


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name, each in ARCHITECTURES.items():
        yield each.known_as, f"`{name}`", ", ".join(each.features), _tested(name)
    for name, (known_as, features) in T5_MODELS.items():
        yield known_as, f"`{name}`", ", ".join(features), _tested(name)
    for name, bart in BART_MODELS.items():
        yield bart.known_as, f"`{name}`", ", ".join(bart.features), _tested(name)
    for name, each in T5GEMMA_MODELS.items():
        yield each.known_as, f"`{name}`", ", ".join(each.features), _tested(name)


def _tested(name: str) -> str:
    shape = FULL_SIZE.get(name)
    whole = [] if shape is None else [f"`{shape}`, bfloat16, H100: `test_bfloat16.py`"]
    return "; ".join([TINY, *whole, *_within_tolerance(name)])


def _within_tolerance(name: str) -> Iterator[str]:
    report = json.loads(MEASURED.read_text(encoding="utf-8"))["tolerance"]
    device, most = report["device"].removeprefix("NVIDIA "), report["settings"]["tolerance"]
    for shape, found in report["shapes"].items():
        ratio = found["highest_ratio"]
        if model_class(shape) == name and ratio is not None and ratio <= most:
            layers = found["layers"]
            yield f"{layers} layers of `{shape}`, bfloat16, {device}: `benchmark tolerance`"


if __name__ == "__main__":
    raise SystemExit(main())
