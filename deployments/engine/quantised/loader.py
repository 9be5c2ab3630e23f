"""Quantise the linear layers of a base model while transformers loads it, one weight at a time.

transformers reads a tensor, renames it, and moves it to the device; each weight of a linear layer
is quantised there at once and its plain tensor freed before the next one is read, so a device never
holds the plain size of the model. The quantised weights wait on the host until the decoder has
stacked those of one product: on the device the single ones would leave holes that nothing fills.
A folder whose weights bitsandbytes quantised is read as it is, without bitsandbytes.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from deployments.engine.quantised.formats import BLOCK, nested_absmax
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import (
    Int8Weight,
    Kind,
    Nf4Weight,
    QuantisedWeight,
    quantise,
)

logger = logging.getLogger(__name__)

_METHOD = "polyclinic"
IMAGES = "model.encoder.vision_tower"  # T5Gemma 2's, which no text goes through
# Of one value, with its share of absmax; transformers asks for the memory of the whole at once.
_BYTES: Mapping[Kind, float] = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / BLOCK}
# What bitsandbytes saves of a layer, beside or behind the name of its weight.
_SCALES, _LAYOUT, _STATE = "SCB", "weight_format", "weight.quant_state.bitsandbytes__nf4"
_STORED = (  # the shortest last: the first that a name ends with is taken
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_map",
    "weight.absmax",
    _STATE,
    _LAYOUT,
    _SCALES,
    "weight",
)


class LoaderConfig(QuantizationConfigMixin):
    """Ask transformers for `Loader`.

    is_stored: the folder holds what bitsandbytes saved; else it holds plain weights.
    """

    def __init__(self, kind: Kind, *, is_stored: bool) -> None:
        self.quant_method = _METHOD
        self.kind, self.is_stored = kind, is_stored


def stored_kind(config: Any) -> Kind | None:
    """Return how the weights of a folder with this config are quantised. None: they are plain.

    Raises:
        ValueError: in another way than bitsandbytes' int8 or nf4.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    if fields.get("load_in_8bit"):
        return "int8"
    if fields.get("load_in_4bit") and fields.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    raise ValueError(
        f"the weights are quantised by {fields.get('quant_method')!r}, which is neither "
        "bitsandbytes' int8 nor its nf4: name a folder of plain weights"
    )


def plain_layers(model: PreTrainedModel, kind: Kind) -> list[str]:
    """Return the layers that are not quantised, as patterns of transformers.

    They are those that bitsandbytes leaves: the output layer and what is tied to it; with int8 also
    T5's `wo`, whose inputs overflow the float16 through which LLM.int8() multiplies.
    """
    kept = model._keep_in_fp32_modules if kind == "int8" else None
    patterns: list[str] = HfQuantizer.get_modules_to_not_convert(model, None, kept)
    return patterns


@contextmanager
def wo_quantised() -> Iterator[None]:
    """Let bitsandbytes quantise T5's `wo` like the rest: for nf4, which multiplies in bfloat16.

    Its values do not overflow there, and in flan-t5-xl they are a fifth of the weights.
    """
    from transformers import MT5PreTrainedModel, T5PreTrainedModel, UMT5PreTrainedModel

    classes = (T5PreTrainedModel, MT5PreTrainedModel, UMT5PreTrainedModel)
    kept = [model_class._keep_in_fp32_modules for model_class in classes]
    for model_class in classes:
        model_class._keep_in_fp32_modules = None
    try:
        yield
    finally:
        for model_class, modules in zip(classes, kept, strict=True):
            model_class._keep_in_fp32_modules = modules


@register_quantizer(_METHOD)
class Loader(HfQuantizer):
    """Keep each quantised weight aside until all are there, then put it in its layer's place.

    Meanwhile the layer is a torch.nn.Linear with an empty weight, which transformers takes for
    loaded.
    """

    def __init__(self, quantization_config: LoaderConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.kind: Kind = quantization_config.kind
        # True: the tensors are loaded as they are. (transformers reads this of a folder's config.)
        self.pre_quantized = quantization_config.is_stored
        self._weights: dict[str, QuantisedWeight | None] = {}  # None: a problem was found
        self._problems: list[str] = []
        self._plain: list[str] = []

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        is_ours = self.param_needs_quantization(model, param_name)
        return _BYTES[self.kind] if is_ours else param.element_size()

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        if name != "weight" or self.pre_quantized:
            return path in self._weights
        module = model.get_submodule(path)
        return type(module) is torch.nn.Linear and should_convert_module(path, self._plain)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self)

    def get_weight_conversions(self) -> list[WeightConverter]:
        if not self.pre_quantized:
            return []
        return [WeightConverter(list(_STORED), "weight", [_Read(self)])]

    def take(
        self, name: str, plain: torch.Tensor, make: Callable[[], QuantisedWeight]
    ) -> torch.Tensor:
        """Keep what `make` returns for the weight `name`; returns an empty tensor in its place.

        Args:
            plain: of the dtype that the layer computes in.
        """
        path = name.removesuffix(".weight")
        self._weights[path] = None
        try:
            weight = make()
        except ValueError as error:  # transformers would log it, and raise without saying what
            self._problems.append(f"{path}: {error}")
        else:
            self._weights[path] = weight.to("cpu")
            if weight.kind != self.kind:
                self._problems.append(f"{path}: its weight is {weight.kind}, not {self.kind}")
        return torch.empty(0, dtype=plain.dtype, device=plain.device)

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        self._plain = [*plain_layers(model, self.kind), IMAGES]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self._problems:
            more = len(self._problems) - 1
            raise ValueError(self._problems[0] + (f" (and {more} layers more)" if more else ""))
        weights = {path: weight for path, weight in self._weights.items() if weight is not None}
        if not weights:
            raise ValueError(f"no linear layer of this base is in {self.kind}")
        for path, weight in weights.items():
            linear = model.get_submodule(path)
            bias = None if linear.bias is None else linear.bias.data
            own, device = linear.weight, linear.weight.device
            model.set_submodule(path, QuantisedLinear(weight, bias, own.dtype, device))
        kept = [path for path, module in model.named_modules() if type(module) is torch.nn.Linear]
        logger.info(
            "%d linear layers quantised to %s; %d left in %s: %s",
            *(len(weights), self.kind, len(kept), model.dtype),
            ", ".join(sorted({path.rpartition(".")[2] for path in kept})),
        )
        self._weights = {}
        self.remove_quantization_config(model)
        return model


class _Quantise(ConversionOps):
    """Quantise plain weights, as transformers hands them over one by one."""

    def __init__(self, loader: Loader) -> None:
        self.hf_quantizer = loader

    def convert(
        self, input_dict: Mapping[str, Any], *, model: Any = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        loader, found = self.hf_quantizer, {}
        for name, given in input_dict.items():
            weight = found[name] = _only(given)
            if loader.param_needs_quantization(model, name):
                make = functools.partial(quantise, weight, loader.kind)
                found[name] = loader.take(name, weight, make)
        return found


class _Read(ConversionOps):
    """Read what bitsandbytes saved of one layer, or the one tensor of a layer that is plain."""

    def __init__(self, loader: Loader) -> None:
        self.hf_quantizer = loader

    def __deepcopy__(self, memo: Any) -> "_Read":
        return self  # transformers copies it for each layer; the loader is one

    def convert(
        self,
        input_dict: Mapping[str, Any],
        *,
        model: Any = None,
        full_layer_name: str = "",
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        stored = {key: _only(given) for key, given in input_dict.items()}
        plain = model.get_parameter(full_layer_name)
        if len(stored) == 1:
            return {"weight": stored["weight"].to(plain.dtype)}
        like = torch.empty(0, dtype=plain.dtype, device=stored["weight"].device)
        make = functools.partial(read_stored, stored, tuple(plain.shape))
        return {"weight": self.hf_quantizer.take(full_layer_name, like, make)}


def read_stored(stored: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> QuantisedWeight:
    """Return the weight (out, in) that bitsandbytes saved as these tensors.

    Args:
        stored: by what the layer's name is followed by: `weight`, `SCB`, `weight.absmax`, ...

    Raises:
        ValueError: naming what is missing or not as expected.
    """
    if _SCALES in stored:
        layout = int(stored[_LAYOUT]) if _LAYOUT in stored else 0
        if layout != 0:
            raise ValueError(
                f"bitsandbytes' weight_format is {layout}, of an old version, and only 0 (rows) is "
                "read: save the folder again with bitsandbytes 0.45 or later"
            )
        return Int8Weight(stored["weight"], stored[_SCALES].float())
    missing = {"weight", "weight.absmax", _STATE} - set(stored)
    if missing:
        raise ValueError(f"the folder has no {', '.join(sorted(missing))} of it: copy it again")
    state = json.loads(bytes(stored[_STATE].cpu().tolist()))
    if state["blocksize"] != BLOCK or tuple(state["shape"]) != shape:
        raise ValueError(
            f"it is stored in blocks of {state['blocksize']} with the shape {state['shape']}; "
            f"blocks of {BLOCK} and {list(shape)} are expected: quantise the plain weights again"
        )
    absmax = stored["weight.absmax"]
    if "weight.nested_absmax" in stored:
        absmax = nested_absmax(
            absmax,
            stored["weight.nested_quant_map"],
            stored["weight.nested_absmax"],
            torch.tensor(state["nested_offset"], device=absmax.device),
        )
    return Nf4Weight.from_bitsandbytes(stored["weight"].view(torch.uint8), absmax.float(), shape)


def _only(given: Any) -> torch.Tensor:
    tensor: torch.Tensor = given[0] if isinstance(given, list) else given
    return tensor
