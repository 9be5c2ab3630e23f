"""The training benchmark at a tiny shape on the CPU: real processes, real figures."""

import json
import math
from typing import Any

import pytest
import torch

from scripts import benchmark

TINY = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
}


def run(*more: str) -> int:
    return benchmark.main(
        [
            *("training", "--device", "cpu", "--dtype", "float32", "--optimiser", "adamw_torch"),
            *("--tokens", "32", "--shape", json.dumps(TINY), *more),
        ]
    )


@pytest.mark.long
@pytest.mark.slow
def test_figures_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--quantization", "none", "--steps", "20", "--learning_rate", "0.05") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["shape"]["d_model"] == 32
    assert report["shape"]["vocab_size"] == 32128
    figures = report["runs"]["none"]
    vocabulary = math.log(32128)
    assert figures["validation_loss_at_start"] == pytest.approx(vocabulary, abs=1)
    assert math.log(4) < figures["validation_loss"] < vocabulary - 0.5
    assert figures["num_steps"] == 20
    assert figures["peak_memory_mib"] > 0
    assert figures["process_peak_mib"] is None, "told of a GPU only"


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_fails_fails_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--quantization", "nf4", "--steps", "2") == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["runs"]["nf4"] == {"exit_code": 2}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["training"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
