"""Base against adapter on questions that the adapter was not trained on.

    python -m scripts.evaluate_adapter --data runs/data --adapter runs/adapters/dermatology

Two stages, which may run on different machines. `answers` needs the models: it writes the answers
and likelihoods of base and adapter to OUT/<specialty>.answers.jsonl, and goes on where it stopped.
`score` needs no model: it compares them with the references, adds the dummies (nearest neighbour,
random answer, echo) and writes OUT/<specialty>.json. The protocol is in docs/evaluation.md: the
validation split, the serving prompt, greedy, 256 new tokens, full references. The last line of
stdout is one JSON object, without any text.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from adapters.base_models import BaseModelError, resolve_base_model, sha256_of
from adapters.catalog import CatalogError, load_catalog
from adapters.validation import WEIGHTS_FILE
from scripts.arguments import HelpFormatter, positive
from scripts.datasets.record import DataError, DataSet, load_pairs
from scripts.evaluation.answers import (
    SYSTEMS,
    AnswerModel,
    Item,
    append,
    base_rows,
    device_name,
    protocol_for,
    read_answers,
    start,
)
from scripts.evaluation.diagnostic import DiagnosticItem, diagnostic_items
from scripts.lora.adapter_on_base import AdapterError, check_base
from scripts.lora.card import command_line, commit

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    try:
        report = evaluate(args, given)
    except (AdapterError, BaseModelError, CatalogError, DataError, OSError) as error:
        print(f"evaluate_adapter: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate_adapter",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--adapter", required=True, help="folder of the adapter, or its name in the catalogue")
    add("--specialty", help="default: the adapter folder's name")
    add("--out", type=Path, default=Path("runs/evaluation"), help="folder of the results")
    add("--stage", choices=["answers", "score", "both"], default="both", help="see above")
    add(
        "--base_model",
        default="smollm2-135m-instruct",
        help="directory, built-in name or hub id",
    )
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    add("--base_answers", type=Path, help="answers file of another adapter: take the base's rows")
    add("--batch_size", type=positive, default=16, help="questions answered together")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both models")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", "cuda"], default=default_device, help="to answer on")
    add("--shared_device", action="store_true", help="other work runs on it: report no times")
    add("--seed", type=int, default=0, help="of the random answers and of the bootstrap")
    return parser


def evaluate(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The stages asked for; returns the summary.

    Raises:
        AdapterError, BaseModelError, CatalogError, DataError, OSError: what was missing or does
            not fit.
    """
    named = Path(args.adapter)
    folder = named if named.is_dir() else CATALOG_DIR / "weights" / args.adapter
    if not (folder / WEIGHTS_FILE).is_file():
        raise DataError(
            f"--adapter {args.adapter}: {folder / WEIGHTS_FILE} does not exist: give an adapter's "
            "folder, or a name of the catalogue"
        )
    specialty = args.specialty or folder.resolve().name
    data = load_pairs(args.data, specialty)
    if not data.validation:
        raise DataError(f"{args.data}: no validation pair of {specialty} to evaluate on")
    diagnostic = diagnostic_items(args.data, specialty)
    answers_file = args.out / f"{specialty}.answers.jsonl"
    report: dict[str, Any] = {"specialty": specialty, "num_questions": len(data.validation)}
    if args.stage != "score":
        report["num_answers"] = _write_answers(
            args, argv, folder, specialty, data, diagnostic, answers_file
        )
    if args.stage != "answers":
        report |= _write_scores(args, data, diagnostic, answers_file)
    return report


def _write_answers(
    args: argparse.Namespace,
    argv: Sequence[str],
    folder: Path,
    specialty: str,
    data: DataSet,
    diagnostic: Sequence[DiagnosticItem],
    file: Path,
) -> int:
    """Returns how many answers were generated now."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: no NVIDIA GPU was found; leave it out, or give cpu")
    base = resolve_base_model(args.base_model)
    base_name = args.base_model_name or args.base_model
    check_base(folder, base_name)
    entry = load_catalog(CATALOG_DIR).base_model(base_name, family=base.family)
    protocol = protocol_for([pair.answer for pair in data.train])
    model = AnswerModel(base, entry, folder, args.dtype, args.device)
    items = [Item(pair.id, pair.question, pair.answer) for pair in data.validation]
    items += [Item(item.id, item.question, None) for item in diagnostic]
    header = {
        "schema": 1,
        "specialty": specialty,
        "adapter": folder.resolve().name,
        "adapter_sha256": sha256_of(folder / WEIGHTS_FILE),
        "base_model": base_name,
        "split": "validation",
        "data_files": data.files,
        "num_questions": len(data.validation),
        "num_diagnostic_items": len(diagnostic),
        "protocol": protocol.record(),
        "commit": commit(),
        "command": command_line("evaluate_adapter", argv),
        "device": device_name(args.device),
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "shared_device": args.shared_device,
        "extra_memory_mib": round(model.adapter_mib, 2),
    }
    done = start(file, header)
    if args.base_answers is not None:
        taken = [
            row for row in base_rows(args.base_answers, header) if ("base", row.id) not in done
        ]
        append(file, taken)
        done |= {("base", row.id) for row in taken}
    count = 0
    for system in SYSTEMS:
        todo = [item for item in items if (system, item.id) not in done]
        with tqdm(total=len(todo), desc=f"{specialty}, {system}") as bar:
            for rows in model.answer(todo, system, protocol, args.batch_size):
                append(file, rows)
                bar.update(len(rows))
                count += len(rows)
    return count


def _write_scores(
    args: argparse.Namespace, data: DataSet, diagnostic: Sequence[DiagnosticItem], file: Path
) -> dict[str, Any]:
    from scripts.evaluation.scores import other_answers, score

    answers = read_answers(file)
    if answers.header["data_files"] != data.files:
        raise DataError(f"{file}: it was made with other data files than {args.data}'s")
    elsewhere = other_answers(args.data, answers.header["specialty"])
    result = answers.header | score(data, answers, diagnostic, elsewhere, seed=args.seed)
    out = args.out / f"{answers.header['specialty']}.json"
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    fresh = out.with_suffix(".json.part")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, out)
    summary = {
        name: {"difference": metric.get("difference"), "n": metric["n"]}
        for name, metric in result["metrics"].items()
    }
    return {"metrics": summary, "sha256": hashlib.sha256(text.encode()).hexdigest()}


if __name__ == "__main__":
    raise SystemExit(main())
