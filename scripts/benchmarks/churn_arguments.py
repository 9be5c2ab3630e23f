"""Arguments of `python -m scripts.benchmark churn`, without importing what it measures."""

import argparse
from pathlib import Path

PARTS = ("load", "hot_add", "zipf", "cycles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--registered", type=int, default=60, help="adapters in the catalogue")
    parser.add_argument("--slots", type=int, default=8, help="adapters on the device")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", help="default: the q and v projections")
    parser.add_argument("--prompt_tokens", type=int, default=25)
    parser.add_argument("--output_tokens", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200, help="of the Zipf load")
    parser.add_argument("--rate", type=float, default=3.0, help="Zipf requests a second")
    parser.add_argument("--adds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=100, help="updates and roll-backs")
    parser.add_argument("--host_mib", type=int, default=1024)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, help="write the JSON here too")
