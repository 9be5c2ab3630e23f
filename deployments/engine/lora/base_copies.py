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
from deployments.engine.lora.peft_features import WEIGHTS_FILE, read_config

_PREFIX, _WEIGHT = "base_model.model.", ".weight"
# What PEFT puts between a module's path and the base's own weight.
_INSIDE = (".base_layer.weight", ".token_adapter.base_layer.weight")
_WHOLE = (*_INSIDE, ".original_module.weight", ".modules_to_save.weight", _WEIGHT)
# Ending of a tensor of an embedding or an output layer -> the axis along which its tokens are.
_TOKENS_AT = {**dict.fromkeys(_WHOLE, 0), ".lora_embedding_A": 1, ".lora_B.weight": 0}
_RESIZED_HINT = (
    "train it on this base without resizing the vocabulary, or serve it on the resized base, saved "
    "by save_pretrained"
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


def vocabulary_of(model: Any) -> dict[str, int]:
    """Return the tokens of a model's embedding and output layer, by module path."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    sizes = {
        path: getattr(module, "num_embeddings" if module is embedding else "out_features", None)
        for path, module in model.named_modules(remove_duplicate=False)
        if module is embedding or module is head
    }
    return {path: size for path, size in sizes.items() if size is not None}


def check_vocabulary(directory: Path, sizes: Mapping[str, int]) -> None:
    """Refuse an adapter that was trained on the base with a vocabulary of another size.

    PEFT saves the embedding and the output layer beside such an adapter, whatever it trains.

    Args:
        sizes: `vocabulary_of` the base.

    Raises:
        AdapterNotSupported: naming the layers and both sizes.
    """
    found, most = {}, max(sizes.values(), default=0)
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        for name in filter(_ending_of, file.keys()):
            path, axis = _path_of(name), _TOKENS_AT[_ending_of(name)]
            size = [*file.get_slice(name).get_shape(), 0, 0][axis]
            if size != sizes.get(path, size):
                found[path] = size
    problems = [
        f"{path} has {n} tokens, and the base's has {sizes[path]}" for path, n in found.items()
    ]
    trained = read_config(directory).get("trainable_token_indices") or []
    lists = trained.values() if isinstance(trained, dict) else [trained]
    added = sorted({t for own in lists for t in own if isinstance(t, int) and t >= most})
    if sizes and added:
        problems.append(f"trainable_token_indices has {added}; the base has 0 to {most - 1}")
    if problems:
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


def _ending_of(name: str) -> str:
    """Return the longest of the endings in _TOKENS_AT that a tensor's name has; "" if none."""
    return max((ending for ending in _TOKENS_AT if name.endswith(ending)), key=len, default="")


def _path_of(name: str) -> str:
    """Return the path of the module of a tensor that has such an ending."""
    return name.removeprefix(_PREFIX).removesuffix(_ending_of(name))


def _is_same(copy: torch.Tensor, base: torch.Tensor) -> bool:
    """Return whether two weights are equal, in the coarser of their two dtypes."""
    coarse = min((base.dtype, copy.dtype), key=lambda dtype: dtype.itemsize)
    own, other = base.to(coarse), copy.to(device=base.device, dtype=coarse)
    return own.shape == other.shape and torch.equal(own, other)
