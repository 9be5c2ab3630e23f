"""Add a specialty to the router of a running clinic without the data that it was trained on.

    python -m scripts.add_specialty --label dentistry --questions questions/
    python -m scripts.add_specialty --roll_back

The folder holds .txt files (one question a line) or .jsonl files (field `input`), all for the new
label, in the languages that clients write: 30 at least. About 40 suffice for a topic of its own;
the command says how many more it wants. The other labels keep their part of the router and their
thresholds; the new one gets a threshold of its own. Printed and checked, thresholds applied: how
many of its questions the new label gets (by ten-fold cross-validation; at least 40 %), and what the
others lose on the artefact's stored validation examples (recall: at most 2 points each; wrong
specialists: at most 1 % more). --allow_loss publishes in spite of the others' losses.

The versions go to the folder that --config makes the clinic follow (`router.artefact`; by default
`router` in its live state), or to --out. It may be missing at first: the first version starts from
--artefact. Running router replicas follow each change within seconds, and the command waits until
those of the clinic at --url say that they serve it. Exit 1 if they do not; --offline does not ask.
--roll_back returns to the version before.

With --adapter the specialist is added as well: first the label, then the adapter on every model
replica; if the adapter is refused, the label is rolled back too. --roll_back with --name takes the
adapter out first.

    python -m scripts.add_specialty --label dentistry --questions questions/ \\
        --adapter /srv/new/dentistry --adapter_version 1

With --references the passages of a folder (docs/references.md) go on the running clinic's reference
shelf, for the new label; they are read before anything is published, and are taken off again where
the adapter is refused. --roll_back with --references takes them off.

    python -m scripts.add_specialty --label dentistry --questions questions/ \\
        --adapter /srv/new/dentistry --references guides/ --source "Our guide" --licence "CC BY 4.0"

Without an adapter the new label routes to the base model. An admin key is read from
POLYCLINIC_ADMIN_KEY. The last line of stdout is one JSON object.
"""

import argparse
import datetime
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.__main__ import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from adapters.client import AdminClient, ApiRefused
from deployments.settings import PROJECT_ROOT, Settings, parse_settings
from deployments.startup.config_file import application_of, read_config
from deployments.strict_model import SettingsError
from references.ingest.folder import read_folder
from references.passage import Passage, ReferencesError, checked
from router.artefact import LABEL_THRESHOLDS, ArtefactError
from router.training.extend import LABEL, MIN_RECALL, Extension, extend, read_questions
from router.training.trained import save
from router.versions import is_to_come, publish, resolve, roll_back
from scripts.arguments import CommandParser
from scripts.train_router import MODEL_DIR

POLL_S = 0.5
_AT_ONCE = 500  # passages of one call
WAIT_S = 30.0  # replicas look every `reload_check_s` (5 s by default) and load in about a second


def main(argv: Sequence[str] | None = None) -> int:
    errors = (ArtefactError, ValueError, OSError, ApiRefused, SettingsError, ReferencesError)
    return _parser().run(argv, lambda: errors, _changed, _exit_code)


def _exit_code(report: Mapping[str, Any]) -> int:
    return int(report.get("published") is False or report.get("live") is False)


def _changed(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    args.out = args.out or settings_of(args.config).router_dir
    client = AdminClient(args.url, os.environ.get(KEY_VARIABLE))
    passages = read_references(args)
    report = rolled_back(args, client, passages) if args.roll_back else run(args)
    if "version" in report and not args.offline:
        report |= confirmed(args, client, report["version"])
    if report.get("published") and report.get("live", True):
        report |= add_rest(args, client, passages)
    return report


def settings_of(config: Path) -> Settings:
    """Return the settings of a serve_config.yaml.

    Raises:
        ValueError, SettingsError: the file, or its `args`, cannot be read.
    """
    content, problems = read_config(config)
    if problems:
        raise ValueError(f"--config {config}: {'; '.join(problems)}")
    return parse_settings(application_of(content).get("args") or {})


def _parser() -> CommandParser:
    parser = CommandParser("add_specialty", __doc__)
    add = parser.add_argument
    add("--label", help="lower-case letters, digits and underscores")
    add("--questions", type=Path, help="folder of .txt and .jsonl files, or one file")
    add("--config", type=Path, default=PROJECT_ROOT / "serve_config.yaml", help="of the clinic")
    add("--out", type=Path, help="folder of versions; default: the one that --config follows")
    add("--artefact", type=Path, default=MODEL_DIR, help="where to start the first time")
    add("--allow_loss", action="store_true", help="publish even if old specialties lose")
    add("--offline", action="store_true", help="do not ask a running clinic whether it follows")
    add("--wait", type=float, default=WAIT_S, help="seconds until its routers must have followed")
    add("--roll_back", action="store_true", help="make the version before current again")
    add("--adapter", help="folder, org/name of the hub, or URL of the new specialist")
    add("--adapter_version", default="1", help="of the new specialist")
    add("--references", type=Path, help="folder of passages of the specialty")
    add("--source", help="of passages that name none themselves")
    add("--licence", help="likewise")
    add("--url_of_references", metavar="URL", help="likewise")
    add("--name", help="of the adapter; default: the label")
    add("--url", default=os.environ.get(URL_VARIABLE, DEFAULT_URL), help="of the running clinic")
    add("--date", default=datetime.date.today().isoformat(), help="first part of the version")
    return parser


def confirmed(args: argparse.Namespace, client: AdminClient, version: str) -> dict[str, Any]:
    """Wait until every router replica serves `version`; returns `live`, and says why if not."""
    deadline = time.monotonic() + args.wait
    while True:
        served, problem = served_versions(client)
        if served and set(served) == {version}:
            return {"live": True, "routers": len(served)}
        if time.monotonic() >= deadline or not served:
            break
        time.sleep(POLL_S)
    setting = (
        f"set `router: {{artefact: {args.out.resolve()}}}` under `args` of its serve_config.yaml, "
        "and apply it"
    )
    if not served:
        why = f"no clinic confirms it ({problem}). For one to serve it, {setting}, or start it"
    elif problem:
        why = f"the clinic at {args.url} cannot take it over: {problem}"
    else:
        found = ", ".join(sorted(set(map(str, served))))
        why = (
            f"the clinic at {args.url} serves {found} after {args.wait:g} s: it does not follow "
            f"{args.out}: {setting} (or raise --wait if its `reload_check_s` is long)"
        )
    print(f"add_specialty: {version} is current in {args.out}, but {why}", file=sys.stderr)
    return {"live": False, "why_not_live": why}


def served_versions(client: AdminClient) -> tuple[list[str | None], str | None]:
    """Return the version of each router replica, and the problem that one of them states.

    Without an admin key only the replica that answers is known. No version: nobody answers.
    """
    try:
        ready = client.ready()["router"]
    except (ApiRefused, KeyError) as error:
        return [], str(error)
    try:
        served = [router.get("router_version") for router in client.routers()]
    except ApiRefused:
        served = [ready["version"]]
    return served, ready.get("reload_problem")


def read_references(args: argparse.Namespace) -> list[Passage]:
    """Return the passages of --references, checked. Raises ReferencesError: one is refused."""
    if args.references is None:
        return []
    if args.offline:
        raise ValueError("--references goes to the running clinic: without --offline")
    names = ("source", "licence", "url_of_references")
    defaults = {name.partition("_of_")[0]: getattr(args, name) for name in names}
    defaults = {name: value for name, value in defaults.items() if value}
    if args.label:
        defaults["specialty"] = args.label
    return list(checked(read_folder(args.references, defaults)))


def add_rest(
    args: argparse.Namespace, client: AdminClient, passages: Sequence[Passage]
) -> dict[str, Any]:
    """Put passages on the shelf and the specialist into service, or take back what was done.

    Raises:
        ApiRefused: the passages or the adapter are refused; the label is rolled back.
    """
    report: dict[str, Any] = {}
    shelved: list[str] = []
    try:
        for start in range(0, len(passages), _AT_ONCE):
            some = passages[start : start + _AT_ONCE]
            reply = client.add_passages([asdict(passage) for passage in some])
            shelved += [passage.id for passage in some]
            report = {"passages": len(shelved), "shelf": reply["version"]}
        if args.adapter:
            name = args.name or args.label
            added = client.add(name, args.adapter, args.adapter_version, specialty=args.label)
            report |= {"adapter": name, "revision": added["revision"]}
            report["unconfirmed"] = added["unconfirmed"]
    except ApiRefused:
        roll_back(args.out)
        remove_passages(client, shelved)
        raise
    return report


def remove_passages(client: AdminClient, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), _AT_ONCE):
        client.remove_passages(ids[start : start + _AT_ONCE])


def rolled_back(
    args: argparse.Namespace, client: AdminClient, passages: Sequence[Passage] = ()
) -> dict[str, Any]:
    """Take out the adapter `--name` and the passages, if given, and make the version before
    current again.

    Raises:
        ApiRefused, ArtefactError: nothing was rolled back.
    """
    report: dict[str, Any] = {}
    if passages:
        remove_passages(client, [passage.id for passage in passages])
        report = {"passages": -len(passages)}
    if args.name:
        removed = client.remove(args.name)
        report |= {"removed": args.name, "unconfirmed": removed["unconfirmed"]}
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
    is_new = is_to_come(args.out)
    start = resolve(args.artefact if is_new else args.out)
    extension = extend(start, args.label, questions)
    report = _report(extension)
    if refused := _refusals(extension, args.allow_loss):
        print(f"add_specialty: not published: {'; '.join(refused)}", file=sys.stderr)
        return {**report, "published": False}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(extension.trained, folder, date=args.date, provenance={})
        if is_new:
            publish(start, args.out)  # so that there is a version to roll back to
        version = publish(folder, args.out)
    return {**report, "published": True, "version": version}


def _refusals(extension: Extension, allow_loss: bool) -> list[str]:
    """Return why the label is not published."""
    refused = []
    if extension.recall < MIN_RECALL:
        refused.append(
            f"{extension.label} gets {extension.recall:.2f} of its own questions, at least "
            f"{MIN_RECALL} is wanted: give about {extension.num_needed} more questions, in the "
            "words of those who ask"
        )
    if extension.harms and not allow_loss:
        refused.append(
            f"{'; '.join(extension.harms)}. Give questions that are less like those specialties, "
            "or --allow_loss"
        )
    return refused


def _report(extension: Extension) -> dict[str, Any]:
    before, after = extension.old_before, extension.old_after
    losses = {name: before.recalls[name] - after.recalls[name] for name in before.recalls}
    return {
        "label": extension.label,
        "num_questions": extension.num_questions,
        "threshold": extension.threshold,
        "recall_of_label": round(extension.recall, 4),
        "num_more_questions_needed": extension.num_needed,
        "largest_loss": round(max(losses.values()), 4),
        "losses": {name: round(value, 4) for name, value in extension.losses.items()},
        "others": {
            "num_questions": len(before.labels),
            "wrong_specialist": [before.num_wrong, after.num_wrong],
            "abstained": [before.num_abstained, after.num_abstained],
        },
        "thresholds": extension.trained.manifest["thresholds"],
        "label_thresholds": extension.trained.manifest[LABEL_THRESHOLDS],
    }


def _questions(path: Path) -> list[str]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise ValueError(f"--questions {path}: no such file or folder, or nothing in it")
    return [question for file in files for question in read_questions(file)]


if __name__ == "__main__":
    raise SystemExit(main())
