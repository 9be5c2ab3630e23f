"""Compare the copies of the base model's embeddings that PEFT saves with some adapters.

PEFT saves the base weights of `embed_tokens` and `lm_head` beside an adapter that targets them, and
writes them into the base model when it loads the adapter: a copy that differs would change every
other adapter's answers. One that differs only by rounding (the adapter was trained on the same base
in bfloat16) is not kept.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from deployments.engine.errors import AdapterNotSupported
from deployments.engine.lora.peft_features import WEIGHTS_FILE

_PREFIX, _WEIGHT = "base_model.model.", ".weight"
# What PEFT puts between a module's path and the base's own weight.
_INSIDE = (".base_layer.weight", ".token_adapter.base_layer.weight")
_WHOLE = (*_INSIDE, ".original_module.weight", ".modules_to_save.weight", _WEIGHT)
_RESIZED_HINT = (
    "train it without resizing the vocabulary, or serve it on the resized base, saved by "
    "save_pretrained"
)


def is_copy(name: str) -> bool:
    """Return whether a tensor of an adapter's file is a copy of a base weight, by its name."""
    return name.endswith(_INSIDE)


def base_name(name: str) -> str:
    """Return the name that a tensor of an adapter's file has in the base model, if it is there."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def ends_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a model's embedding and output layer, by module path."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        path: module.weight.data
        for path, module in model.named_modules(remove_duplicate=False)
        if any(module is end for end in ends)
    }


def without_copies(
    directory: Path, tensors: Mapping[str, torch.Tensor], ends: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter without modules_to_save that are no copies of the base's.

    Raises:
        AdapterNotSupported: naming the layers of which a copy is not the base's weight.
    """
    whole = {f"{_PREFIX}{path}{_WEIGHT}" for path in ends}
    copies = {name: tensor for name, tensor in tensors.items() if is_copy(name) or name in whole}
    _refuse_changed(directory, copies, ends)
    return {name: tensor for name, tensor in tensors.items() if name not in copies}


def _refuse_changed(
    directory: Path, copies: Mapping[str, torch.Tensor], ends: Mapping[str, torch.Tensor]
) -> None:
    paths = {_path_of(name): tensor for name, tensor in copies.items()}
    problems = [
        f"{path} has a base weight of its own, which is not the base's"
        for path, tensor in paths.items()
        if path not in ends or not _is_same(tensor, ends[path])
    ]
    if problems:
        hint = "train it on this base, without resizing its embeddings"
        raise AdapterNotSupported(directory, problems, hint)


def check_vocabulary(directory: Path, ends: Mapping[str, torch.Tensor]) -> None:
    """Refuse an adapter that was trained on the base with a vocabulary of another size.

    PEFT saves the embedding and the output layer beside such an adapter, whatever it trains.

    Args:
        ends: the base's embedding and output layer, with or without their data, by module path.

    Raises:
        AdapterNotSupported: naming the layers and both sizes.
    """
    sizes = {path: tuple(weight.shape) for path, weight in ends.items()}
    found = {}
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        for name in filter(lambda name: name.endswith(_WHOLE), file.keys()):
            path, shape = _path_of(name), tuple(file.get_slice(name).get_shape())
            if path in sizes and shape[1:] == sizes[path][1:] and shape != sizes[path]:
                found[path] = shape[0]
    if found:
        problems = [
            f"{path} has {size} tokens, and the base's has {sizes[path][0]}"
            for path, size in found.items()
        ]
        raise AdapterNotSupported(directory, problems, _RESIZED_HINT)


def repeats_base(directory: Path, name: str, base: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a tensor of an adapter's file is the base's weight of that name, or a copy
    that `check_copies` compares.

    Args:
        base: the base's weights by their names.
    """
    own = base.get(name.removeprefix(_PREFIX))
    if own is None:
        return is_copy(name)
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        return name in file.keys() and _is_same(file.get_tensor(name), own)  # noqa: SIM118


def check_copies(directory: Path, base: Mapping[str, torch.Tensor]) -> None:
    """Refuse an adapter whose file holds base weights that are not the base's.

    Raises:
        AdapterNotSupported: naming the layers.
    """
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        copies = {name: file.get_tensor(name) for name in filter(is_copy, file.keys())}
    _refuse_changed(directory, copies, base)


@contextlib.contextmanager
def kept_ends(directory: Path, base: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put the base's weights back, inside whatever PEFT has put there, where the adapter's file has
    copies of them."""
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        paths = {_path_of(name) for name in filter(is_copy, file.keys())}
    places = {base[path].data_ptr(): base[path] for path in paths if path in base}
    own = {place: weight.clone() for place, weight in places.items()}
    try:
        yield
    finally:
        for place, weight in places.items():
            weight.copy_(own[place])


@contextlib.contextmanager
def kept_weights(directory: Path, base: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put the base's weights back where PEFT has written an adapter's over them.

    An adapter with trained modules (modules_to_save) may have more weights in its file, as those of
    resized or tied embeddings: PEFT puts them into the base model, where all adapters use them.

    Args:
        base: its weights by their names, as PEFT may change them.

    Raises:
        AdapterNotSupported: the weights that PEFT has written were not the base's.
    """
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        names = {name.removeprefix(_PREFIX): name for name in file.keys()}  # noqa: SIM118
    own = {path: base[path].clone() for path in names if path in base}
    problems = []
    try:
        yield
    finally:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            for path, weight in own.items():
                if torch.equal(base[path], weight):
                    continue
                base[path].copy_(weight)
                if not _is_same(file.get_tensor(names[path]), weight):
                    problems.append(f"{path} has weights of its own, for all adapters")
    if problems:
        hint = "train it on this base, without resizing or tying its embeddings"
        raise AdapterNotSupported(directory, problems, hint)


def _path_of(name: str) -> str:
    """Return the path of the module of which a tensor with one of the endings _WHOLE is."""
    ending = max((ending for ending in _WHOLE if name.endswith(ending)), key=len)
    return name.removeprefix(_PREFIX).removesuffix(ending)


def _is_same(copy: torch.Tensor, base: torch.Tensor) -> bool:
    """Return whether two weights are equal, in the coarser of their two dtypes."""
    coarse = min((base.dtype, copy.dtype), key=lambda dtype: dtype.itemsize)
    own, other = base.to(coarse), copy.to(device=base.device, dtype=coarse)
    return own.shape == other.shape and torch.equal(own, other)
