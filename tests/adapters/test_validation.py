"""Each thing that makes an adapter unfit for service is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base_models import sha256_of
from adapters.catalog import AdapterEntry, load_catalog
from adapters.validation import check_adapter

Catalogs = dict[str, tuple[Path, Path]]
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    _, catalogue = tiny_catalogs["llama"]
    return Path(shutil.copytree(catalogue / "weights" / "derm", tmp_path / "derm"))


@pytest.fixture
def entry(tiny_catalogs: Catalogs) -> AdapterEntry:
    return load_catalog(tiny_catalogs["llama"][1]).adapters[0]


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_weights(
    folder: Path, entry: AdapterEntry, change: Callable[[State], None]
) -> AdapterEntry:
    """Change the tensors; the entry comes back with the new checksum."""
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    return entry.model_copy(update={"sha256": sha256_of(path)})


@pytest.mark.parametrize("family", ["llama", "flan_t5", "relu_t5"])
def test_live_adapters_pass(family: str, tiny_catalogs: Catalogs) -> None:
    catalog = load_catalog(tiny_catalogs[family][1])
    assert [check_adapter(catalog.folder(e), e) for e in catalog.adapters] == [[], []]


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pt", "x.pkl", "x.pth", "x.ckpt"])
def test_pickles_are_refused(name: str, folder: Path, entry: AdapterEntry) -> None:
    (folder / name).write_bytes(b"")
    [problem] = check_adapter(folder, entry)
    assert name in problem
    assert "pickled weights are never loaded" in problem


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named_with_the_mend(name: str, folder: Path, entry: AdapterEntry) -> None:
    (folder / name).unlink()
    [problem] = check_adapter(folder, entry)
    assert all(part in problem for part in (name, "missing", "git checkout", "train"))


def test_missing_folder(tmp_path: Path, entry: AdapterEntry) -> None:
    [problem] = check_adapter(tmp_path / "none", entry)
    assert "the folder is missing" in problem


def test_wrong_checksum(folder: Path, entry: AdapterEntry) -> None:
    wrong = entry.model_copy(update={"sha256": "0" * 64})
    for tensors in (True, False):
        [problem] = check_adapter(folder, wrong, tensors=tensors)
        assert "sha256" in problem


def test_content_is_left_to_the_checksum_when_asked(folder: Path, entry: AdapterEntry) -> None:
    def spoil(state: State) -> None:
        state[next(iter(state))][0, 0] = torch.nan

    entry = rewrite_weights(folder, entry, spoil)
    assert check_adapter(folder, entry, tensors=False) == []
    assert len(check_adapter(folder, entry)) == 1


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3"}, ["'IA3'", "only LORA"]),
        ({"base_model_name_or_path": "other"}, ["trained on 'other'"]),
        ({"r": 16}, ["r is 16"]),
        ({"r": 5000}, ["5000", "1 to 256"]),
        ({"r": "8"}, ["1 to 256"]),
        ({"rank_pattern": {"q_proj": 512}}, ["512", "1 to 256"]),
        ({"rank_pattern": [1]}, ["rank_pattern is [1]"]),
    ],
)
def test_config_that_does_not_fit(
    changes: dict[str, Any], parts: list[str], folder: Path, entry: AdapterEntry
) -> None:
    rewrite_config(folder, **changes)
    text = "\n".join(check_adapter(folder, entry))
    assert "adapter_config.json" in text
    assert all(part in text for part in parts)


def test_features_that_are_not_served_are_listed_together(
    folder: Path, entry: AdapterEntry
) -> None:
    rewrite_config(folder, use_dora=True, bias="all", modules_to_save=["lm_head"])
    [problem] = check_adapter(folder, entry)
    assert problem.endswith("not served: use_dora, bias, modules_to_save")


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_config_that_is_no_json_object(content: str, folder: Path, entry: AdapterEntry) -> None:
    (folder / "adapter_config.json").write_text(content)
    [problem] = check_adapter(folder, entry)
    assert "adapter_config.json" in problem


def _nan(state: State) -> None:
    state[next(iter(state))][0, 0] = torch.nan


def _infinity(state: State) -> None:
    state[next(iter(state))][0, 0] = torch.inf


def _other_rank(state: State) -> None:
    name = next(name for name in state if "lora_A" in name)
    state[name] = state[name][:2].clone()


def _no_partner(state: State) -> None:
    del state[next(name for name in state if "lora_B" in name)]


def _stranger(state: State) -> None:
    state["base_model.model.lm_head.weight"] = torch.ones(2, 2)


def _silent(state: State) -> None:
    for name in state:
        if "lora_B" in name:
            state[name] = torch.zeros_like(state[name])


def _flat(state: State) -> None:
    name = next(name for name in state if "lora_A" in name)
    state[name] = state[name].flatten()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_nan, "NaN or infinity"),
        (_infinity, "NaN or infinity"),
        (_other_rank, "differ in rank"),
        (_no_partner, "no partner lora_B"),
        (_stranger, "is no LoRA weight"),
        (_silent, "would change nothing"),
        (_flat, "two dimensions"),
        (dict.clear, "holds no tensor"),
    ],
)
def test_tensors_that_cannot_serve(
    change: Callable[[State], None], part: str, folder: Path, entry: AdapterEntry
) -> None:
    problems = check_adapter(folder, rewrite_weights(folder, entry, change))
    assert part in "\n".join(problems)


def test_file_that_is_no_safetensors(folder: Path, entry: AdapterEntry) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    entry = entry.model_copy(update={"sha256": sha256_of(path)})
    [problem] = check_adapter(folder, entry)
    assert "cannot be read as safetensors" in problem


def test_file_that_is_too_large(
    folder: Path, entry: AdapterEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.validation.MAX_BYTES", 100)
    [problem] = check_adapter(folder, entry)
    assert "at most 100" in problem


def test_every_problem_is_listed_at_once(folder: Path, entry: AdapterEntry) -> None:
    (folder / "x.bin").write_bytes(b"")
    rewrite_config(folder, peft_type="IA3", use_dora=True)
    (folder / "adapter_model.safetensors").unlink()
    assert len(check_adapter(folder, entry)) == 4
