"""Adapters and arguments that the evaluation refuses, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import evaluate_adapter
from tests.scripts.test_evaluate_adapter import arguments, write_data, write_rows
from tests.tiny_models import make_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def llama(tiny_llama_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    return (
        tiny_llama_dir,
        make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="tiny", seed=1),
    )


def of_another_width(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in state.items()}


def of_the_first_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if "layers.0." in name}


def with_nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * torch.nan for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_width, "of another base model: Error(s) in loading state_dict"),
        (of_the_first_layer, "lacks 4 of 8 tensors, the first is base_model.model.model.layers.1"),
        (with_nan, "the likelihood of its reference is not finite (nan)"),
    ],
)
def test_a_damaged_adapter(
    change: Callable[[Any], Any],
    message: str,
    llama: tuple[Path, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, adapter = llama
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    assert evaluate_adapter.main(arguments(base, adapter, data, tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "dermatology.json").exists()
    file.write_bytes(file.read_bytes()[:500])
    assert evaluate_adapter.main(arguments(base, adapter, data, tmp_path / "out")) == 2
    assert "it is damaged" in capsys.readouterr().err


def test_an_adapter_of_the_other_family(
    tiny_flan_t5_dir: Path,
    llama: tuple[Path, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate_adapter.main(arguments(tiny_flan_t5_dir, llama[1], data, tmp_path / "out")) == 2
    assert "not found in the base model" in capsys.readouterr().err


def test_what_is_missing_is_named(
    llama: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = llama
    out = tmp_path / "out"
    assert evaluate_adapter.main(arguments(base, tmp_path / "none", data, out)) == 2
    assert "adapter_model.safetensors does not exist" in capsys.readouterr().err
    more = ("--specialty", "cardiology")
    assert evaluate_adapter.main(arguments(base, adapter, data, out, *more)) == 2
    assert "there are: dermatology" in capsys.readouterr().err
    rows = [{"input": "What is it?", "output": "A rash.", "split": "train", "id": "a"}]
    write_rows(data / "dermatology.jsonl", rows * 2)
    assert evaluate_adapter.main(arguments(base, adapter, data, out)) == 2
    assert "line 2: the id 'a' is also that of line 1" in capsys.readouterr().err
    write_rows(data / "dermatology.jsonl", rows)
    assert evaluate_adapter.main(arguments(base, adapter, data, out)) == 2
    assert "no validation pair of dermatology" in capsys.readouterr().err
