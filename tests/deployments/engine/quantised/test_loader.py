"""Quantised bases as they are loaded: the weights, the peak, and folders quantised already."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5PreTrainedModel

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import Family, Pretrained, bitsandbytes_config, load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.quantised import loader
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.loader import wo_quantised
from deployments.engine.quantised.weight import KINDS, Kind, quantise
from tests.tiny_models import load_model, make_tiny_flan_t5, make_tiny_llama, make_tiny_qwen2

MAKERS: dict[str, tuple[Any, Family]] = {
    "llama": (make_tiny_llama, "causal"),
    "flan_t5": (make_tiny_flan_t5, "seq2seq"),
    "qwen2": (make_tiny_qwen2, "causal"),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, family = MAKERS[request.param]
    return make(tmp_path_factory.mktemp("base") / request.param), family


def load(folder: Path, family: Family, kind: Any = "none", dtype: Any = "float32") -> Pretrained:
    return load_pretrained(folder, family, device="cpu", dtype=dtype, quantization=kind)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    given = {"input_ids": torch.arange(3, 20)[None]}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"][:, :4]
    found: torch.Tensor = model(**given).logits
    return found


def quantised(model: torch.nn.Module) -> dict[str, QuantisedLinear]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantisedLinear)
    }


def plain(model: torch.nn.Module) -> set[str]:
    """Names of the linear layers that stay plain."""
    kept = [path for path, module in model.named_modules() if type(module) is torch.nn.Linear]
    return {path.rpartition(".")[2] for path in kept}


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_quantised_equals_quantised_after_loading(base: Any, kind: Kind) -> None:
    folder, family = base
    own = load(folder, family, kind)
    after = load_model(folder)
    unchanged = logits(after)
    layers = quantised(own.model)
    assert own.quantization == kind
    for path in layers:
        weight = after.get_parameter(f"{path}.weight").data
        weight.copy_(quantise(weight, kind).dequantised(torch.float32))
    assert torch.equal(logits(own.model), logits(after))
    assert not torch.equal(logits(after), unchanged)
    is_t5_int8 = kind == "int8" and family == "seq2seq"
    assert plain(own.model) == ({"lm_head", "wo"} if is_t5_int8 else {"lm_head"})


def test_nothing_else_is_changed(base: Any) -> None:
    """Norms, embeddings, biases, buffers, and what is tied: as in a plain load."""
    folder, family = base
    own, other = load(folder, family, "int8", "bfloat16").model, load(folder, family).model
    layers = quantised(own)
    for name, weight in other.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(own.state_dict()[name], weight.to(torch.bfloat16)), name
            assert own.state_dict()[name].dtype == torch.bfloat16, name
    for name, buffer in other.named_buffers():
        assert torch.equal(own.get_buffer(name), buffer), name
    is_tied = other.lm_head.weight is other.get_input_embeddings().weight
    assert (own.lm_head.weight is own.get_input_embeddings().weight) is is_tied
    assert not any(tensor.is_meta for tensor in (*own.parameters(), *own.buffers()))
    assert getattr(own.config, "quantization_config", None) is None


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_layers_left_plain_are_those_of_bitsandbytes(base: Any, kind: Kind) -> None:
    folder, family = base
    assert plain(load(folder, family, kind).model) == plain(by_bitsandbytes(folder, kind))


def by_bitsandbytes(folder: Path, kind: Kind, everything: bool = True) -> Any:
    pytest.importorskip("bitsandbytes")
    options = {
        "quantization_config": bitsandbytes_config(kind, torch.float32),
        "device_map": {"": "cpu"},
        "dtype": torch.float32,
    }
    model_class = type(load_model(folder))
    if kind == "int8" or not everything:
        return model_class.from_pretrained(folder, **options)
    with wo_quantised():
        assert T5PreTrainedModel._keep_in_fp32_modules is None
        return model_class.from_pretrained(folder, **options)


@pytest.fixture(params=["int8", "nf4", "nf4 once"])
def stored(request: pytest.FixtureRequest, base: Any, tmp_path: Path) -> Any:
    """A folder as transformers saves it. nf4 once: absmax is not quantised a second time."""
    folder, family = base
    kind, _, once = request.param.partition(" ")
    model = by_bitsandbytes(folder, kind, everything=False)
    if once:
        config = bitsandbytes_config("nf4", torch.float32)
        config.bnb_4bit_use_double_quant = False
        options = {"quantization_config": config, "device_map": {"": "cpu"}}
        model = type(model).from_pretrained(folder, dtype=torch.float32, **options)
    model.save_pretrained(tmp_path / "stored")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "stored")
    return tmp_path / "stored", family, kind, model, folder


def bitsandbytes_layers() -> tuple[type, type]:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return Linear4bit, Linear8bitLt


def functional() -> Any:
    from bitsandbytes import functional as found

    return found


def test_folders_that_bitsandbytes_quantised_load_as_they_are(stored: Any) -> None:
    folder, family, kind, theirs, source = stored
    own = load(folder, family)
    assert own.quantization == kind
    assert own.dtype_reason == "as its folder has it"
    layers = quantised(own.model)
    assert set(layers) == {
        path for path, module in theirs.named_modules() if isinstance(module, bitsandbytes_layers())
    }
    again = quantised(load(source, family, kind).model)
    for path, layer in layers.items():
        weight = theirs.get_submodule(path).weight
        if kind == "nf4":
            whole = functional().dequantize_4bit(weight.data, weight.quant_state)
        else:
            whole = functional().int8_vectorwise_dequant(weight.data, weight.SCB)
        assert torch.equal(layer.quantised.dequantised(torch.float32), whole), path
        values = again[path].quantised.values  # type: ignore[attr-defined]
        assert torch.equal(layer.quantised.values, values), path  # type: ignore[attr-defined]
    asked = load(folder, family, kind)
    assert torch.equal(logits(asked.model), logits(own.model))
    with pytest.raises(ValueError, match=f"its weights are in {kind} already, and fp8 is asked"):
        load(folder, family, "fp8")


def test_the_fast_decoder_serves_it(stored: Any) -> None:
    folder, family, kind, *_ = stored
    decoder = build_decoder(load(folder, family), "auto", FastLimits(2, 64, 1), {})
    assert isinstance(decoder, ModelRunner)
    assert decoder.info.weights == f"{kind} (float32 activations): as its folder has it"


def test_the_reference_decoder_serves_what_the_fast_one_cannot(base: Any) -> None:
    folder, family = base
    decoder = build_decoder(load(folder, family, "fp8"), "reference", FastLimits(2, 64, 1), {})
    assert isinstance(decoder, PeftDecoder)


def test_sharded_folders(base: Any, tmp_path: Path) -> None:
    folder, family = base
    model = load(folder, family).model
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = load(folder, family, "nf4").model, load(tmp_path, family, "nf4").model
    assert torch.equal(logits(one), logits(many))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Most of its bytes are in linear layers."""
    options = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    return make_tiny_llama(tmp_path / "wide", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_size_is_never_there(
    wide: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it loads there are the quantised weights so far, and one plain layer."""
    gc.collect()
    gc.freeze()  # what is there already is not among the objects that gc lists
    sizes: list[int] = []
    seen: list[int] = []

    def watched(weight: torch.Tensor, kind: Kind) -> Any:
        sizes.append(weight.nbytes)
        seen.append(num_bytes(live_tensors()))
        return quantise(weight, kind)

    monkeypatch.setattr(loader, "quantise", watched)
    model = load(wide, "causal", kind).model
    layers = quantised(model)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    whole = parameters + sum(layer.quantised.num_bytes for layer in layers.values())
    assert len(sizes) == len(layers) == 6 * 7
    assert max(seen) <= whole + max(sizes)
    assert seen[-1] > seen[0] + whole / 3, "the count sees what is loaded"
    assert max(seen) < 0.5 * sum(p.nbytes for p in load_model(wide).parameters())


def live_tensors() -> Iterator[torch.Tensor]:
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and not found.is_meta:
            yield found


def num_bytes(tensors: Iterator[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def changed(folder: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of the folder with these tensors of its first q instead, or without them."""
    shutil.copytree(folder, target)
    state = load_file(target / "model.safetensors")
    for name, tensor in tensors.items():
        key = f"model.layers.0.self_attn.q_proj.{name}"
        state.pop(key)
        if tensor is not None:
            state[key] = tensor
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("small") / "llama")


def saved(small: Path, kind: Kind, folder: Path) -> Path:
    by_bitsandbytes(small, kind).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)
    return folder


def test_an_old_layout_is_refused(small: Path, tmp_path: Path) -> None:
    folder = saved(small, "int8", tmp_path / "int8")
    old = changed(folder, tmp_path / "old", weight_format=torch.tensor(1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"q_proj: bitsandbytes' weight_format is 1, of an old"):
        load(old, "causal")


@pytest.mark.parametrize("name", ["weight.absmax", "weight.quant_state.bitsandbytes__nf4"])
def test_a_missing_part_is_named(small: Path, tmp_path: Path, name: str) -> None:
    folder = saved(small, "nf4", tmp_path / "nf4")
    with pytest.raises(ValueError, match=f"q_proj: the folder has no {name} of it"):
        load(changed(folder, tmp_path / "cut", **{name: None}), "causal")


def test_other_blocks_are_refused(small: Path, tmp_path: Path) -> None:
    folder = saved(small, "nf4", tmp_path / "nf4")
    state = {"blocksize": 128, "shape": [64, 64], "nested_offset": 0.0}
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    other = {"weight.quant_state.bitsandbytes__nf4": packed}
    with pytest.raises(ValueError, match="q_proj: it is stored in blocks of 128 with the shape"):
        load(changed(folder, tmp_path / "other", **other), "causal")


def test_another_quantization_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "gptq"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised by 'gptq', which is neither"):
        load(folder, "causal")


def test_weights_that_cannot_be_quantised_are_named(small: Path, tmp_path: Path) -> None:
    weight = torch.full((64, 64), torch.inf)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj: a weight .* NaN or infin"):
        load(changed(small, tmp_path / "inf", weight=weight), "causal", "int8")
