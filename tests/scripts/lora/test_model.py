"""How a base model is loaded for training; loading itself is replaced where it needs a GPU."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM, T5PreTrainedModel

from scripts.lora.errors import TrainingError
from scripts.lora.model import LoraSettings, build

LORA = LoraSettings(
    rank=2, alpha=4, dropout=0, target_modules=None, layers=None, rslora=False, init_adapter=None
)


class Loaded(Exception):
    """Instead of a model: what it would have been loaded with."""

    def __init__(self, kept_in_float32: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.kept_in_float32 = kept_in_float32
        self.options = options


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, **options: Any) -> Any:
        raise Loaded(T5PreTrainedModel._keep_in_fp32_modules, options)

    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", load)
    monkeypatch.setattr("scripts.lora.base_model.config_of", lambda path, dtype: None)


def load(quantization: Any, dtype: str) -> Loaded:
    with pytest.raises(Loaded) as caught:
        build(
            Path("t5"),
            "seq2seq",
            LORA,
            dtype=dtype,
            quantization=quantization,
            device="cuda",
            gradient_checkpointing=False,
        )
    return caught.value


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("quantization", "dtype", "kept"),
    [
        ("nf4", "bfloat16", None),  # a third of flan-t5-xl's weights would stay in float32
        ("nf4", "float16", ["wo"]),  # it overflows there
        ("int8", "bfloat16", ["wo"]),  # LLM.int8() multiplies in float16
    ],
)
def test_when_the_wo_of_t5_is_quantised(quantization: Any, dtype: str, kept: Any) -> None:
    assert load(quantization, dtype).kept_in_float32 == kept
    assert T5PreTrainedModel._keep_in_fp32_modules == ["wo"], "put back, also after an error"


@pytest.mark.usefixtures("loader")
def test_quantisation_settings() -> None:
    nf4 = load("nf4", "bfloat16").options
    config = nf4["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant
    assert (nf4["device_map"], nf4["use_safetensors"]) == ({"": "cuda"}, True)
    assert load("int8", "bfloat16").options["quantization_config"].load_in_8bit


@pytest.mark.usefixtures("loader")
def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, **options: Any) -> Any:
        raise ImportError("no bitsandbytes")

    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", load)
    with pytest.raises(TrainingError, match="--quantization nf4 needs bitsandbytes"):
        build(
            Path("t5"),
            "seq2seq",
            LORA,
            dtype="bfloat16",
            quantization="nf4",
            device="cuda",
            gradient_checkpointing=False,
        )
