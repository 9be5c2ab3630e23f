"""What llama.cpp is given. The run itself needs the extra `bench`."""

from pathlib import Path

import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from scripts.benchmarks.bases.models import load_skeleton
from scripts.benchmarks.cpu_peers import llama_cpp
from scripts.benchmarks.in_process.random_adapters import make_random_adapters


def test_an_adapter_for_llama_cpp_has_each_matrix_of_pefts(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    skeleton = load_skeleton(tiny_llama_dir)
    targets = ["q_proj", "o_proj", "down_proj"]
    made = make_random_adapters(skeleton, tmp_path / "peft", num=1, rank=4, targets=targets)
    llama_cpp.write_adapter(made["a0"], tmp_path / "a0.gguf")
    reader = GGUFReader(str(tmp_path / "a0.gguf"))
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    ours = load_file(made["a0"] / "adapter_model.safetensors")
    assert len(written) == len(ours) == 2 * 3 * skeleton.config.num_hidden_layers
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    assert (written["blk.1.ffn_down.weight.lora_b"] == ours[name]).all()


def test_one_adapter_of_a_request_is_on_and_the_others_off() -> None:
    assert [one["scale"] for one in llama_cpp.lora_of(1, 3)] == [0.0, 1.0, 0.0]
    assert [one["scale"] for one in llama_cpp.lora_of(None, 2)] == [0.0, 0.0]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "PACKAGE", "no_such_package")
    with pytest.raises(llama_cpp.PeerMissing, match=r"polyclinic\[bench\]"):
        llama_cpp.check_installed()
