"""The stages from data to promoted adapters and a report, over one work folder."""

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from adapters.bases.models import Family, resolve_base_model, sha256_of
from adapters.validation import WEIGHTS_FILE
from scripts.datasets.record import DataError
from scripts.evaluation.answer_file import read_answers
from scripts.specialists.steps import Step, StepRunner

JOINT = "all_specialties"
# What won on the validation splits; docs/decisions.md lists what else was tried.
LORA: dict[Family, list[str]] = {
    "causal": "--target_modules v_proj o_proj up_proj down_proj --rank 3 --alpha 12".split(),
    "seq2seq": "--target_modules q v --rank 8 --alpha 32".split(),
}
FIRST = "--batch_size 16 --grad_accum 1 --epochs 3 --learning_rate 2e-3".split()
THEN = "--batch_size 8 --grad_accum 1 --epochs 2 --learning_rate 5e-4".split()


class Pipeline:
    """The work folder has data/, adapters/, evaluation/ and logs/.

    Args:
        args: of scripts.make_specialists.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        gpu = torch.cuda.is_available()
        self._args = args
        self._dtype: str = args.dtype or ("bfloat16" if gpu else "float32")
        self._batch_size: int = args.answer_batch_size or (128 if gpu else 16)
        self._jobs: int = args.jobs or (4 if gpu else 1)
        self._work: Path = args.work.resolve()
        self._data = self._work / "data"
        self._evaluations = self._work / "evaluation"
        self._steps = StepRunner(self._work / "logs")
        self._base = ["--base_model", args.base_model]
        if args.base_model_name:
            self._base += ["--base_model_name", args.base_model_name]

    def run(self, stages: Sequence[str]) -> dict[str, Any]:
        """Run the stages; return stage -> what it reported.

        Raises:
            BaseModelError, DataError, StepError, OSError: what is done stays.
        """
        return {stage: getattr(self, f"_{stage}")() for stage in stages}

    def _prepare(self) -> Any:
        data = self._args.data.resolve()
        if not data.is_dir():
            raise DataError(f"--data {data}: no such folder")
        licence = f",licence={self._args.licence}" if self._args.licence else ""
        inputs = {path.name: sha256_of(path) for path in sorted(data.glob("*.jsonl"))}
        words = ["--source", f"jsonl:{data}{licence}", "--out", str(self._data), "--overwrite"]
        if self._args.with_passages:
            words.append("--with_passages")
        step = Step("prepare", "prepare_medical_dataset", tuple(words))
        return self._steps.run_once(step, self._data / "manifest.json", inputs)

    def _train(self) -> Any:
        specialties = self._args.specialties
        paths = {name: self._data / f"{name}.jsonl" for name in specialties}
        files = {name: sha256_of(path) for name, path in paths.items() if path.is_file()}
        missing = [name for name in specialties if name not in files]
        if missing:
            raise DataError(
                f"--specialties {' '.join(missing)}: not in {self._data}, which has "
                + ", ".join(sorted(path.stem for path in self._data.glob("*.jsonl")))
            )
        joint = self._folder(JOINT, "")
        self._train_one(JOINT, specialties, joint, FIRST, files)
        start = {"init": sha256_of(joint / WEIGHTS_FILE)}
        then = [*THEN, "--init_adapter", str(joint)]
        with ThreadPoolExecutor(self._jobs) as pool:
            calls = []
            for name in self._by_size():
                inputs, out = {name: files[name]} | start, self._folder(name)
                calls.append(pool.submit(self._train_one, name, [name], out, then, inputs))
            reports = [call.result() for call in tqdm(calls, "training")]
        return {report["specialty"]: report["validation_loss"] for report in reports}

    def _train_one(
        self,
        name: str,
        specialties: Sequence[str],
        out: Path,
        recipe: Sequence[str],
        inputs: dict[str, str],
    ) -> Any:
        longest = ["--max_prompt_tokens", "1024"] if self._args.with_passages else []
        call = [
            *("--data", str(self._data), *self._base, "--dtype", self._dtype, *longest),
            *LORA[resolve_base_model(self._args.base_model).family],
            *(*recipe, "--specialty", *specialties, "--out", str(out)),
        ]
        step = Step(f"train-{name}", "train_lora_adapter", tuple(call))
        return self._steps.run_once(step, out / WEIGHTS_FILE, inputs)

    def _answers(self) -> Any:
        steps = []
        for name in self._by_size():
            file = self._evaluations / f"{name}.answers.jsonl"
            digest = sha256_of(self._folder(name) / WEIGHTS_FILE)
            if file.is_file() and read_answers(file).header["adapter_sha256"] != digest:
                file.unlink()  # of an earlier adapter
            options = ["--batch_size", str(self._batch_size)]
            options += ["--shared_device"] if self._jobs > 1 else []
            steps.append(self._evaluation(name, "answers", options))
        return self._steps.run_all(steps, self._jobs)

    def _score(self) -> Any:
        steps = [self._evaluation(name, "score") for name in self._args.specialties]
        return self._steps.run_all(steps, 1)

    def _evaluation(self, name: str, stage: str, more: Sequence[str] = ()) -> Step:
        arguments = (
            *("--data", str(self._data), "--specialty", name, *self._base),
            *("--adapter", str(self._folder(name)), "--stage", stage),
            *("--out", str(self._evaluations), *more),
        )
        return Step(f"{stage}-{name}", "evaluate_adapter", arguments)

    def _promote(self) -> Any:
        """Ask the gate; it lists an adapter that it refuses as disabled."""
        steps = []
        for name in self._args.specialties:
            arguments = (
                *("--adapter", str(self._folder(name))),
                *("--evaluation", str(self._evaluations / f"{name}.json")),
                *("--catalog", str(self._args.catalog.resolve())),
            )
            steps.append(Step(f"promote-{name}", "promote_adapter", arguments, allowed=(0, 1)))
        return self._steps.run_all(steps, 1)

    def _report(self) -> Any:
        out: Path = self._args.report.resolve()
        arguments = ("--evaluations", str(self._evaluations), "--out", str(out))
        done = self._steps.run(Step("report", "report_adapters", arguments))
        data_report = self._data / "report.md"
        if data_report.is_file():
            shutil.copyfile(data_report, out.with_name(f"{out.name}_data.md"))
        return done

    def _folder(self, name: str, suffix: str | None = None) -> Path:
        suffix = self._args.suffix if suffix is None else suffix
        return Path(self._work, "adapters", f"{name}{suffix}")

    def _by_size(self) -> list[str]:
        """Return the specialties, the one with the most data first."""
        return sorted(
            self._args.specialties,
            key=lambda name: (self._data / f"{name}.jsonl").stat().st_size,
            reverse=True,
        )
