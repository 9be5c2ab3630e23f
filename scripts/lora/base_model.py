"""Load a base model, plain or quantised."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    T5PreTrainedModel,
)

from adapters.bases.models import Family
from scripts.lora.errors import TrainingError

Quantization = Literal["none", "int8", "nf4"]


def load_base(path: Path, family: Family, dtype: str, **options: Any) -> Any:
    """Return the model of folder `path`, from safetensors alone; `dtype` is torch's name for it."""
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    return model_class.from_pretrained(
        path, dtype=getattr(torch, dtype), use_safetensors=True, **options
    )


def load_quantised(
    path: Path, family: Family, dtype: str, quantization: Quantization, device: str
) -> Any:
    """Return the model on `device`, its linear layers in int8 or nf4 on request.

    Raises:
        TrainingError: quantisation or float16 without a GPU, or bitsandbytes missing.
    """
    if device == "cpu" and (quantization != "none" or dtype == "float16"):
        given = f"--quantization {quantization}" if quantization != "none" else "--dtype float16"
        raise TrainingError(f"{given} needs a GPU, and --device is cpu: leave it out there")
    if quantization == "none":
        return load_base(path, family, dtype).to(device)
    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            # T5 casts the input of `wo` to its weight's dtype, which must not be uint8.
            bnb_4bit_quant_storage=getattr(torch, dtype),
        )
    everything = quantization == "nf4" and dtype != "float16"
    try:
        with _with_wo_quantised() if everything else contextlib.nullcontext():
            return load_base(
                path, family, dtype, quantization_config=config, device_map={"": device}
            )
    except ImportError as error:
        raise TrainingError(
            f"--quantization {quantization} needs bitsandbytes: {error}; install it, or leave "
            "--quantization out"
        ) from None


@contextlib.contextmanager
def _with_wo_quantised() -> Iterator[None]:
    """Let T5's `wo` be quantised like the rest.

    Transformers keeps it out because its values overflow float16, through which LLM.int8()
    multiplies; NF4 multiplies in bfloat16, which has float32's range. In flan-t5-xl they are a
    third of the weights.
    """
    kept = T5PreTrainedModel._keep_in_fp32_modules
    T5PreTrainedModel._keep_in_fp32_modules = None
    try:
        yield
    finally:
        T5PreTrainedModel._keep_in_fp32_modules = kept
