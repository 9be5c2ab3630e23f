"""Train the router from a data folder and from our own written questions.

    python -m scripts.train_router --data DATA_FOLDER

The folder holds JSON lines with `input`, `specialty`, `lang`, `split`, `source`; all `*.jsonl`
files are read. Training uses the split `train` and 85 % of the written questions; `validation` and
the other 15 % calibrate the probabilities and pick the thresholds. The development set
(router/data/written_dev.jsonl) is never read here. The last line of stdout is one JSON object.
"""

import argparse
import datetime
import hashlib
import json
import shlex
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from router.training import Question, Recipe, save, train
from scripts.attributions import ATTRIBUTIONS, origin
from scripts.training_data import DataError, read_jsonl

ROUTER_DIR = Path(__file__).resolve().parent.parent / "router"
WRITTEN = ROUTER_DIR / "data" / "written_train.jsonl"
HELD_OUT_PERCENT = 15  # of the written questions
WRITTEN_ATTRIBUTION = "written questions (router/data), Apache-2.0: this project"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    try:
        report = run(args, given)
    except (DataError, ValueError) as error:
        print(f"train_router: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_router",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of .jsonl files")
    add("--written", type=Path, default=WRITTEN, help="our own training questions")
    add("--out", type=Path, default=ROUTER_DIR / "model", help="folder of the artefact")
    add("--date", default=datetime.date.today().isoformat(), help="first part of the version")
    add("--seed", type=int, default=0)
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Everything from the folder to the saved artefact; returns the report."""
    training, calibration, files = load_questions(args.data, args.written)
    print(f"{len(training)} training and {len(calibration)} calibration questions", file=sys.stderr)
    trained = train(training, calibration, Recipe(seed=args.seed))
    words = [Path(word).name if word.startswith(("/", "..")) else word for word in argv]
    provenance = {
        "data": files,
        "attribution": _attributions(training + calibration),
        "command": shlex.join(["python", "-m", "scripts.train_router", *words]),
    }
    version = save(trained, args.out, date=args.date, provenance=provenance)
    return {
        "version": version,
        "num_training": len(training),
        "num_calibration": len(calibration),
        "num_features": trained.manifest["num_features"],
        "thresholds": trained.manifest["thresholds"],
        "held_out": trained.manifest["held_out"],
        "bytes": sum(path.stat().st_size for path in args.out.iterdir()),
    }


def _attributions(questions: Sequence[Question]) -> list[str]:
    sources = sorted({origin(q.source) for q in questions} - {"written"})
    return [ATTRIBUTIONS.get(s, f"{s}: see its own licence") for s in sources] + [
        WRITTEN_ATTRIBUTION
    ]


def load_questions(
    data: Path, written: Path
) -> tuple[list[Question], list[Question], dict[str, Any]]:
    """(training, calibration, file name -> its sha256 and number of questions).

    Raises:
        DataError: the folder is missing or empty, or a line is malformed (names it).
    """
    if not data.is_dir() or not any(data.glob("*.jsonl")):
        raise DataError(f"--data {data}: no folder with .jsonl files")
    if not written.is_file():
        raise DataError(f"--written {written}: no such file")
    training: list[Question] = []
    calibration: list[Question] = []
    files: dict[str, Any] = {}
    for path in tqdm([*sorted(data.glob("*.jsonl")), written], "reading"):
        count = 0
        for number, item in read_jsonl(path):
            question = _question(item, path, number, is_written=path == written)
            count += 1
            if path == written:
                held_out = zlib.crc32(question.text.encode()) % 100 < HELD_OUT_PERCENT
            else:
                held_out = _is_validation(item, f"{path.name}, line {number}")
            (calibration if held_out else training).append(question)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files[path.name] = {"sha256": digest, "num_questions": count}
    return training, calibration, files


def _is_validation(item: dict[str, Any], where: str) -> bool:
    """Refuses any other split: a test set must not be trained on."""
    split = item.get("split")
    if split not in ("train", "validation"):
        raise DataError(f"{where}: split {split!r}; expected train or validation")
    return bool(split == "validation")


def _question(item: dict[str, Any], path: Path, number: int, *, is_written: bool) -> Question:
    for field in ("input", "specialty", "lang"):
        if not isinstance(item.get(field), str) or not item[field].strip():
            raise DataError(f"{path.name}, line {number}: '{field}' must be a text")
    source = "written" if is_written else str(item.get("source", path.stem)).split("/")[0]
    return Question(item["input"], item["specialty"], item["lang"], source)


if __name__ == "__main__":
    raise SystemExit(main())
