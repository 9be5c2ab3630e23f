"""A base that a replica could not load is refused before anything is replaced: what is missing."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.bases.check import (
    check_base_model,
    check_folder,
    find_base_model,
    stored_quantization,
    weight_files,
)
from adapters.bases.models import BaseModelError


@pytest.fixture
def base(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))


def test_whole_folders_pass(tiny_llama_dir: Path, tiny_flan_t5_dir: Path) -> None:
    assert check_base_model(str(tiny_llama_dir)).family == "causal"
    assert check_base_model(str(tiny_flan_t5_dir)).family == "seq2seq"
    find_base_model(str(tiny_llama_dir))


def remove(name: str) -> Any:
    return lambda base: (base / name).unlink()


def write(name: str, content: bytes) -> Any:
    return lambda base: (base / name).write_bytes(content)


def cut_weights(base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def index(base: Path, **shards: str) -> None:
    content = json.dumps({"weight_map": shards})
    (base / "model.safetensors.index.json").write_text(content)


def config(base: Path, **fields: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


# In its first months: transformers renames the type, and then misses a field.
PHI_3 = {
    "rope_parameters": None,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), "config.json is missing"),
        (write("config.json", b"{"), "config.json cannot be read"),
        (write("config.json", b"[]"), "config.json"),
        (remove("model.safetensors"), "no .safetensors file"),
        (cut_weights, "cut off, damaged"),
        (write("model.safetensors", b""), "cut off, damaged"),
        (write("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "cut off"),
        (lambda b: index(b, a="model.safetensors", b="model-2.safetensors"), "model-2.safetensors"),
        (lambda b: index(b), "lists no weights"),
        (write("model.safetensors.index.json", b"{"), "cannot be read"),
        (remove("tokenizer.json"), "has no tokenizer"),
        (
            write("generation_config.json", b'{"eos_token_id": [2, 5],}'),
            "which tokens end an answe",
        ),
        (write("generation_config.json", b""), "generation_config.json cannot be read"),
        (write("generation_config.json", b"[2]"), "generation_config.json is not a JSON object"),
        (write("adapter_config.json", b"{}"), "transformers would put into the base for all"),
        (write("tokenizer.json", b"{cut"), "tokenizer.json cannot be read"),
        (lambda b: config(b, architectures=["BertModel"]), "architecture"),
        (lambda b: config(b, model_type="lama"), "lama"),
        (lambda b: config(b, architectures=None), 'names no architecture: add the class .*"Llama'),
        (
            lambda b: config(
                b, architectures=["PixtralForConditionalGeneration"], vision_config={"a": 1}
            ),
            "reads images .* save its text part",
        ),
        (
            lambda b: config(
                b, model_type="internlm2", auto_map={"AutoConfig": "a.InternLM2Config"}
            ),
            r"'internlm2', whose classes are programs in that folder \(auto_map\), .* never run",
        ),
        (
            lambda b: config(b, model_type="mistral", rope_parameters={"rope_type": "yarn"}),
            r"transformers 5\..* cannot read its config.json .* correct it there",
        ),
        (
            lambda b: config(b, model_type="phi3", **PHI_3),
            "set rope_scaling.type to longrope there",
        ),
    ],
)
def test_what_a_replica_could_not_load_is_named(base: Path, damage: Any, words: str) -> None:
    damage(base)
    with pytest.raises(BaseModelError, match=words) as refused:
        check_folder(base)
    assert str(base) in str(refused.value)


@pytest.mark.parametrize("name", ["smollm2-135m-instrct", "/no/such/folder", "a/b/c", "./x", ""])
def test_a_name_of_no_known_form_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(BaseModelError, match="base_model"):
        find_base_model(name)


def test_a_name_that_the_hub_may_have_is_asked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def model_info(self: Any, name: str, timeout: float) -> None:
        asked.append(name)
        if name == "nobody/has-this":
            raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    find_base_model("somebody/has-this")
    with pytest.raises(BaseModelError, match="'nobody/has-this' is not in the Hugging Face cache"):
        find_base_model("nobody/has-this")
    assert asked == ["somebody/has-this", "nobody/has-this"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "AWQ, 4 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "a-method-of-the-future"}, "a-method-of-the-future"),
        ({}, "an unnamed method"),
        ({"group_size": 64, "bits": 4}, "MLX, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes fp4"),
        (
            {"load_in_8bit": True, "llm_int8_has_fp16_weight": True},
            "bitsandbytes int8 with .*",
        ),
    ],
)
def test_weights_quantised_another_way_are_refused_by_name(
    base: Path, fields: dict[str, Any], named: str
) -> None:
    config(base, quantization_config=fields)
    with pytest.raises(
        BaseModelError, match=f"quantised with {named}, which no decoder"
    ) as refused:
        check_folder(base)
    assert str(base) in str(refused.value)
    assert "set quantization: int8, nf4 or fp8 on a GPU" in str(refused.value)


def test_folders_that_bitsandbytes_quantised_pass(base: Path) -> None:
    assert stored_quantization(base) is None
    config(base, quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"})
    check_folder(base)
    assert stored_quantization(base) == "int8"
    config(base, quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert stored_quantization(base) == "nf4"
    config(base, quantization_config=[1])
    with pytest.raises(BaseModelError, match="no object"):
        check_folder(base)


@pytest.mark.parametrize(
    ("stored", "dtype", "said"),
    [
        ("weight", torch.float8_e4m3fn, "F8_E4M3"),
        ("qweight", torch.int32, "I32"),
        ("weight_packed", torch.uint8, "U8"),
    ],
)
def test_packed_weights_of_which_config_json_says_nothing(
    base: Path, stored: str, dtype: torch.dtype, said: str
) -> None:
    """Some tools describe them in a file of their own (hf_quant_config.json, quant_config.json)."""
    file = base / "model.safetensors"
    weights = load_file(file)
    plain = weights.pop("model.layers.0.mlp.up_proj.weight")
    name = f"model.layers.0.mlp.up_proj.{stored}"
    save_file(weights | {name: plain.to(dtype)}, file)
    with pytest.raises(BaseModelError, match=f"holds {name} in {said}, and .* no quantization"):
        check_folder(base)


def test_numbers_that_are_no_weights_may_be_whole(base: Path) -> None:
    """Masks and positions, as older models saved them."""
    file = base / "model.safetensors"
    save_file(load_file(file) | {"attn.bias": torch.ones(1, dtype=torch.uint8)}, file)
    check_folder(base)


def test_a_tokenizer_of_sentencepiece_alone(base: Path) -> None:
    """As mT5, T5 v1.1 and mBART-50 are published."""
    texts = ["the heart beats in the chest", "la peau est sèche et rouge", "a cream for the night"]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 9), model_writer=made, vocab_size=30, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    for file in base.glob("token*.json"):
        file.unlink()
    (base / "spiece.model").write_bytes(made.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    check_folder(base)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in (*texts, "the skin of the chest"):
        assert tokenizer(text)["input_ids"] == [*pieces.encode(text), 1]


def test_a_tokenizer_without_files(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    check_folder(base)


def test_code_in_the_folder_is_not_asked_about(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked on the terminal"))
    config(base, model_type="strange", auto_map={"AutoConfig": "strange.StrangeConfig"})
    (base / "strange.py").write_text("raise SystemExit('run')")
    with pytest.raises(BaseModelError, match="never run"):
        check_folder(base)


def test_weights_that_are_there_twice_count_once(base: Path) -> None:
    """As Mistral publishes them."""
    (base / "consolidated.safetensors").write_bytes(b"for another program")
    assert weight_files(base) == [base / "model.safetensors"]
    index(base, a="model.safetensors", b="model.safetensors")
    assert weight_files(base) == [base / "model.safetensors"]
    check_folder(base)
