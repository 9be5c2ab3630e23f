"""Run scripts as steps; skip a step that the same call has made from the same inputs."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adapters.storage.atomic import write_atomically
from scripts.lora.checkpoints import CHECKPOINT, last_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent


class StepError(Exception):
    """A script failed; the text names it, its log and its last words."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a script."""

    name: str
    script: str
    arguments: tuple[str, ...]
    allowed: tuple[int, ...] = (0,)  # exit codes that are no failure


class StepRunner:
    """Run steps; `logs` holds each one's stderr and what it was made from."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, step: Step) -> Any:
        """Return the JSON of the last line of the step's stdout.

        Raises:
            StepError: its exit code is not allowed.
        """
        log = self._logs / f"{step.name}.log"
        exit_code, stdout = run_script(step.script, step.arguments, log)
        if exit_code not in step.allowed:
            words = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise StepError(
                f"{step.name} ended with exit code {exit_code}: {' '.join(words)} "
                f"(all of it: {log})"
            )
        return json.loads(stdout.strip().splitlines()[-1])

    def run_all(self, steps: Sequence[Step], jobs: int) -> list[Any]:
        """Run the steps, `jobs` at the same time; return what each returned."""
        with ThreadPoolExecutor(jobs) as pool:
            calls = [pool.submit(self.run, step) for step in steps]
            return [call.result() for call in tqdm(calls, steps[0].name.partition("-")[0])]

    def run_once(self, step: Step, product: Path, inputs: dict[str, str]) -> Any:
        """Run the step unless `product` is there from the same call and inputs; its report.

        An interrupted training of the same call and inputs is resumed.

        Args:
            inputs: name -> sha256.
        """
        record = self._logs / f"{step.name}.json"
        same = {"call": step.arguments, "inputs": inputs}
        key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
        if record.is_file() and product.is_file():
            made = json.loads(record.read_text(encoding="utf-8"))
            if made["key"] == key:
                return made["report"]
        begun = record.with_suffix(".begun")
        interrupted = begun.is_file() and begun.read_text(encoding="utf-8") == key
        if interrupted and last_checkpoint(product.parent / CHECKPOINT):
            step = replace(step, arguments=(*step.arguments, "--resume"))
        record.unlink(missing_ok=True)
        begun.write_text(key, encoding="utf-8")
        report = self.run(step)
        write_atomically(record, json.dumps({"key": key, "report": report}).encode())
        return report


def run_script(script: str, arguments: Sequence[str], log: Path) -> tuple[int, str]:
    """Run one script as a process; return (exit code, stdout), and write its stderr to `log`."""
    command = [sys.executable, "-m", f"scripts.{script}", *arguments]
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    return done.returncode, done.stdout
