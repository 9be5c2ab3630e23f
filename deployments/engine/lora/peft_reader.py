"""A LoRA adapter's folder -> plain weights, with PEFT as the owner of formats and scales.

PEFT injects the adapter into a weightless copy of the base model (on the meta device), so target
modules, rank and alpha patterns and rank stabilisation are resolved by PEFT and the scale is read
from its layer. The tensors come from the safetensors file. Whatever could change the forward pass
in a way that B(A(x)) * scale does not express is refused by name.
"""

import copy
import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file

from deployments.engine.request import EngineError

_NAME = "adapter"  # PEFT's name for it inside the skeleton
_PREFIX = "base_model.model."
# Fields of PEFT's LoraConfig that are resolved by the injection or do not act in inference. Any
# other field with a value of its own is a feature that the bank does not have.
_UNDERSTOOD = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "r target_modules exclude_modules lora_alpha lora_dropout use_rslora layers_to_transform "
    "layers_pattern rank_pattern alpha_pattern megatron_core qalora_group_size "
    "runtime_config loftq_config init_lora_weights ensure_weight_tying".split()
)
# Fields that say where an adapter comes from: two adapters that differ in them alone fit alike.
_OF_NO_EFFECT = frozenset(
    "base_model_name_or_path revision peft_version inference_mode auto_mapping".split()
)
_KEPT_CONFIGS = 32
# Initialisations that leave the base model's weights as they are.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")


class AdapterNotSupported(EngineError):
    """The adapter has features that a multi-LoRA bank cannot express; all are named."""

    code = "adapter_not_supported"

    def __init__(self, directory: Path, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(
            f"adapter {directory}: {'; '.join(problems)}: serve it with `decoder: reference`, or "
            "train it as plain LoRA on linear layers"
        )


@dataclass(frozen=True, slots=True)
class LoraPair:
    """What one linear layer gets: y += x @ a.T @ b.T. float32 on the CPU.

    a: (r, in); b: (out, r), with PEFT's scale multiplied in.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter by module path of the base model, e.g. "model.layers.0.self_attn.q_proj"."""

    pairs: Mapping[str, LoraPair]

    @property
    def rank(self) -> int:
        return max(pair.a.shape[0] for pair in self.pairs.values())


def unsupported_features(directory: Path) -> list[str]:
    """What in adapter_config.json a bank cannot express; empty: nothing."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')!r}; only LORA is plain LoRA"]
    defaults = {f.name: getattr(LoraConfig(), f.name) for f in dataclasses.fields(LoraConfig)}
    unused: tuple[Any, ...] = (None, False, [], {}, "none")
    problems = [
        f"{key} is {value!r}"
        for key, value in config.items()
        if key not in _UNDERSTOOD and value not in unused and value != defaults.get(key)
    ]
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        problems.append(f"init_lora_weights is {init!r}, which changes the base model's weights")
    return problems


@dataclass(frozen=True, slots=True)
class _Layer:
    """What PEFT made of one adapted layer. `obstacle`: why a bank cannot express it."""

    rank: int
    in_features: int
    out_features: int
    scale: float
    obstacle: str | None


class PeftReader:
    """Reads adapters of one base model.

    Injecting takes a tenth of a second of Python, and most adapters of a base are alike: what PEFT
    made of a configuration is kept for the next adapter that has the same one.

    Args:
        skeleton: the base model on the meta device; not changed.
    """

    def __init__(self, skeleton: torch.nn.Module) -> None:
        self._skeleton = skeleton
        self._lock = threading.Lock()
        self._layers: OrderedDict[str, dict[str, _Layer]] = OrderedDict()

    def read(self, directory: Path) -> AdapterWeights:
        """The adapter's weights. Any thread may call it.

        Raises:
            AdapterNotSupported: naming each feature or tensor that does not fit.
            OSError, ValueError: a file is missing, or PEFT cannot read the configuration.
        """
        problems = unsupported_features(directory)
        if problems:
            raise AdapterNotSupported(directory, problems)
        layers = self._layers_of(LoraConfig.from_pretrained(str(directory)))
        tensors = load_file(directory / "adapter_model.safetensors")
        pairs: dict[str, LoraPair] = {}
        for path, layer in layers.items():
            if layer.obstacle:
                problems.append(f"{path} is {layer.obstacle}")
                continue
            a = tensors.pop(f"{_PREFIX}{path}.lora_A.weight", None)
            b = tensors.pop(f"{_PREFIX}{path}.lora_B.weight", None)
            shapes = ((layer.rank, layer.in_features), (layer.out_features, layer.rank))
            if a is None or b is None:
                problems.append(f"{path} has no lora_A or no lora_B in the file")
            elif (tuple(a.shape), tuple(b.shape)) != shapes:
                problems.append(f"{path} is {tuple(a.shape)}, {tuple(b.shape)}; expected {shapes}")
            else:
                pairs[path] = LoraPair(a.float(), b.float() * layer.scale)
        problems += [f"{name} belongs to no adapted layer" for name in tensors]
        if problems:
            raise AdapterNotSupported(directory, problems)
        return AdapterWeights(pairs)

    def _layers_of(self, config: LoraConfig) -> dict[str, _Layer]:
        """PEFT's layers of this configuration by module path."""
        fields = {k: v for k, v in config.to_dict().items() if k not in _OF_NO_EFFECT}
        key = json.dumps(fields, sort_keys=True, default=sorted)
        with self._lock:
            if key in self._layers:
                self._layers.move_to_end(key)
                return self._layers[key]
            layers = self._inject(config)
            self._layers[key] = layers
            if len(self._layers) > _KEPT_CONFIGS:
                self._layers.popitem(last=False)
            return layers

    def _inject(self, config: LoraConfig) -> dict[str, _Layer]:
        config.inference_mode = True
        model = inject_adapter_in_model(config, copy.deepcopy(self._skeleton), adapter_name=_NAME)
        return {
            name: _Layer(
                rank=module.r[_NAME],
                in_features=module.in_features,
                out_features=module.out_features,
                scale=module.scaling[_NAME],
                obstacle=_unknown_kind(module),
            )
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }


def _unknown_kind(layer: Any) -> str | None:
    """What an injected layer is, when it is not a plain LoRA linear layer."""
    if type(layer) is not LoraLinear:
        return f"a {type(layer).__name__}, not a linear layer"
    if layer.lora_variant.get(_NAME) is not None:
        return f"a {type(layer.lora_variant[_NAME]).__name__}"
    if layer.lora_bias.get(_NAME) or layer.fan_in_fan_out:
        return "a linear layer with a LoRA bias or a transposed weight"
    return None
