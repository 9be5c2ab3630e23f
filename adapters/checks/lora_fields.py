"""Have the fields of an adapter_config.json the types that PEFT reads them with?

PEFT raises whatever comes up in the middle of loading for one that has not, or takes the value for
another: a text instead of a list for its letters, 1 for true.
"""

from collections.abc import Mapping
from typing import Any

_OBJECTS = (
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "loftq_config",
    "lora_ga_config",
    "monteclora_config",
    "use_bdlora",
    "velora_config",
)
_FLAGS = (
    "ensure_weight_tying",
    "fan_in_fan_out",
    "lora_bias",
    "use_dora",
    "use_qalora",
    "use_rslora",
)
_NAMES = ("modules_to_save", "target_parameters")  # lists of texts
_TEXTS = ("exclude_modules", "layers_pattern", "target_modules")  # the same, or one text
_BLOCKS = "use_bdlora"


def check_fields(config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the types of a LoRA configuration's fields; empty if nothing is.

    null is right everywhere: PEFT takes its default.
    """
    problems = []
    for names, is_right, expected in (
        (_OBJECTS, _is_object, "an object or null is expected"),
        (_FLAGS, lambda value: isinstance(value, bool), "true or false is expected"),
        (_NAMES, _are_texts, "a list of texts is expected"),
        (_TEXTS, lambda value: isinstance(value, str) or _are_texts(value),
         "text or a list of texts is expected"),
        (("layers_to_transform",), lambda value: _is_count(value) or _are_counts(value),
         "the number of a layer or a list of them is expected"),
        (("alora_invocation_tokens",), _are_counts, "a list of token ids is expected"),
        (("trainable_token_indices",), _are_tokens,
         "a list of token ids is expected, or an object of such lists by module"),
        (("init_lora_weights",), lambda value: isinstance(value, bool | str),
         "true, false or the name of an initialisation is expected"),
    ):  # fmt: skip
        for name in names:
            value = config.get(name)
            if value is not None and not is_right(value):
                problems.append(f"{name} is {shown(value)}; {expected}")
    return problems + _check_blocks(config.get(_BLOCKS))


def num_blocks(config: Mapping[str, Any]) -> int:
    """Return in how many blocks BD-LoRA cuts a weight; 1 if the configuration asks for none."""
    blocks = config.get(_BLOCKS)
    found = blocks.get("nblocks", 1) if isinstance(blocks, dict) else 1
    return found if _is_count(found) and found else 1


def shown(value: object) -> str:
    """Return a value in a message, printable and not too long."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_blocks(blocks: object) -> list[str]:
    if not isinstance(blocks, dict):
        return []
    problems = []
    if not _is_count(found := blocks.get("nblocks", 1)) or not found:
        problems.append(f"nblocks of {_BLOCKS} is {shown(found)}; 1 or more is expected")
    for name in ("target_modules_bd_a", "target_modules_bd_b"):
        value = blocks.get(name)
        if value is not None and not _are_texts(value):
            problems.append(f"{name} of {_BLOCKS} is {shown(value)}; a list of texts is expected")
    return problems


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_tokens(value: object) -> bool:
    return all(map(_are_counts, value.values() if isinstance(value, dict) else [value]))
