"""Arguments of `python -m scripts.benchmark hot_add`, without importing what it measures."""

import argparse
from pathlib import Path

from scripts.arguments import above_zero, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="a folder, a name, or flan-t5-xl-shape / llama-1b-shape with random weights",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--replicas", type=positive, default=2, help="of the model")
    parser.add_argument("--adapters", type=_several, default=6, help="in the catalogue, from 2")
    parser.add_argument("--slots", type=positive, default=32, help="adapters on a replica's device")
    parser.add_argument("--rank", type=positive, help="default: what makes files of --megabytes")
    parser.add_argument("--megabytes", type=above_zero, default=8.0, help="of an adapter's weights")
    parser.add_argument("--targets", nargs="+", help="default: the q and v projections")
    parser.add_argument("--adds", type=positive, default=8, help="new versions of one adapter")
    parser.add_argument("--changes", type=positive, default=4, help="rounds of the other calls")
    parser.add_argument("--streams", type=positive, default=4, help="of the other adapters")
    parser.add_argument("--output_tokens", type=positive, default=200, help="of each stream")
    parser.add_argument("--rows", type=positive, default=8, help="answers of a replica together")
    parser.add_argument("--cpu_threads", type=positive, help="of a replica; default: its share")
    parser.add_argument("--quiet_s", type=above_zero, default=1.0, help="a quiet window, at least")
    parser.add_argument("--warm_up_s", type=above_zero, default=5.0, help="of the streams")
    parser.add_argument("--ready_timeout_s", type=above_zero, default=400.0)
    parser.add_argument("--out", type=Path, help="write the JSON here too")


def _several(text: str) -> int:
    """One adapter gets new versions, and the streams ask the others."""
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number from 2 is expected")
    return number
