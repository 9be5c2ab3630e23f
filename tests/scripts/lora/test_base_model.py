"""A base that is trained on is read whole, as one that is served is."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scripts.lora.base_model import load_base
from scripts.lora.errors import TrainingError


def test_a_weight_that_is_missing_ends_the_training(tiny_llama_dir: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    missing = "model.layers.1.mlp.up_proj.weight"
    del weights[missing]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=f"its files lack {missing}"):
        load_base(base, "causal", "float32")
