"""EleutherAI's lm-eval measures an adapter over HTTP, and finds what transformers finds.

`make test-long` installs it; by hand: pip install -e '.[long]' (docs/usage.md).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from transformers import AutoTokenizer

from tests.conftest import TINY_ADAPTERS
from tests.e2e.conftest import Deploy
from tests.oracle import Oracle

pytestmark = pytest.mark.long

ITEMS = [
    ("What is eczema?", ["a rash of the skin", "a fracture", "a fever"], 0),
    ("What is a stroke?", ["a cough", "a loss of blood to the brain"], 1),
    ("Qu'est-ce que l'asthme ?", ["une maladie des bronches", "une fracture", "un rhume"], 0),
]
TASKS: dict[str, dict[str, Any]] = {
    "clinic_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "target",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "clinic_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices[target]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "clinic_answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[target]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def base_and_catalog(tiny_catalogs: dict[str, tuple[Path, Path]]) -> tuple[Path, Path]:
    return tiny_catalogs["llama"]


@pytest.fixture(scope="module")
def url(deploy: Deploy, base_and_catalog: tuple[Path, Path]) -> Iterator[str]:
    from deployments.app import build_application
    from deployments.settings import parse_settings

    base, catalog = base_and_catalog
    engine = {"dtype": "float32", "max_rows": 8, "max_input_tokens": 400, "cpu_threads": 1}
    fields = {"base_model": str(base), "adapters": str(catalog), "device": "cpu", "engine": engine}
    with deploy(build_application(parse_settings(fields)), "lm-eval") as client:
        clinic: httpx.Client = client
        yield f"{clinic.base_url}v1/completions"


def write_tasks(folder: Path) -> None:
    lines = [json.dumps({"question": q, "choices": c, "target": t}) for q, c, t in ITEMS]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(folder / "items.jsonl")}},
        "validation_split": "validation",
    }
    for name, task in TASKS.items():
        text = yaml.safe_dump({"task": name, **shared, **task})
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def run_lm_eval(url: str, model: str, base: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the samples of each task."""
    arguments = {
        "model": model,
        "base_url": url,
        "tokenizer": str(base),
        "tokenizer_backend": "huggingface",
        "num_concurrent": "2",
        "max_retries": "1",
        "max_length": "400",
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(folder)]
    command += ["--output_path", str(folder / model), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in TASKS:
        [path] = (folder / model).rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


class Transformers:
    """What transformers and PEFT give for the same texts."""

    def __init__(self, base: Path, catalog: Path) -> None:
        folders = {name: catalog / "weights" / name for name in TINY_ADAPTERS}
        self._oracle = Oracle(base, folders)
        self._tokenizer = AutoTokenizer.from_pretrained(base)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def continued(self, before: str, text: str, adapter: str | None) -> tuple[float, bool]:
        """Log-likelihood of `text` after `before`, and whether greedy decoding would write it."""
        whole, num_before = self._ids(before + text), len(self._ids(before))
        return self._sum(whole, num_before, adapter)

    def alone(self, text: str, adapter: str | None) -> float:
        first = self._tokenizer.bos_token_id or self._tokenizer.eos_token_id
        return self._sum([first, *self._ids(text)], 1, adapter)[0]

    def _sum(self, ids: list[int], start: int, adapter: str | None) -> tuple[float, bool]:
        rows = self._oracle.logprobs(ids, [], adapter)[start - 1 :]
        wanted = ids[start:]
        total = sum(float(row[token]) for row, token in zip(rows, wanted, strict=False))
        greedy = [int(row.argmax()) for row in rows]
        return total, greedy[: len(wanted)] == wanted


@pytest.mark.parametrize("model", ["base", "derm", "cardio"])
def test_its_numbers_are_transformers_own(
    url: str, base_and_catalog: tuple[Path, Path], tmp_path: Path, model: str
) -> None:
    if find_spec("lm_eval") is None:
        pytest.fail("lm_eval is not installed: pip install -e '.[long]', as make test-long does")
    base, catalog = base_and_catalog
    adapter = None if model == "base" else model
    write_tasks(tmp_path)
    samples = run_lm_eval(url, model, base, tmp_path)
    expected = Transformers(base, catalog)
    num_compared = 0
    for sample in samples["clinic_choices"]:
        arguments = sample["arguments"].values()
        for asked, response in zip(arguments, sample["filtered_resps"], strict=True):
            likelihood, is_greedy = expected.continued(asked["arg_0"], asked["arg_1"], adapter)
            assert float(response[0]) == pytest.approx(likelihood, rel=1e-3)
            assert str(response[1]) == str(is_greedy)
            num_compared += 1
    assert num_compared == sum(len(choices) for _, choices, _ in ITEMS)
    for sample in samples["clinic_texts"]:
        [asked] = sample["arguments"].values()
        likelihood = expected.alone(asked["arg_0"], adapter)
        assert float(sample["filtered_resps"][0]) == pytest.approx(likelihood, rel=1e-3)
        assert math.isfinite(likelihood)
    assert len(samples["clinic_answers"]) == len(ITEMS)
