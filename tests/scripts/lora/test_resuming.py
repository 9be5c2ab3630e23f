"""Training that was interrupted goes on to the same weights, and what cannot go on is said."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases.models import sha256_of
from scripts.lora import train
from scripts.lora.trainer import LoraTrainer
from tests.scripts.test_train_lora_adapter import data, run

__all__ = ["data"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("more", [[], ["--eval_steps", "3"]], ids=["by epoch", "mid-epoch"])
@pytest.mark.slow
def test_interrupted_run_goes_on_to_the_same_weights(
    more: list[str],
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted in the middle of its third epoch (four steps each), after a checkpoint."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = [*more, "--epochs", "4", "--batch_size", "1", "--patience", "9"]
    run(tiny_llama_dir, data, whole, *more)
    step = LoraTrainer.training_step

    def interrupted(self: LoraTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 10:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTrainer, "training_step", interrupted)
        assert run(tiny_llama_dir, data, parts, *more) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (parts / "adapter_model.safetensors").exists()
    assert run(tiny_llama_dir, data, parts, *more, "--rank", "4", "--resume") == 2
    assert "rank was 8, now 4" in capsys.readouterr().err
    assert run(tiny_llama_dir, data, parts, *more, "--resume") == 0
    files = [folder / "adapter_model.safetensors" for folder in (whole, parts)]
    assert sha256_of(files[0]) == sha256_of(files[1])
    assert validation_rows(whole) == validation_rows(parts)


def validation_rows(folder: Path) -> list[dict[str, float]]:
    """Training losses are means since the last one was logged, a window that a restart moves."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation_loss" in row]


def test_full_disk_keeps_the_last_checkpoint(
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_adapter", full)
        assert run(tiny_llama_dir, data, out, "--epochs", "1") == 2
    assert "No space left" in (error := capsys.readouterr().err)
    assert "--resume" in error
    assert run(tiny_llama_dir, data, out, "--epochs", "1", "--resume") == 0
    assert (out / "adapter_model.safetensors").exists()


def test_nothing_to_resume(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_llama_dir, data, tmp_path / "out", "--resume") == 2
    assert "holds no unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize("bad_step", [0, 6])
def test_loss_that_is_not_finite(
    bad_step: int,
    tiny_llama_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the first epoch nothing is saved; later the best epoch is. Two steps make an epoch."""
    step = LoraTrainer.training_step

    def poisoned(self: LoraTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == bad_step:
            with torch.no_grad():
                next(p for p in self.model.parameters() if p.requires_grad).fill_(torch.nan)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "training_step", poisoned)
    code = run(tiny_llama_dir, data, tmp_path / "out", "--epochs", "5")
    captured = capsys.readouterr()
    assert f"not finite (nan) at step {bad_step}" in captured.err
    saved = tmp_path / "out" / "adapter_model.safetensors"
    if bad_step == 0:
        assert (code, saved.exists()) == (2, False)
    else:
        assert code == 3
        assert json.loads(captured.out.splitlines()[-1])["best_step"] == 6
        assert all(tensor.isfinite().all() for tensor in load_file(saved).values())
