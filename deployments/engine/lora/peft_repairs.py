"""Let PEFT load each adapter as if it were the first one, where it (0.21) would not."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import (
    AuxiliaryTrainingWrapper,
    TrainableTokensWrapper,
    _get_module_names_tied_with_embedding,
)

from deployments.engine.errors import AdapterNotSupported
from deployments.engine.lora.base_copies import repeats_base
from deployments.engine.lora.peft_features import read_config

_ONE_KIND = "serve them in two applications, or train both in the same way"
_ONE_WAY = "train each module in one way"
_WRAPPING_FIELDS = ("trainable_token_indices", "modules_to_save", "target_modules")
# In PEFT's errors about a module that it has wrapped already.
_SIGNS_OF_WRAPPERS = (
    "ModulesToSaveWrapper(",
    "TrainableTokensWrapper(",
    "TrainableTokensLayer wraps an unknown layer type",
    ".token_adapter.",
    "cannot be applied to modules of type <class 'peft.",
    "as parameter 'weight' (torch.nn.Parameter or None expected)",
)
_OTHER_SHAPE = re.compile(
    r"size mismatch for (\S+): .*? torch\.Size\(\[(.*?)\]\) .*? torch\.Size\(\[(.*?)\]\)"
)
_MOST_NAMED = 2  # tensors in one message


def tied_modules(model: Any) -> list[str]:
    """Return the paths of a base model's modules whose weight is the embedding's."""
    names: list[str] = _get_module_names_tied_with_embedding(model)
    return names


@contextlib.contextmanager
def beside_others(tied: Sequence[str]) -> Iterator[None]:
    """Load an adapter beside others in here.

    PEFT looks for trained tokens in the file of each adapter as soon as one adapter has some, and
    no longer sees which modules are tied once an adapter wraps them (`ensure_weight_tying`).

    Args:
        tied: `tied_modules` of the base model without adapters.
    """
    of_all, seen = (
        TrainableTokensWrapper.adapter_state_dict_load_map,
        BaseTuner._get_module_names_tied_with_embedding,
    )

    def of_own(wrapper: Any, adapter_name: str) -> Any:
        return of_all(wrapper, adapter_name) if adapter_name in wrapper._adapters else {}

    TrainableTokensWrapper.adapter_state_dict_load_map = of_own
    BaseTuner._get_module_names_tied_with_embedding = lambda tuner: list(tied)
    try:
        yield
    finally:
        TrainableTokensWrapper.adapter_state_dict_load_map = of_all
        BaseTuner._get_module_names_tied_with_embedding = seen


def check_all_loaded(
    directory: Path,
    inner: str,
    loaded: Any,
    base: Mapping[str, torch.Tensor],
    taken: Collection[str] = (),
) -> None:
    """Refuse an adapter of whose file PEFT left something out, or that lacks some of its weights.

    PEFT only warns: what it has no layer for is dropped, and what is missing stays as it was drawn
    at random.

    Args:
        inner: PEFT's name for it.
        loaded: what PEFT's `load_adapter` returned.
        base: the base's weights by their names, which a file may repeat.
        taken: names of tensors that were loaded otherwise.

    Raises:
        AdapterNotSupported: naming the tensors.
    """
    own = (f".{inner}.", f".{inner}")
    missing = [name for name in loaded.missing_keys if own[0] in name or name.endswith(own[1])]
    left = [name for name in loaded.unexpected_keys if name not in taken]
    dropped = [name for name in left if not repeats_base(directory, name, base)]
    problems = [f"{name} is not in its file" for name in missing]
    problems += [f"{name} belongs to no layer that it adapts" for name in dropped]
    if problems:
        hint = "correct adapter_config.json, or save the adapter again with PEFT"
        raise AdapterNotSupported(directory, _first(problems, inner), hint)


def _first(problems: Sequence[str], inner: str) -> list[str]:
    """Return the first problems of an adapter that PEFT knows as `inner`, and how many follow."""
    shown = [problem.replace(f".{inner}", "") for problem in problems[:_MOST_NAMED]]
    more = len(problems) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def check_wrapped_once(directory: Path, inner: str, model: torch.nn.Module) -> None:
    """Refuse an adapter whose trained tokens PEFT has put around a module that is trained whole: it
    would answer with another adapter's weights, or without its own.

    Args:
        inner: PEFT's name for it.

    Raises:
        AdapterNotSupported: naming the module.
    """
    for path, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            inside = module.token_adapter.base_layer
            if isinstance(inside, AuxiliaryTrainingWrapper):
                whole, hint = "which another adapter trains whole", _ONE_KIND
                if inner in inside._adapters:
                    whole, hint = "and the whole of it, or of what is tied to it", _ONE_WAY
                raise AdapterNotSupported(directory, [f"it trains tokens of {path}, {whole}"], hint)


def check_runs_beside(directory: Path, configs: Sequence[Any]) -> None:
    """Refuse an adapter with which, or beside which, PEFT's layers would raise in every step.

    PEFT tells each layer which tokens have invoked an adapter, and those of target_parameters do
    not take it.

    Args:
        configs: PEFT's of this adapter and of those that are resident.

    Raises:
        AdapterNotSupported: naming the field.
    """
    fields = ("alora_invocation_tokens", "target_parameters")
    if all(any(getattr(config, field, None) for config in configs) for field in fields):
        own = [field for field in fields if read_config(directory).get(field)]
        others = [field for field in fields if field not in own]
        beside = f"{others[0]} of another adapter" if others else "each other"
        problem = f"{' and '.join(own)} beside {beside}: PEFT runs one of the two in a model"
        raise AdapterNotSupported(directory, [problem], _ONE_KIND)


def named_failure(
    directory: Path, error: Exception, inner: str, *, beside_others: bool
) -> AdapterNotSupported | None:
    """Return what PEFT's error means for an adapter. Returns None if it says so itself.

    Args:
        inner: PEFT's name for it.
        beside_others: whether other adapters are resident.
    """
    config, text = read_config(directory), " ".join(str(error).split())
    if config.get("use_qalora") and isinstance(error, RuntimeError):
        problem = "use_qalora is set, which PEFT can serve on bases of GPTQ alone"
        return AdapterNotSupported(directory, [problem], "train it without")
    parameters = config.get("target_parameters")
    is_left_out = any(f"{str(name).rpartition('.')[0]}.lora_" in text for name in parameters or ())
    if beside_others and parameters and (isinstance(error, ValueError) or is_left_out):
        problem = f"target_parameters is {parameters}, in a layer that another adapter has"
        return AdapterNotSupported(
            directory,
            [f"{problem} in target_modules or modules_to_save: PEFT wraps it once"],
            "serve them in two applications, or train both with target_modules",
        )
    if found := _OTHER_SHAPE.findall(text):
        problems = [f"{name} is ({shape}); the base needs ({own})" for name, shape, own in found]
        return AdapterNotSupported(directory, _first(problems, inner), "train it on this base")
    if beside_others and "unsupported variant combination" in text:
        asked = ", ".join(re.findall(r"'(\w+)'", text))
        problem = f"{asked} is set, in a layer that another adapter has in target_parameters"
        return AdapterNotSupported(directory, [f"{problem}: PEFT wraps it once"], _ONE_KIND)
    if any(sign in text for sign in _SIGNS_OF_WRAPPERS):
        fields = [f"{key} is {config[key]}" for key in _WRAPPING_FIELDS if config.get(key)]
        how, hint = "twice, itself or by a tie", _ONE_WAY
        if beside_others:
            how, hint = "that another adapter has otherwise", _ONE_KIND
        problem = f"{', '.join(fields)}, in a module {how}: PEFT wraps it once"
        return AdapterNotSupported(directory, [problem], hint)
    if isinstance(error, KeyError):  # of whole weights
        return AdapterNotSupported(
            directory, [f"{text} is not in its file"], "save it again with PEFT"
        )
    return None


def unwrap(model: Any, *, keeps_used: bool = False) -> None:
    """Replace PEFT's layers by the base model's own layers again.

    Args:
        keeps_used: those that still hold an adapter stay.
    """
    done: list[str] = []
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        if path.startswith(tuple(done)) or (keeps_used and module._get_available_adapters()):
            continue
        is_layer = isinstance(module, BaseTunerLayer)
        own = module.get_base_layer() if is_layer else module.original_module
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, own)
        done.append(f"{path}.")
