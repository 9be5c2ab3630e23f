"""When training breaks off: a full disk, weights that are not finite, an early interrupt."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

from adapters.bases.models import sha256_of
from scripts.lora import saved_adapter, trainer
from scripts.lora.trainer import LoraTrainer
from tests.scripts.test_train_lora_adapter import PAIRS, item, run, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=["validation", pytest.param("none", marks=pytest.mark.long)])
def data(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Two steps make an epoch; with validation pairs, and without."""
    lines = [item(q, a) for q, a in PAIRS]
    if request.param == "validation":
        lines += [item(q, a, "validation") for q, a in PAIRS]
    folder = tmp_path_factory.mktemp("data")
    return write_lines(folder / "data", [json.dumps(line) for line in lines])


@pytest.fixture(scope="module")
def whole(data: Path, tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of the weights of three epochs that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(tiny_llama_dir, data, out, "--epochs", "3") == 0
    finally:
        torch.set_num_threads(threads)
    return sha256_of(out / WEIGHTS)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unexpected pos 6976 vs 6868"),  # torch.save on a full disk
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "torch", "safetensors"],
)
@pytest.mark.slow
def test_full_disk_at_a_checkpoint(
    error: Exception,
    data: Path,
    whole: str,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It breaks off behind the optimiser's file of the second checkpoint; resumed to the same."""
    out = tmp_path / "out"
    save = Trainer._save_optimizer_and_scheduler

    def full(self: Trainer, folder: str) -> None:
        save(self, folder)
        if self.state.global_step == 4:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        assert run(tiny_llama_dir, data, out, "--epochs", "3") == 2
    told = capsys.readouterr().err
    assert str(error) in told
    assert "--resume goes on from checkpoint-2" in told
    assert [p.name for p in (out / "unfinished").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(tiny_llama_dir, data, out, "--epochs", "3", "--resume") == 0
    assert sha256_of(out / WEIGHTS) == whole


@pytest.mark.slow
def test_a_checkpoint_that_a_kill_left_half_is_passed_over(
    data: Path, whole: str, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    step = LoraTrainer.training_step

    def interrupted(self: LoraTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTrainer, "training_step", interrupted)
        assert run(tiny_llama_dir, data, out, "--epochs", "3") == 130
    torn = out / "unfinished" / "checkpoint-4"
    (torn / "trainer_state.json").write_text('{"global_step": 4, "log_hi')
    (torn / "optimizer.pt").unlink()
    found = trainer.last_checkpoint(torn.parent)
    assert found is not None
    assert found.name == "checkpoint-2"
    assert run(tiny_llama_dir, data, out, "--epochs", "3", "--resume") == 0
    assert sha256_of(out / WEIGHTS) == whole


def test_interrupt_before_the_first_checkpoint(
    data: Path,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LoraTrainer, "training_step", interrupted)
    assert run(tiny_llama_dir, data, tmp_path / "out") == 130
    assert "start again without --resume" in capsys.readouterr().err
    assert run(tiny_llama_dir, data, tmp_path / "out", "--resume") == 2
    assert "no unfinished run with a whole checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_full_disk_at_the_end_keeps_an_earlier_adapter(
    data: Path,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(tiny_llama_dir, data, out, "--epochs", "1") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(state: Any, file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(saved_adapter, "save_file", full)
        assert run(tiny_llama_dir, data, out, "--epochs", "2") == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "--resume goes on from checkpoint-4" in told
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert run(tiny_llama_dir, data, out, "--epochs", "2", "--resume") == 0
    assert (out / WEIGHTS).read_bytes() != before[WEIGHTS]


def poisoned_after(step: int) -> Callable[..., torch.Tensor]:
    """The update of this step leaves NaN in the weights; its loss was finite."""
    train = LoraTrainer.training_step

    def training_step(self: LoraTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = train(self, *args, **kwargs)
        if self.state.global_step == step - 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)
        return loss

    return training_step


@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_update_that_is_not_finite_is_never_kept(
    step: int,
    data: Path,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last update of the first, second and last epoch: no loss of training shows it."""
    monkeypatch.setattr(LoraTrainer, "training_step", poisoned_after(step))
    out = tmp_path / "out"
    code = run(tiny_llama_dir, data, out, "--epochs", "3")
    captured = capsys.readouterr()
    assert f"at step {step}" in captured.err
    if step == 2:
        assert "nothing was saved" in captured.err
        assert (code, (out / WEIGHTS).exists()) == (2, False)
    else:
        assert f"checkpoint-{step - 2} is kept" in captured.err
        assert code == 3
        assert json.loads(captured.out.splitlines()[-1])["best_step"] == step - 2
        assert all(tensor.isfinite().all() for tensor in load_file(out / WEIGHTS).values())
