"""From data to promoted adapters and a report: the other scripts, one after the other.

    python -m scripts.make_specialists --data DATA_FOLDER

Stages: prepare (split by disease), train (one adapter on all specialties together, then one for
each that starts from it), answers (of base and adapter to the validation questions), score, promote
(into the catalogue, through the gate), report. What is there already, made by the same command
from the same data, is not made again: after an interrupt the same call goes on. Each step's output
is in WORK/logs. The last line of stdout is one JSON object.

On a machine without a GPU the whole takes about a day of two cores: train the one you need with
scripts/train_lora_adapter.py, or name few --specialties.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from adapters.base_models import BaseModelError, Family, resolve_base_model, sha256_of
from adapters.validation import WEIGHTS_FILE
from scripts.arguments import HelpFormatter, positive
from scripts.datasets.record import DataError
from scripts.evaluation.answers import read_answers
from scripts.lora.trainer import last_checkpoint
from scripts.train_lora_adapter import CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "train", "answers", "score", "promote", "report")
TWELVE = (
    *("dermatology", "cardiology", "neurology", "oncology", "gastroenterology", "pulmonology"),
    *("endocrinology", "nephrology_urology", "infectious_disease", "ophthalmology"),
    *("hematology", "rheumatology_orthopedics"),
)
JOINT = "all_specialties"
# What won on the validation splits; docs/decisions.md tells what else was tried.
LORA: dict[Family, list[str]] = {
    "causal": "--target_modules v_proj o_proj up_proj down_proj --rank 3 --alpha 12".split(),
    "seq2seq": "--target_modules q v --rank 8 --alpha 32".split(),
}
FIRST = "--batch_size 16 --grad_accum 1 --epochs 3 --learning_rate 2e-3".split()
THEN = "--batch_size 8 --grad_accum 1 --epochs 2 --learning_rate 5e-4".split()


class StepError(Exception):
    """A script failed; the text names it, its log and its last words."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a script."""

    name: str
    script: str
    arguments: tuple[str, ...]
    allowed: tuple[int, ...] = (0,)  # exit codes that are no failure


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = Pipeline(args).run()
    except (BaseModelError, DataError, StepError, OSError) as error:
        print(f"make_specialists: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_specialists: interrupted; the same call goes on", file=sys.stderr)
        return 130
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.make_specialists",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    gpu = torch.cuda.is_available()
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of <specialty>.jsonl files")
    add("--specialties", nargs="+", default=list(TWELVE), help="default: the twelve")
    add("--licence", help="of the data, where its sources are not those that this project knows")
    add("--work", type=Path, default=Path("runs/specialists"), help="folder of all intermediates")
    add("--catalog", type=Path, default=ROOT / "adapters", help="folder of catalog.yaml")
    add("--report", type=Path, default=ROOT / "docs" / "specialists", help="without its ending")
    add(
        "--base_model",
        default="smollm2-135m-instruct",
        help="directory, built-in name or hub id",
    )
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    add("--suffix", default="", help="of the adapters' names, for a second base model: -t5")
    add("--dtype", default="bfloat16" if gpu else "float32", help="of the base while training")
    size = 128 if gpu else 16
    add("--answer_batch_size", type=positive, default=size, help="questions answered together")
    add("--jobs", type=positive, default=4 if gpu else 1, help="adapters trained at the same time")
    add("--first", choices=STAGES, default=STAGES[0], help="stage to begin with")
    add("--last", choices=STAGES, default=STAGES[-1], help="stage to end with")
    return parser


class Pipeline:
    """The stages over one work folder: data/, adapters/, evaluation/, logs/."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._work: Path = args.work.resolve()
        self._base = ["--base_model", args.base_model]
        if args.base_model_name:
            self._base += ["--base_model_name", args.base_model_name]

    def run(self) -> dict[str, Any]:
        """All stages asked for.

        Raises:
            BaseModelError, StepError, OSError: what is done stays.
        """
        first, last = STAGES.index(self._args.first), STAGES.index(self._args.last)
        if first > last:
            raise DataError(f"--first {self._args.first} comes after --last {self._args.last}")
        (self._work / "logs").mkdir(parents=True, exist_ok=True)
        done: dict[str, Any] = {}
        for stage in STAGES[first : last + 1]:
            done[stage] = getattr(self, f"_{stage}")()
        return done

    def _prepare(self) -> Any:
        data = self._args.data.resolve()
        if not data.is_dir():
            raise DataError(f"--data {data}: no such folder")
        out = self._work / "data"
        licence = f",licence={self._args.licence}" if self._args.licence else ""
        inputs = {path.name: sha256_of(path) for path in sorted(data.glob("*.jsonl"))}
        step = Step(
            "prepare",
            "prepare_medical_dataset",
            ("--source", f"jsonl:{data}{licence}", "--out", str(out), "--overwrite"),
        )
        return self._made_once(step, out / "manifest.json", inputs)

    def _train(self) -> Any:
        specialties = self._args.specialties
        folder = self._work / "adapters"
        files = {
            name: sha256_of(path)
            for name in specialties
            if (path := self._work / "data" / f"{name}.jsonl").is_file()
        }
        missing = [name for name in specialties if name not in files]
        if missing:
            raise DataError(
                f"--specialties {' '.join(missing)}: not in {self._work / 'data'}, which has "
                + ", ".join(sorted(p.stem for p in (self._work / "data").glob("*.jsonl")))
            )
        family = resolve_base_model(self._args.base_model).family
        common = [
            *("--data", str(self._work / "data"), *self._base, "--dtype", self._args.dtype),
            *LORA[family],
        ]
        joint = folder / JOINT
        reports = [self._train_one(JOINT, specialties, joint, [*common, *FIRST], files)]
        start = {"init": sha256_of(joint / WEIGHTS_FILE)}
        with ThreadPoolExecutor(self._args.jobs) as pool:
            calls = [
                pool.submit(
                    self._train_one,
                    name,
                    [name],
                    self._folder(name),
                    [*common, *THEN, "--init_adapter", str(joint)],
                    {name: files[name]} | start,
                )
                for name in sorted(specialties, key=self._size, reverse=True)
            ]
            reports += [call.result() for call in tqdm(calls, "training")]
        return {report["specialty"]: report["validation_loss"] for report in reports[1:]}

    def _train_one(
        self,
        name: str,
        specialties: Sequence[str],
        out: Path,
        arguments: Sequence[str],
        inputs: dict[str, str],
    ) -> Any:
        call = [*arguments, "--specialty", *specialties, "--out", str(out)]
        step = Step(f"train-{name}", "train_lora_adapter", tuple(call))
        return self._made_once(step, out / WEIGHTS_FILE, inputs)

    def _folder(self, name: str) -> Path:
        return Path(self._work, "adapters", f"{name}{self._args.suffix}")

    def _size(self, name: str) -> int:
        return Path(self._work, "data", f"{name}.jsonl").stat().st_size

    def _answers(self) -> Any:
        steps = []
        for name in sorted(self._args.specialties, key=self._size, reverse=True):
            file = self._work / "evaluation" / f"{name}.answers.jsonl"
            digest = sha256_of(self._folder(name) / WEIGHTS_FILE)
            if file.is_file() and read_answers(file).header["adapter_sha256"] != digest:
                file.unlink()  # of an earlier adapter
            options = ["--batch_size", str(self._args.answer_batch_size)]
            options += ["--shared_device"] if self._args.jobs > 1 else []
            steps.append(self._evaluation(name, "answers", options))
        return self._all(steps, self._args.jobs)

    def _score(self) -> Any:
        return self._all([self._evaluation(n, "score") for n in self._args.specialties], 1)

    def _evaluation(self, name: str, stage: str, more: Sequence[str] = ()) -> Step:
        return Step(
            f"{stage}-{name}",
            "evaluate_adapter",
            (
                *("--data", str(self._work / "data"), "--specialty", name, *self._base),
                *("--adapter", str(self._folder(name)), "--stage", stage),
                *("--out", str(self._work / "evaluation"), *more),
            ),
        )

    def _promote(self) -> Any:
        """The gate's answers; an adapter that it refused is listed as disabled."""
        steps = [
            Step(
                f"promote-{name}",
                "promote_adapter",
                (
                    *("--adapter", str(self._folder(name))),
                    *("--evaluation", str(self._work / "evaluation" / f"{name}.json")),
                    *("--catalog", str(self._args.catalog.resolve())),
                ),
                allowed=(0, 1),
            )
            for name in self._args.specialties
        ]
        return self._all(steps, 1)

    def _report(self) -> Any:
        step = Step(
            "report",
            "report_adapters",
            (
                *("--evaluations", str(self._work / "evaluation")),
                *("--out", str(self._args.report.resolve())),
            ),
        )
        done = self._call(step)
        data_report = self._work / "data" / "report.md"
        if data_report.is_file():
            target = self._args.report.with_name(f"{self._args.report.name}_data.md")
            shutil.copyfile(data_report, target)
        return done

    def _all(self, steps: Sequence[Step], jobs: int) -> list[Any]:
        with ThreadPoolExecutor(jobs) as pool:
            calls = [pool.submit(self._call, step) for step in steps]
            return [call.result() for call in tqdm(calls, steps[0].name.partition("-")[0])]

    def _made_once(self, step: Step, product: Path, inputs: dict[str, str]) -> Any:
        """Run the step unless `product` is there from the same call and inputs; its report."""
        stamp = self._work / "logs" / f"{step.name}.json"
        same = {"call": step.arguments, "inputs": inputs}
        key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
        if stamp.is_file() and product.is_file():
            made = json.loads(stamp.read_text(encoding="utf-8"))
            if made["key"] == key:
                return made["report"]
        begun = stamp.with_suffix(".begun")
        arguments = step.arguments
        if last_checkpoint(product.parent / CHECKPOINT) and begun.is_file():
            arguments += ("--resume",) if begun.read_text(encoding="utf-8") == key else ()
        stamp.unlink(missing_ok=True)
        begun.write_text(key, encoding="utf-8")
        report = self._call(Step(step.name, step.script, arguments, step.allowed))
        stamp.write_text(json.dumps({"key": key, "report": report}), encoding="utf-8")
        return report

    def _call(self, step: Step) -> Any:
        """The JSON of the last line of its stdout."""
        log = self._work / "logs" / f"{step.name}.log"
        exit_code, stdout = run_script(step.script, step.arguments, log)
        if exit_code not in step.allowed:
            words = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise StepError(
                f"{step.name} ended with exit code {exit_code}: {' '.join(words)} "
                f"(all of it: {log})"
            )
        return json.loads(stdout.strip().splitlines()[-1])


def run_script(script: str, arguments: Sequence[str], log: Path) -> tuple[int, str]:
    """(exit code, stdout) of one script, in a process of its own; its stderr goes into `log`."""
    command = [sys.executable, "-m", f"scripts.{script}", *arguments]
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    return done.returncode, done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
