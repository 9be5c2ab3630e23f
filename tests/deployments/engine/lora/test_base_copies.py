"""Whole embeddings and output layers in an adapter's file, in both decoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.validation import check_adapter
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported
from deployments.engine.model_loader import Family, load_pretrained
from deployments.engine.model_runner import ModelRunner
from tests.deployments.engine.lora.test_peft_features import answer, one_answer
from tests.deployments.engine.test_model_runner import changed_config, one_thread
from tests.oracle import Oracle
from tests.tiny_models import load_model, make_adapter

__all__ = ["one_thread"]  # a fixture

LIMITS = FastLimits(max_rows=2, num_positions=64, max_adapters=3)
Catalogs = dict[str, tuple[Path, Path]]
DECODERS = ("fast", "reference")
# As PEFT names them: of an adapter on other layers, of pairs, of whole modules and of tokens.
RESIZED: Mapping[str, dict[str, Any]] = {
    "weight": {},
    "base_layer.weight": {},
    "modules_to_save.weight": {"modules_to_save": ["lm_head"]},
    "original_module.weight": {"modules_to_save": ["lm_head"]},
    "token_adapter.base_layer.weight": {"trainable_token_indices": [9]},
}


@pytest.mark.parametrize(("name", "more"), [("weight", -2), *((name, 2) for name in RESIZED)])
def test_a_vocabulary_of_another_size_is_named(
    tiny_catalogs: Catalogs, tmp_path: Path, name: str, more: int
) -> None:
    """Tokens were added for training, or the padding behind the vocabulary was cut off. PEFT saves
    both ends then, and raises a list of mismatches when it reads them."""
    base_dir, plain = tiny_catalogs["llama"][0], tiny_catalogs["llama"][1] / "weights" / "derm"
    odd = changed_config(plain, tmp_path / "odd", **RESIZED[name])
    file, size = odd / "adapter_model.safetensors", load_model(base_dir).config.vocab_size
    ends = {
        f"base_model.model.{end}.{name}": torch.ones(size + more, 64)
        for end in ("model.embed_tokens", "lm_head")
    }
    save_file(load_file(file) | ends, file)
    assert check_adapter(odd, str(base_dir)) == []
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    named = f"lm_head has {size + more} tokens, and the base's has {size}; model.embed_tokens has"
    for kind in ("reference", "auto"):  # which it does not make the slower one
        decoder: Any = build_decoder(base, kind, LIMITS, {"odd": odd})
        with pytest.raises(AdapterNotSupported, match=f"{named}.*without resizing the vocabulary"):
            decoder.load_adapter("odd", odd)
        assert decoder.info.adapters == set()
    assert isinstance(decoder, ModelRunner)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trainable_token_indices": [5, 400]}, r"indices has \[400\]; the base has 0 to 399"),
        ({"trainable_token_indices": {"lm_head": [401]}}, r"has \[401\]; the base has 0 to 399"),
        ({"targets": ["embed_tokens"]}, "model.embed_tokens has 402 tokens, and the base's has"),
        ({"targets": ["lm_head", "q_proj"]}, "lm_head has 402 tokens, and the base's has 400"),
    ],
)
def test_added_tokens_are_named_without_whole_ends(
    tiny_catalogs: Catalogs, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    """Where PEFT cannot read the base's configuration, it does not know that it was resized."""
    base_dir, odd = tiny_catalogs["llama"][0], tmp_path / "odd"
    trained = {key: value for key, value in options.items() if key == "targets"}
    make_adapter(base_dir, odd, base_name="b", seed=3, **trained)
    file = odd / "adapter_model.safetensors"
    wider = {
        name: torch.ones([402 if size == 400 else size for size in tensor.shape])
        for name, tensor in load_file(file).items()
        if "base_layer" not in name
    }
    save_file(wider, file)
    if not trained:
        odd = changed_config(odd, tmp_path / "more", **options)
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    for kind in ("reference", "auto"):
        decoder: Any = build_decoder(base, kind, LIMITS, {"odd": odd})
        with pytest.raises(AdapterNotSupported, match=named):
            decoder.load_adapter("odd", odd)
    assert isinstance(decoder, ModelRunner)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("model", ["llama", "flan_t5"])
def test_ends_saved_beside_plain_layers_must_be_the_bases(
    tiny_catalogs: Catalogs, tmp_path: Path, model: str, kind: Any
) -> None:
    """As save_embedding_layers=True has it."""
    base_dir = tiny_catalogs[model][0]
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    make_adapter(base_dir, plain, base_name="b", seed=3)
    peft_model = PeftModel.from_pretrained(load_model(base_dir), str(plain))
    peft_model.save_pretrained(str(odd), save_embedding_layers=True)
    file = odd / "adapter_model.safetensors"
    tensors, name = load_file(file), "base_model.model.lm_head.weight"
    assert name in tensors
    assert check_adapter(odd, "b") == []
    family: Family = "causal" if model == "llama" else "seq2seq"
    base = load_pretrained(base_dir, family, device="cpu", dtype="float32")
    decoder: Any = build_decoder(base, kind, LIMITS, {"odd": odd})
    save_file(tensors | {name: tensors[name].bfloat16()}, file)
    decoder.load_adapter("odd", odd)
    expected = Oracle(base_dir, {"plain": plain}).generate((5, 9, 17, 4, 33, 8), "plain", 8)
    found = one_answer(decoder, "odd") if kind == "reference" else answer(decoder, "odd")
    assert found[: len(expected)] == expected
    save_file(tensors | {name: tensors[name] + 0.5}, file)
    with pytest.raises(AdapterNotSupported, match="of its own.* without resizing"):
        decoder.load_adapter("odd", odd)
    assert decoder.info.adapters == {"odd"}
