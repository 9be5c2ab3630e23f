"""The memory benchmark: on the CPU with a tiny base, and within a budget where there is a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmark import main

SMALL = ["--rows", "3", "--prompt_tokens", "20", "--output_tokens", "8", "--requests", "5"]


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["memory", *arguments])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8", "none"])
def test_on_the_cpu_the_same_is_served_and_nothing_is_limited(
    tiny_flan_t5_dir: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", str(tiny_flan_t5_dir), "--dtype", "float32", "--adapters", "2"]
    limit = ["--quantization", kind, "--budget_gb", "4"]
    status, found = measured(capsys, *base, *limit, *SMALL)
    assert status == 0
    assert found["rows"]["by_positions"] == {"32": 3}
    assert found["decoder"].startswith("fast: ")
    assert found["weights"].startswith("float32" if kind == "none" else kind)
    assert found["tokens_per_s"] > 0
    assert found["peak_gib"] is None


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_small_card_gets_fewer_rows_and_never_runs_out(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """512 rows of 4,096 positions need more than the budget."""
    arguments = ["--model", "llama-1b-shape", "--device", "cuda", "--dtype", "bfloat16"]
    arguments += ["--quantization", kind, "--budget_gb", "6", "--rows", "512", "--requests", "32"]
    arguments += ["--prompt_tokens", "3840", "--output_tokens", "256", "--prefill_tokens", "4096"]
    try:
        status, found = measured(capsys, *arguments)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert status == 0, "the peak is within the budget"
    assert found["rows"]["asked"] == 512
    assert 1 <= found["rows"]["given"] < 512
    assert "are left" in found["rows"]["reason"]
