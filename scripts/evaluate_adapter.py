"""Compare base and adapter on questions that the adapter was not trained on.

    python -m scripts.evaluate_adapter --data runs/data --adapter runs/adapters/dermatology

Two stages, which may run on different machines. `answers` needs the models: it writes the answers
and likelihoods of base and adapter to OUT/<specialty>.answers.jsonl, and a second call continues
where it stopped.
`score` needs no model: it compares them with the references, adds the dummies (nearest neighbour,
random answer, echo) and writes OUT/<specialty>.json. The protocol is in docs/evaluation.md: the
validation split, the serving prompt, greedy, 256 new tokens, full references. The last line of
stdout is one JSON object, without any text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.arguments import CommandParser, above_zero, at_least, positive
from scripts.lora.errors import expected_errors


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, expected_errors, _evaluate)


def _evaluate(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    from scripts.evaluation.evaluate import evaluate

    return evaluate(args, argv)


def _parser() -> CommandParser:
    parser = CommandParser("evaluate_adapter", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--adapter", required=True, help="folder of the adapter, or its name in the catalogue")
    add("--specialty", help="default: the adapter folder's name")
    add("--out", type=Path, default=Path("runs/evaluation"), help="folder of the results")
    add("--stage", choices=["answers", "score", "both"], default="both", help="see above")
    parser.add_base_model()
    add("--base_answers", type=Path, help="answers file of another adapter: take the base's rows")
    add("--limit", type=positive, help="only the first N questions, for a quick look")
    add("--batch_size", type=positive, default=16, help="questions answered together")
    dtypes = ["float32", "bfloat16", "int8", "int4"]
    add("--dtype", choices=dtypes, default="float32", help="of both models; int8, int4: as served")
    parser.add_device("to answer on")
    add("--shared_device", action="store_true", help="other work runs on it: report no times")
    add("--repetition_penalty", type=above_zero, default=1.0, help="as transformers'; 1: none")
    add("--no_repeat_ngram_size", type=at_least(0), default=0, help="as transformers'; 0: off")
    add(
        "--loop_words",
        type=at_least(0),
        default=0,
        help="cut an answer before it says the same "
        "N words a third time, as serving does; 0: never",
    )
    add("--seed", type=int, default=0, help="of the random answers and of the bootstrap")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
