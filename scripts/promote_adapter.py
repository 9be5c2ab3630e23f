"""The gate: put an adapter into the catalogue, as active only if it proved better than its base.

    python -m scripts.promote_adapter --adapter runs/adapters/dermatology \\
        --evaluation runs/evaluation/dermatology.json

It must pass the checks that serving makes (format, base, rank, shapes, finite, not without effect).
On the validation questions of its evaluation, which must be of these very weights:

- the likelihood of the references rises by more than --min_gain with 97.5 % confidence: paired
  questions make even a change without any effect significant;
- neither ROUGE-L nor BLEU is significantly worse (an interval wholly below zero).

Then its files are copied below the catalogue, and its entry becomes active. An adapter that fails
is listed as `disabled` with the reason, unless another version of the same name is in service:
that one stays as it is. --from_hub pulls the adapter first, --push_to_hub publishes it when it is
active. The last line of stdout is one JSON object. Exit codes: 0 active, 1 refused, 2 bad input.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.bases.models import sha256_of
from adapters.catalog import load_catalog
from adapters.seed import put_adapter, seed_lock, seed_version
from adapters.validation import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from adapters.versions import SEED_PATH, RegisteredAdapter
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError, readable
from scripts.lora.errors import HubError, expected_errors
from scripts.lora.gate import GATE, figures, read_result, unproven
from scripts.lora.hub import pull, push

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
KEPT_FILES = (WEIGHTS_FILE, CONFIG_FILE, "README.md", "history.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(
        argv, expected_errors, promote, lambda report: int(report["state"] != "active")
    )


def _parser() -> CommandParser:
    parser = CommandParser("promote_adapter", __doc__)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--adapter", type=Path, help="its folder, whose name becomes its name")
    which.add_argument("--from_hub", metavar="ORG/NAME[@REVISION]", help="pull it from the hub")
    add("--evaluation", type=Path, required=True, help="result of scripts.evaluate_adapter")
    add("--catalog", type=Path, default=CATALOG_DIR, help="folder of catalog.yaml")
    add("--min_questions", type=int, default=GATE, help="fewer prove nothing")
    add("--min_gain", type=float, default=0.01, help="in likelihood, nats for each token")
    add("--max_bytes", type=int, default=1_200_000, help="of the weights, which go into git")
    add("--push_to_hub", metavar="ORG/NAME", help="publish it when it is active")
    add("--public", action="store_true", help="with --push_to_hub: not private")
    return parser


def promote(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Decide, copy, list; return what became of it, and print each reason of a refusal.

    Raises:
        CatalogError, DataError, OSError: nothing was changed.
        HubError: nothing was changed, or it says that the adapter is active and not uploaded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.adapter or pull(args.from_hub, Path(scratch))
        report = _promote(args, folder.resolve())
    for problem in report["failed"]:
        print(f"promote_adapter: {report['name']}: {problem}", file=sys.stderr)
    return report


def _promote(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    result = read_result(args.evaluation)
    config = _read_config(folder)
    with seed_lock(args.catalog):
        listed = load_catalog(args.catalog).adapter(folder.name)
        adapter = _adapter(folder, config, result, listed)
        version = adapter.stable
        failed = failures(folder, adapter, result, args)
        replaced = listed is not None and listed.stable.sha256 != version.sha256
        report = {"name": adapter.name, "failed": failed, "sha256": version.sha256}
        if failed:
            kept = replaced and listed is not None and listed.state == "active"
            if not kept:
                changes = {"state": "disabled", "reason": "; ".join(failed)}
                put_adapter(args.catalog, adapter.model_copy(update=changes))
            return report | {"state": "refused" if kept else "disabled"}
        with _copied(folder, args.catalog / version.path.removeprefix(SEED_PATH)):
            put_adapter(args.catalog, adapter)
    if args.push_to_hub:
        try:
            report["hub"] = push(folder, args.push_to_hub, private=not args.public)
        except HubError as error:
            raise HubError(f"{adapter.name} is active in the catalogue, but {error}") from None
    return report | {"state": "active", "version": version.version}


def failures(
    folder: Path, adapter: RegisteredAdapter, result: dict[str, Any], limits: argparse.Namespace
) -> list[str]:
    """Return every condition that is not met, with its figures; none: the adapter may serve.

    Args:
        limits: has min_questions, min_gain (nats a token) and max_bytes.
    """
    failed = check_adapter(folder, adapter.base_model)
    size = (folder / WEIGHTS_FILE).stat().st_size
    if size > limits.max_bytes:
        failed.append(f"{WEIGHTS_FILE} has {size} bytes; at most {limits.max_bytes} are allowed")
    expected = {"adapter_sha256": adapter.stable.sha256, "base_model": adapter.base_model}
    for key, wanted in expected.items():
        if result[key] != wanted:
            failed.append(
                f"the evaluation is of {key} {result[key]}, and the adapter's is {wanted}"
            )
    return failed + unproven(result, limits.min_questions, limits.min_gain)


def _read_config(folder: Path) -> dict[str, Any]:
    with readable(f"{folder / CONFIG_FILE}: cannot be read as an adapter's config"):
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        known = {"rank": int(config["r"]), "base_model": str(config["base_model_name_or_path"])}
    return known


def _adapter(
    folder: Path, config: dict[str, Any], result: dict[str, Any], known: RegisteredAdapter | None
) -> RegisteredAdapter:
    """Return the catalogue's adapter, active; the version counts up when the weights change."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise DataError(f"{weights}: no such file")
    number = "1"
    if known is not None:
        changed = known.stable.sha256 != sha256_of(weights) and known.version.isdecimal()
        number = str(int(known.version) + 1) if changed else known.version
    try:
        version = seed_version(
            folder,
            f"weights/{folder.name}",
            version=number,
            rank=config["rank"],
            languages=known.stable.languages if known else ["en"],
            evaluation=figures(result),
        )
        return RegisteredAdapter(
            name=folder.name,
            specialty=result["specialty"],
            base_model=config["base_model"],
            state="active",
            version=number,
            versions=[version],
        )
    except ValueError as error:
        raise DataError(f"--adapter {folder}: {error}") from None


@contextlib.contextmanager
def _copied(folder: Path, target: Path) -> Iterator[None]:
    """Copy the adapter's files, swapped in whole; an error in the block undoes it."""
    if folder == target.resolve():
        yield
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh, replaced = Path(scratch, "fresh"), Path(scratch, "replaced")
        fresh.mkdir()
        for name in KEPT_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, fresh / name)
        if target.exists():
            target.rename(replaced)
        fresh.rename(target)
        try:
            yield
        except BaseException:
            target.rename(fresh)
            if replaced.exists():
                replaced.rename(target)
            raise


if __name__ == "__main__":
    raise SystemExit(main())
