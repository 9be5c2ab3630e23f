"""A run of two processes is the run of one: the same losses and weights, one writer, one report."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scripts import train_lora_adapter
from tests.scripts.test_train_lora_adapter import PAIRS, arguments, item, write_lines

ROOT = Path(__file__).resolve().parents[3]
NO_DROPOUT = ("--dropout", "0", "--epochs", "3", "--logging_steps", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [item(q, a) for q, a in PAIRS] + [item(q, a, "validation") for q, a in PAIRS[:3]]
    folder = tmp_path_factory.mktemp("pairs") / "data"
    return write_lines(folder, [json.dumps(line) for line in lines])


def launched(words: list[str], script: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run two processes of the training, or of another script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_addr", "127.0.0.1", "--master_port", str(port)),
            *(str(script or ROOT / "scripts" / "train_lora_adapter.py"), *words),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def history_of(out: Path) -> list[Any]:
    assert not (out / "unfinished").exists()
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(("batch_size", "grad_accum"), [("2", "1"), ("1", "2")])
def test_two_processes_train_what_one_does(
    batch_size: str, grad_accum: str, tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    """Each step takes all four pairs: at once, or shared by two processes, accumulated or not."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = arguments(tiny_llama_dir, data, one, *NO_DROPOUT)
    assert train_lora_adapter.main([*words, "--batch_size", "4"]) == 0
    words = arguments(tiny_llama_dir, data, two, *NO_DROPOUT)
    run = launched([*words, "--batch_size", batch_size, "--grad_accum", grad_accum])
    assert run.returncode == 0, run.stderr[-3000:]
    (report,) = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert json.loads(report)["num_processes"] == 2
    assert run.stderr.count("4 training pairs: fewer than 100") == 1
    history = history_of(one)
    assert history[-1]["validation_loss"] < 0.9 * history[0]["validation_loss"]
    for row, other in zip(history, history_of(two), strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    weights = load_file(one / "adapter_model.safetensors")
    for key, weight in load_file(two / "adapter_model.safetensors").items():
        torch.testing.assert_close(weight, weights[key], rtol=0.05, atol=2e-3)


ONE_IS_NOT_FINITE = """
import os, torch
from scripts import train_lora_adapter
from scripts.lora import trainer

losses = trainer.answer_losses

def bad(outputs, labels, family):
    is_bad = os.environ["RANK"] == "1" and torch.is_grad_enabled()
    return losses(outputs, labels, family) * (torch.nan if is_bad else 1)

trainer.answer_losses = bad
raise SystemExit(train_lora_adapter.main())
"""


@pytest.mark.long
def test_every_process_stops_where_one_loss_is_not_finite(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    """The other would wait for its gradients for ever."""
    script = tmp_path / "script.py"
    script.write_text(ONE_IS_NOT_FINITE)
    run = launched(arguments(tiny_llama_dir, data, tmp_path / "out"), script)
    assert run.returncode != 0
    assert "the loss is not finite" in run.stderr
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.lora.errors import TrainingError
    from scripts.lora.train import join_run

    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="process 3 of this machine has no GPU: there are 2"):
        join_run("cuda")
