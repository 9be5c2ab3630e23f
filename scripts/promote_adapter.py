"""The gate: puts an adapter into the catalogue, as active only if it proved better than its base.

    python -m scripts.promote_adapter --adapter runs/adapters/dermatology \\
        --evaluation runs/evaluation/dermatology.json

It must pass the checks that serving makes (format, base, rank, shapes, finite, not silent). On the
validation questions of its evaluation, which must be of these very weights:

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
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adapters.base_models import sha256_of
from adapters.catalog import CatalogError, load_catalog
from adapters.seed import put_adapter, seed_lock, seed_version
from adapters.validation import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from adapters.versions import SEED_PATH, RegisteredAdapter
from scripts.arguments import HelpFormatter
from scripts.datasets.record import DataError
from scripts.lora.hub import HubError, pull, push

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
KEPT_FILES = (WEIGHTS_FILE, CONFIG_FILE, "README.md", "history.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = promote(args)
    except (CatalogError, DataError, HubError, OSError) as error:
        print(f"promote_adapter: {error}", file=sys.stderr)
        return 2
    for problem in report["failed"]:
        print(f"promote_adapter: {report['name']}: {problem}", file=sys.stderr)
    print(json.dumps(report))
    return 0 if report["state"] == "active" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.promote_adapter",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--adapter", type=Path, help="its folder; the folder's name becomes its name"
    )
    which.add_argument("--from_hub", metavar="ORG/NAME[@REVISION]", help="pull it from the hub")
    add("--evaluation", type=Path, required=True, help="result of scripts.evaluate_adapter")
    add("--catalog", type=Path, default=CATALOG_DIR, help="folder of catalog.yaml")
    add("--min_questions", type=int, default=30, help="fewer prove nothing")
    add("--min_gain", type=float, default=0.01, help="in likelihood, nats for each token")
    add("--max_bytes", type=int, default=1_200_000, help="of the weights, which go into git")
    add("--push_to_hub", metavar="ORG/NAME", help="publish it when it is active")
    add("--public", action="store_true", help="with --push_to_hub: not private")
    return parser


def promote(args: argparse.Namespace) -> dict[str, Any]:
    """Decide, copy, list; returns what became of it.

    Raises:
        CatalogError, DataError, OSError: nothing was changed.
        HubError: nothing was changed, or it says that the adapter is active and not uploaded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.adapter or pull(args.from_hub, Path(scratch))
        return _promote(args, folder.resolve())


def _promote(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    result = _read_result(args.evaluation)
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
    """Every condition that is not met, with its figures; empty: the adapter may serve.

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
    if result["split"] != "validation":
        failed.append(f"the evaluation is on the split {result['split']!r}; validation is needed")
    if (num := result["num_questions"]) < limits.min_questions:
        failed.append(f"{num} validation questions; {limits.min_questions} are needed")
    low, high = result["metrics"]["nll"]["difference"]["interval"]
    if not high < -limits.min_gain:
        failed.append(
            "the likelihood of the references does not rise: the negative log-likelihood changes "
            f"by [{low:.3f}, {high:.3f}] nats a token, and the interval must be below "
            f"{-limits.min_gain}"
        )
    for metric, shown in (("rouge_l", "ROUGE-L"), ("bleu", "BLEU")):
        low, high = result["metrics"][metric]["difference"]["interval"]
        if high < 0:
            failed.append(f"{shown} is worse: it changes by [{low:.2f}, {high:.2f}]")
    if result["answers_changed"] == 0:
        failed.append("every answer is the base's own")
    return failed


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        for metric in ("nll", "rouge_l", "bleu"):
            low, high = result["metrics"][metric]["difference"]["interval"]
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"the interval of {metric} is [{low}, {high}]")
        _figures(result)
        result["adapter_sha256"], result["split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--evaluation {file}: no result of scripts.evaluate_adapter "
            f"({type(error).__name__}: {error})"
        ) from None
    return dict(result)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return {"rank": int(config["r"]), "base_model": str(config["base_model_name_or_path"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / CONFIG_FILE}: cannot be read as an adapter's config "
            f"({type(error).__name__}: {error})"
        ) from None


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
            evaluation=_figures(result),
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


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """What the catalogue keeps of an evaluation."""
    metrics = result["metrics"]
    figures: dict[str, Any] = {"split": "validation", "num_questions": result["num_questions"]}
    for name, digits in (("nll", 4), ("rouge_l", 2), ("bleu", 2)):
        for system in ("base", "adapter"):
            figures[f"{name}_{system}"] = round(metrics[name]["systems"][system]["value"], digits)
        interval = metrics[name]["difference"]["interval"]
        figures[f"{name}_difference_interval"] = [round(bound, digits) for bound in interval]
    return figures | {
        "answers_changed": result["answers_changed"],
        "commit": result["commit"],
    }


@contextlib.contextmanager
def _copied(folder: Path, target: Path) -> Iterator[None]:
    """The adapter's files and nothing else, swapped in whole; an error in the block undoes it."""
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
