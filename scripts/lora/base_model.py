"""Load a base model, plain or quantised."""

import contextlib
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from adapters.bases.models import Family
from deployments.engine.model_loader import bitsandbytes_config
from deployments.engine.models.loaded_weights import config_of, load_weights
from deployments.engine.quantised.loader import wo_quantised
from scripts.lora.errors import TrainingError

Quantization = Literal["none", "int8", "nf4"]


def load_base(path: Path, family: Family, dtype: str, **options: Any) -> Any:
    """Return the model of folder `path`, from safetensors alone.

    Args:
        dtype: torch's name for it.
        options: further ones of transformers' `from_pretrained`.

    Raises:
        TrainingError: transformers cannot read it, or its files are not all of its weights.
    """
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    wanted = getattr(torch, dtype)
    try:
        return load_weights(model_class, path, config_of(path, wanted), dtype=wanted, **options)
    except ValueError as error:
        raise TrainingError(str(error)) from None


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
    config = bitsandbytes_config(quantization, getattr(torch, dtype))
    # T5's `wo` overflows float16. A server quantises it with nf4 too.
    everything = quantization == "nf4" and dtype != "float16"
    try:
        with wo_quantised() if everything else contextlib.nullcontext():
            return load_base(
                path, family, dtype, quantization_config=config, device_map={"": device}
            )
    except ImportError as error:
        raise TrainingError(
            f"--quantization {quantization} needs bitsandbytes: {error}; install it, or leave "
            "--quantization out"
        ) from None
