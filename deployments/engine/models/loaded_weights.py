"""Load a model's files with transformers, every weight of them, in one dtype.

By itself it draws what is missing, leaves out what it has no place for, and only logs both.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

# What classes of transformers raise of a value that they have no case for.
_UNKNOWN_VALUE = (KeyError, TypeError, AttributeError, AssertionError)


def config_of(path: Path, dtype: torch.dtype) -> Any:
    """Return the configuration of a folder, whose own code is never run.

    Args:
        dtype: of all weights, whatever the configuration says.

    Raises:
        OSError, ValueError: transformers cannot read it.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # whatever a strange config.json makes it raise
        raise _of_config(path, error) from error
    set_dtype(config, dtype)
    return config


def _of_config(path: Path, error: Exception) -> ValueError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(
        f"{path}: transformers {transformers.__version__} cannot make a model by its config.json "
        f"({said}): correct it there"
    )


def load_weights(model_class: Any, path: Path, config: Any, **options: Any) -> Any:
    """Return the model of a folder, from safetensors alone.

    Args:
        model_class: of transformers, or one of its `Auto` classes.
        options: further ones of its `from_pretrained`.

    Raises:
        OSError, ValueError: transformers cannot read it, or what `check_loaded` raises.
    """
    try:
        model, report = model_class.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_loaded names them
            **options,
        )
    except _UNKNOWN_VALUE as error:
        raise _of_config(path, error) from error
    check_loaded(path, model, report)
    return model


def set_dtype(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Ask for one dtype in a configuration and in all that it holds: transformers itself goes one
    level deep, and T5Gemma 2's encoder holds another."""
    config.dtype = dtype
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            set_dtype(part, dtype)


def check_loaded(path: Path, model: PreTrainedModel, report: Mapping[str, Iterable[Any]]) -> None:
    """Refuse a model that is not the one of its folder.

    What the model has no layer for is no matter: another head, a part for images.

    Args:
        report: what transformers returns with `output_loading_info`.

    Raises:
        ValueError: a weight is missing or has another shape, or the files hold a weight of a layer
            that the model computes without it, or layers that config.json does not count.
    """
    name = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path}: its files lack {_first_of(missing)}, where {name} would have random numbers: "
            "copy the folder again, or correct its config.json"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        key, stored, expected = mismatched[0]
        raise ValueError(
            f"{path}: {key} has the shape {list(stored)} in its files and {list(expected)} by its "
            f"config.json ({len(mismatched)} such weights): correct config.json, or copy the "
            "folder again"
        )
    if left_over := sorted(key for key in report["unexpected_keys"] if _is_of_a_layer(model, key)):
        raise ValueError(
            f"{path}: its files hold {_first_of(left_over)}, which {name} would leave out by its "
            "config.json: correct config.json (architectures, biases, the number of layers)"
        )


def _first_of(keys: list[str]) -> str:
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return keys[0] + more


def _is_of_a_layer(model: PreTrainedModel, key: str) -> bool:
    """Return whether a tensor is of a layer that has weights, or of one behind the last."""
    module: Any = model
    for step in key.split(".")[:-1]:
        if isinstance(module, torch.nn.ModuleList) and step.isdecimal():
            if int(step) >= len(module):
                return True
            module = module[int(step)]
        elif isinstance(found := getattr(module, step, None), torch.nn.Module):
            module = found
        else:
            return False
    return any(True for _ in module.parameters(recurse=False))
