"""A legacy .bin becomes the same tensors as safetensors; a pickle with code in it runs nothing."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adapters.validation import recorded_prompt_format
from scripts.convert_adapter import main
from scripts.lora.saved_adapter import save_weights

Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture
def legacy(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    source = tiny_catalogs["llama"][1] / "weights" / "derm"
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copyfile(source / "adapter_config.json", folder / "adapter_config.json")
    torch.save(load_file(source / "adapter_model.safetensors"), folder / "adapter_model.bin")
    return folder


def convert(legacy: Path, out: Path) -> int:
    return main(["--adapter", str(legacy), "--out", str(out)])


def test_the_tensors_stay_the_same(
    legacy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(legacy, tmp_path / "new") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rank"], report["tensors"]) == (4, 8)
    old = torch.load(legacy / "adapter_model.bin", weights_only=True)
    new = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert convert(legacy, tmp_path / "new") == 2, "an existing folder is left alone"


def test_the_prompt_format_is_recorded(legacy: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    words = ["--adapter", str(legacy), "--out", str(out)]
    assert main([*words, "--prompt_format", "raw"]) == 0
    weights = out / "adapter_model.safetensors"
    assert recorded_prompt_format(weights) == "raw"
    with safe_open(weights, framework="pt") as file:
        assert file.metadata()["format"] == "pt", "transformers reads no file without it"
    old = torch.load(legacy / "adapter_model.bin", weights_only=True)
    again = tmp_path / "again.safetensors"
    for _ in range(20):  # safetensors' own order of the metadata is another each time
        save_weights(old, again, "raw")
        assert again.read_bytes() == weights.read_bytes()


class Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def test_code_in_the_pickle_does_not_run(
    legacy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran"
    (legacy / "adapter_model.bin").write_bytes(pickle.dumps({"x": Bomb(mark)}))
    assert convert(legacy, tmp_path / "new") == 2
    assert "no plain file of tensors" in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "new").exists()


def test_what_the_server_would_refuse_is_not_written(
    legacy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = torch.load(legacy / "adapter_model.bin", weights_only=True)
    next(iter(tensors.values()))[0, 0] = torch.nan
    torch.save(tensors, legacy / "adapter_model.bin")
    assert convert(legacy, tmp_path / "new") == 2
    assert "NaN" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]
