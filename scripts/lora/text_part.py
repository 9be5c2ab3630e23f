"""Make an adapter of a model that reads images one of its text part, which has other names.

transformers calls the layers of the whole model `model.language_model.layers`, formerly
`language_model.model.layers`, and those of its text part (scripts/save_text_part.py)
`model.layers`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft.utils.other import get_pattern_key

from adapters.checks.lora_tensors import is_of_whole_model, name_in_text_part

_PREFIX = "base_model.model."  # PEFT's, of every tensor
_HEAD = f"{_PREFIX}lm_head."
_LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector|bias)\b.*$")
# Of an adapter's configuration: they choose layers by name or number, or name the whole model.
_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping")
_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
_NAMED = ("modules_to_save", "trainable_token_indices")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Hold an adapter of a text part: its configuration, its tensors, and the names of those of the
    whole model's that only images reach."""

    config: dict[str, Any]
    tensors: dict[str, Any]
    left_out: Sequence[str]


def text_part_of(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> TextPart:
    """Return the adapter as one of the text part: the same products on the same layers.

    What it has for layers that images pass through changes no answer to a text, and is left out.
    The layers are named one by one, since a pattern that chose them need not match the new names.
    """
    kept = {
        name: name.removeprefix(_PREFIX)
        for name in tensors
        if is_of_whole_model(name) or name.startswith(_HEAD)
    }
    layers = {path[: found.start()] for path in kept.values() if (found := _LORA.search(path))}
    new: dict[str, Any] = {**config, "target_modules": sorted(map(name_in_text_part, layers))}
    new |= {field: None for field in _CHOICES if config.get(field) is not None}
    for field, default in _PATTERNS.items():
        patterns = config.get(field) or {}
        matched = {layer: patterns.get(get_pattern_key(list(patterns), layer)) for layer in layers}
        named = {name_in_text_part(at): own for at, own in matched.items() if own is not None}
        new[field] = {at: own for at, own in sorted(named.items()) if own != config.get(default)}
    for field in _NAMED:
        value = config.get(field)
        if isinstance(value, Mapping):
            new[field] = {name_in_text_part(name): own for name, own in value.items()}
        elif isinstance(value, list):
            new[field] = list(map(name_in_text_part, value))
    return TextPart(
        new,
        {name_in_text_part(name): tensors[name] for name in kept},
        [name for name in tensors if name not in kept],
    )
