"""Add a specialty to a trained router without the data that it was trained on.

    python -m scripts.add_specialty --label dentistry --questions questions/ --out state/router
    python -m scripts.add_specialty --out state/router --roll_back

The folder holds .txt files (one question a line) or .jsonl files (field `input`), all for the new
label: at least 30 questions, better some hundreds, in the languages that clients write. A quarter
of them is held out and scored. The label is refused if an old specialty loses more than 2 points of
recall on the artefact's stored validation examples (--allow_loss publishes it nevertheless).

--out is a folder of versions: set `router.artefact` in serve_config.yaml to it once, and running
router replicas follow each change within seconds; --roll_back returns to the version before. The
first time it starts from --artefact, later from its current version.

With --adapter the specialist is added as well, on the running clinic at --url: first the label,
then the adapter on every model replica; if the adapter is refused, the label is rolled back too.
--roll_back with --name takes the adapter out first.

    python -m scripts.add_specialty --label dentistry --questions questions/ --out state/router \
        --adapter /srv/new/dentistry --adapter_version 1

Without an adapter the new label routes to the base model. An admin key is read from
POLYCLINIC_ADMIN_KEY. The last line of stdout is one JSON object.
"""

import argparse
import datetime
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.__main__ import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from adapters.client import AdminClient, ApiRefused
from router.artefact import ArtefactError
from router.training.extend import LABEL, Extension, extend, read_questions
from router.training.trained import save
from router.versions import CURRENT, publish, resolve, roll_back
from scripts.arguments import CommandParser
from scripts.train_router import MODEL_DIR


def main(argv: Sequence[str] | None = None) -> int:
    errors = (ArtefactError, ValueError, OSError, ApiRefused)
    return _parser().run(
        argv, lambda: errors, _changed, lambda report: int(not report.get("published", True))
    )


def _changed(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    client = AdminClient(args.url, os.environ.get(KEY_VARIABLE))
    report = rolled_back(args, client) if args.roll_back else run(args)
    if args.adapter and report.get("published"):
        report |= add_adapter(args, client)
    return report


def _parser() -> CommandParser:
    parser = CommandParser("add_specialty", __doc__)
    add = parser.add_argument
    add("--label", help="lower-case letters, digits and underscores")
    add("--questions", type=Path, help="folder of .txt and .jsonl files, or one file")
    add("--artefact", type=Path, default=MODEL_DIR, help="where to start the first time")
    add("--out", type=Path, required=True, help="folder of versions")
    add("--allow_loss", action="store_true", help="publish even if an old specialty loses")
    add("--roll_back", action="store_true", help="make the version before current again")
    add("--adapter", help="folder, org/name of the hub, or URL of the new specialist")
    add("--adapter_version", default="1", help="of the new specialist")
    add("--name", help="of the adapter; default: the label")
    add("--url", default=os.environ.get(URL_VARIABLE, DEFAULT_URL), help="of the running clinic")
    add("--date", default=datetime.date.today().isoformat(), help="first part of the version")
    return parser


def add_adapter(args: argparse.Namespace, client: AdminClient) -> dict[str, Any]:
    """Put the specialist into service, or roll the label back when it is refused.

    Raises:
        ApiRefused: the adapter is refused; the label is rolled back.
    """
    name = args.name or args.label
    try:
        added = client.add(name, args.adapter, args.adapter_version, specialty=args.label)
    except ApiRefused:
        roll_back(args.out)
        raise
    return {"adapter": name, "revision": added["revision"], "unconfirmed": added["unconfirmed"]}


def rolled_back(args: argparse.Namespace, client: AdminClient) -> dict[str, Any]:
    """Take out the adapter `--name`, if given, and make the version before current again.

    Raises:
        ApiRefused, ArtefactError: nothing was rolled back.
    """
    report: dict[str, Any] = {}
    if args.name:
        removed = client.remove(args.name)
        report = {"removed": args.name, "unconfirmed": removed["unconfirmed"]}
    return {**report, "version": roll_back(args.out)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, check, publish; returns the report.

    Raises:
        ArtefactError, ValueError: an input is wrong; nothing was published.
    """
    if not args.label or not args.questions:
        raise ValueError("--label and --questions are needed (or --roll_back)")
    if not re.fullmatch(LABEL, args.label):
        raise ValueError(
            f"--label {args.label!r}: expected lower-case letters, digits and underscores, a "
            "letter first, 2 to 50 characters"
        )
    questions = _questions(args.questions)
    is_new = not (args.out / CURRENT).is_file()
    start = resolve(args.artefact if is_new else args.out)
    extension = extend(start, args.label, questions)
    report = _report(args.label, extension)
    if extension.losses and not args.allow_loss:
        lost = ", ".join(f"{name} {value:.3f}" for name, value in extension.losses.items())
        print(
            f"add_specialty: not published: recall lost by {lost}; at most 0.02 is allowed. Give "
            "questions that are less like those specialties, or --allow_loss",
            file=sys.stderr,
        )
        return {**report, "published": False}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(extension.trained, folder, date=args.date, provenance={})
        if is_new:
            publish(start, args.out)  # so that there is a version to roll back to
        version = publish(folder, args.out)
    return {**report, "published": True, "version": version}


def _report(label: str, extension: Extension) -> dict[str, Any]:
    manifest, before, after = extension.trained.manifest, extension.before, extension.after
    return {
        "label": label,
        "num_questions": manifest["added"][label],
        "recall_of_label": round(after[label], 4),
        "largest_loss": round(max(before[name] - after[name] for name in before), 4),
        "losses": {name: round(value, 4) for name, value in extension.losses.items()},
        "thresholds": manifest["thresholds"],
    }


def _questions(path: Path) -> list[str]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise ValueError(f"--questions {path}: no such file or folder, or nothing in it")
    return [question for file in files for question in read_questions(file)]


if __name__ == "__main__":
    raise SystemExit(main())
