"""Are the tensors of a safetensors file LoRA weights? Pairs, ranks, finite values, some effect."""

import re
from collections.abc import Mapping
from pathlib import Path

from adapters.checks.safetensors_file import NotSafetensors, open_tensors

Shape = tuple[int, ...]
# This tensor, its partner, and the axis of this one that is the rank: A is (r, in), B is (out, r).
_PAIRS = (
    (".lora_A.", ".lora_B.", 0),
    (".lora_B.", ".lora_A.", 1),
    (".lora_embedding_A", ".lora_embedding_B", 0),
    (".lora_embedding_B", ".lora_embedding_A", 1),
)
# Zeros before training, so zeros here mean no effect.
_EFFECT = (".lora_B.", ".lora_embedding_A")
# PEFT saves the base's embedding and output layer beside their pairs, or if they were resized. The
# decoders compare them with their own (deployments/engine/lora/base_copies.py).
_ENDS = ("base_layer", "embed_tokens", "shared", "lm_head", "lm_head.out_proj")
_BASE_COPIES = tuple(f".{module}.weight" for module in _ENDS)
# Of a layer of text within a model that reads images too, as transformers names it and named it.
_WHOLE = re.compile(r"^(base_model\.model\.)?(model\.)?language_model\.")


def is_of_whole_model(name: str) -> bool:
    """Return whether a tensor adapts text within a model that reads images, which is not served."""
    found = _WHOLE.match(name)
    return found is not None and found[1] is not None


def name_in_text_part(name: str) -> str:
    """Return what a tensor or layer of the whole model is called in its text part by itself."""
    return _WHOLE.sub(r"\1\2", name)


def check_tensors(
    file: Path, ranks: set[int] | None, *, only_lora: bool, num_blocks: int = 1
) -> list[str]:
    """Return what is wrong with an adapter's weights; empty if nothing is.

    Args:
        ranks: that the configuration names; None if any will do.
        only_lora: the configuration does not ask for whole weights with the LoRA pairs.
        num_blocks: of which a lora_B may hold those on its diagonal alone, one below the other
            (BD-LoRA): it is as much narrower then.
    """
    problems = []
    shapes: dict[str, Shape] = {}
    has_effect = False
    try:
        with open_tensors(file) as tensors:
            for tensor in tensors:
                shapes[tensor.name] = tensor.shape
                is_effect = any(part in tensor.name for part in _EFFECT)
                has_effect = has_effect or (is_effect and not tensor.is_zero)
                is_known = ".lora_" in tensor.name or tensor.name.endswith(_BASE_COPIES)
                if only_lora and not is_known:
                    problems.append(f"{tensor.name} is not a LoRA weight (lora_A or lora_B)")
                if not tensor.is_finite:
                    problems.append(f"{tensor.name} holds NaN or infinity")
    except (NotSafetensors, OSError) as error:
        return [f"cannot be read as safetensors ({error})"]
    if not shapes:
        problems.append("holds no tensor")
    elif not has_effect:
        problems.append("every lora_B is zero, so the adapter would change nothing")
    if any(map(is_of_whole_model, shapes)):
        problems.append(
            "is of a model that reads images too, and its text part is served, whose layers have "
            "other names: convert it (python -m scripts.convert_adapter --adapter FOLDER "
            "--base_model BASE --out NEW)"
        )
    for name in shapes:  # others, as DoRA's magnitudes, are for the decoder to judge
        problems += _check_pair(name, shapes, ranks, num_blocks)
    return problems


def _check_pair(
    name: str, shapes: Mapping[str, Shape], ranks: set[int] | None, num_blocks: int
) -> list[str]:
    """Check that the partner of a lora_A or lora_B is there, and of the same rank."""
    shape = shapes[name]
    for this, other, rank_axis in _PAIRS:
        if this not in name or not name.endswith((".weight", this)):
            continue
        if len(shape) != 2:
            return [f"{name} has the shape {shape}; two dimensions are expected"]
        partner = shapes.get(name.replace(this, other))
        if partner is None:
            return [f"{name} has no partner {other.strip('.')}"]
        if len(partner) != 2:
            return []  # named by itself
        of_a, of_b = (shape[0], partner[1]) if rank_axis == 0 else (partner[0], shape[1])
        if of_a not in (of_b, of_b * num_blocks):
            return [f"{name} {shape} and its partner {partner} differ in rank"]
        if ranks is not None and of_a not in ranks:
            return [f"{name} has rank {of_a}; the config says {sorted(ranks)}"]
    return []
