"""The two stages of an evaluation: answers of base and adapter, then scores."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adapters.bases.models import sha256_of
from adapters.storage.atomic import write_atomically
from adapters.validation import WEIGHTS_FILE
from scripts.datasets.pairs import DataSet, load_pairs
from scripts.datasets.record import DataError
from scripts.environment import command_line, commit, device_name
from scripts.evaluation.answer_file import SYSTEMS, append, base_rows, read_answers, start
from scripts.evaluation.diagnostic import DiagnosticItem, diagnostic_items
from scripts.evaluation.protocol import protocol_for
from scripts.lora.errors import LoraError

SERVED = ("int8", "int4")  # weights of the engine on a CPU
CATALOG_DIR = Path(__file__).resolve().parent.parent.parent / "adapters"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is evaluated, on which questions."""

    args: argparse.Namespace  # of scripts.evaluate_adapter; `argv` are the words they came from
    argv: Sequence[str]
    folder: Path  # of the adapter
    specialty: str
    data: DataSet
    diagnostic: Sequence[DiagnosticItem]

    @property
    def answers_file(self) -> Path:
        return Path(self.args.out, f"{self.specialty}.answers.jsonl")


def evaluate(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Run the stages asked for; return the summary.

    Raises:
        BaseModelError, CatalogError, DataError, LoraError, OSError: what is missing or does not
            fit.
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
    if args.limit:
        data = replace(data, validation=data.validation[: args.limit])
        diagnostic = diagnostic[: args.limit]
    asked = Evaluation(args, argv, folder, specialty, data, diagnostic)
    report: dict[str, Any] = {"specialty": specialty, "num_questions": len(data.validation)}
    if args.stage != "score":
        report["num_answers"] = _write_answers(asked)
    if args.stage != "answers":
        report |= _write_scores(asked)
    return report


def _write_answers(asked: Evaluation) -> int:
    """Write the answers that the file lacks; return how many were generated now."""
    from scripts.evaluation.answer_model import EvaluationQuestion
    from scripts.lora.chosen_base import chosen_base
    from scripts.lora.device import check_device
    from scripts.lora.saved_adapter import check_base

    args, data = asked.args, asked.data
    args.device = check_device("cpu" if args.dtype in SERVED and not args.device else args.device)
    base = chosen_base(args)
    check_base(asked.folder, base.name)
    protocol = protocol_for([pair.answer for pair in data.train])
    model = _model(args, base, asked.folder)
    questions = [EvaluationQuestion(p.id, p.question, p.answer) for p in data.validation]
    questions += [EvaluationQuestion(item.id, item.question, None) for item in asked.diagnostic]
    header = _header(asked) | {
        "base_model": base.name,
        "protocol": protocol.record(),
        "prompt_formats": model.prompt_formats,
        "extra_memory_mib": round(model.adapter_mib, 2),
    }
    done = _begin(asked, header)
    count = 0
    for system in SYSTEMS:
        todo = [item for item in questions if (system, item.id) not in done]
        with tqdm(total=len(todo), desc=f"{asked.specialty}, {system}") as bar:
            for rows in model.answer(todo, system, protocol, args.batch_size, bar.update):
                append(asked.answers_file, rows)
                count += len(rows)
    return count


def _model(args: argparse.Namespace, base: Any, folder: Path) -> Any:
    """Return the model that answers: transformers', or the engine where it serves bytes.

    Raises:
        LoraError: such weights are asked for on a GPU, or cannot serve this base.
    """
    if args.dtype not in SERVED:
        from scripts.evaluation.answer_model import AnswerModel

        return AnswerModel(base, folder, args.dtype, args.device, _measures(args))
    if args.device != "cpu":
        raise LoraError(f"--dtype {args.dtype} is how a CPU serves: give --device cpu")
    from scripts.evaluation.served_model import ServedModel

    return ServedModel(base, folder, args.dtype, args.batch_size, _measures(args))


def _measures(args: argparse.Namespace) -> dict[str, Any]:
    """Return the measures against repetition that are on."""
    off = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "loop_words": 0}
    return {
        name: getattr(args, name) for name, value in off.items() if getattr(args, name) != value
    }


def _header(asked: Evaluation) -> dict[str, Any]:
    args, data = asked.args, asked.data
    return {
        "schema": 1,
        "specialty": asked.specialty,
        "adapter": asked.folder.resolve().name,
        "adapter_sha256": sha256_of(asked.folder / WEIGHTS_FILE),
        "split": "validation",
        "data_files": data.files,
        "num_questions": len(data.validation),
        "limit": args.limit,
        "num_diagnostic_items": len(asked.diagnostic),
        "commit": commit(),
        "command": command_line("evaluate_adapter", asked.argv),
        "device": device_name(args.device),
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "shared_device": args.shared_device,
        "measures": _measures(args),
    }


def _begin(asked: Evaluation, header: dict[str, Any]) -> set[tuple[str, str]]:
    """Begin or continue the answers file with the rows of --base_answers; return what it has."""
    done = start(asked.answers_file, header)
    if asked.args.base_answers is not None:
        rows = base_rows(asked.args.base_answers, header)
        taken = [row for row in rows if ("base", row.id) not in done]
        append(asked.answers_file, taken)
        done |= {("base", row.id) for row in taken}
    return done


def _write_scores(asked: Evaluation) -> dict[str, Any]:
    from scripts.evaluation.scores import other_answers, score

    args, data = asked.args, asked.data
    answers = read_answers(asked.answers_file)
    if answers.header["data_files"] != data.files:
        raise DataError(
            f"{asked.answers_file}: it was made with other data files than {args.data}'s"
        )
    elsewhere = other_answers(args.data, asked.specialty)
    result = answers.header | score(data, answers, asked.diagnostic, elsewhere, seed=args.seed)
    out = args.out / f"{asked.specialty}.json"
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    write_atomically(out, text.encode())
    summary = {
        name: {"difference": metric.get("difference"), "n": metric["n"]}
        for name, metric in result["metrics"].items()
    }
    return {"metrics": summary, "sha256": hashlib.sha256(text.encode()).hexdigest()}
