"""Read a LoRA adapter's folder into plain weights, with PEFT as the owner of formats and scales.

PEFT injects the adapter into a weightless copy of the base model (on the meta device), so target
modules, rank and alpha patterns and rank stabilisation are resolved by PEFT, and the scale is read
from its layer. The tensors come from the safetensors file.
"""

import copy
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import (
    BdLoraLinearVariant,
    BlockDiagonalLinear,
    DoraEmbeddingVariant,
    DoraLinearVariant,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from deployments.engine.errors import AdapterNotSupported
from deployments.engine.lora import base_copies
from deployments.engine.lora.peft_features import (
    TRAINING_ONLY,
    WEIGHTS_FILE,
    WITHOUT_EFFECT,
    check_is_servable,
    check_scales,
    read_config,
    unsupported_features,
)
from deployments.engine.model_loader import Pretrained
from deployments.engine.quantised.loader import IMAGES

logger = logging.getLogger(__name__)

_NAME = "adapter"  # PEFT's name for it inside the skeleton
_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_KEPT_CONFIGS = 32
_FILE_HINT = "its file does not fit its adapter_config.json, or this base: save it again with PEFT"
_LINEAR, _EMBEDDING = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_embedding_A", "lora_embedding_B"),
)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """Hold what one linear layer gets: y += x @ a.T @ b.T. float32 on the CPU.

    a: (r, in); b: (out, r), with PEFT's scale multiplied in. For an embedding, x is one-hot.
    magnitude: (out,), DoRA's: the length that each output's weights have, all in all.
    """

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """Hold an adapter by module path of the base model, e.g. "model.layers.0.self_attn.q_proj"."""

    pairs: Mapping[str, LoraPair]


@dataclass(frozen=True, slots=True)
class _InjectedLayer:
    """Hold what PEFT made of one layer. `obstacle`: why the fast decoder cannot express it.

    names: of A and B in the file, behind the layer's path. is_dora: its magnitude is there too.
    num_blocks: of A and of B, of which the file holds the blocks on the diagonal alone (BD-LoRA).
    """

    names: tuple[str, str]
    num_blocks: tuple[int, int]
    rank: int
    in_features: int
    out_features: int
    scale: float
    is_dora: bool
    obstacle: str | None

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return those of A and B in the file."""
        of_a, of_b = self.num_blocks
        return (self.rank, self.in_features // of_a), (self.out_features, self.rank // of_b)


class PeftReader:
    """Read adapters of one base model.

    Injecting takes a tenth of a second of Python, and most adapters of a base are alike: what PEFT
    made of a configuration is kept for the next adapter that has the same one.

    Args:
        skeleton: the base model on the meta device; not changed.
        ends: weights of its embedding and output layer by module path, if files may repeat them.
        may_adapt_ends, may_rescale: whether adapters may do so; to rescale is DoRA.
    """

    def __init__(
        self,
        skeleton: torch.nn.Module,
        ends: Mapping[str, torch.Tensor] | None = None,
        *,
        may_adapt_ends: bool = False,
        may_rescale: bool = False,
    ) -> None:
        self._skeleton, self._ends = skeleton, ends or {}
        self._vocabulary = base_copies.vocabulary_of(skeleton)
        self._reads_images = any(name == IMAGES for name, _ in skeleton.named_modules())
        self._may_adapt_ends, self._may_rescale = may_adapt_ends, may_rescale
        self._lock = threading.Lock()
        self._layers: dict[str, dict[str, _InjectedLayer]] = {}

    def unsupported(self, directory: Path) -> list[str]:
        """Return the features and layers that the fast decoder cannot express; empty if none.

        Raises what `read` raises of an adapter that the reference decoder cannot serve either.
        """
        problems = self._unsupported_features(directory)
        return problems or _obstacles(self._layers_of(LoraConfig.from_pretrained(str(directory))))

    def _unsupported_features(self, directory: Path) -> list[str]:
        base_copies.check_vocabulary(directory, self._vocabulary)
        problems = unsupported_features(directory)
        if not read_config(directory).get("use_dora"):
            return problems
        if not self._may_rescale:
            return [*problems, "use_dora is True, and weights of eight or four bits do not take it"]
        if not _has_magnitudes(directory):
            return [*problems, f"use_dora is True, but its file holds no {_MAGNITUDE}"]
        return problems

    def shapes(self, directory: Path) -> dict[str, tuple[int, int, int]]:
        """Return rank, inputs and outputs of each layer, by module path; empty if PEFT cannot read
        the adapter, which loading it reports."""
        try:
            if self._unsupported_features(directory):
                return {}
            layers = self._layers_of(LoraConfig.from_pretrained(str(directory)))
        except Exception:
            return {}
        return {
            path: (layer.rank, layer.in_features, layer.out_features)
            for path, layer in layers.items()
        }

    def read(self, directory: Path) -> AdapterWeights:
        """Return the adapter's weights. Any thread may call it.

        Raises:
            AdapterNotSupported: naming each feature or tensor that does not fit.
            OSError, ValueError: a file is missing, or PEFT cannot read the configuration.
        """
        check_is_servable(directory)
        problems = self._unsupported_features(directory)
        if problems:
            raise AdapterNotSupported(directory, problems)
        layers = self._layers_of(LoraConfig.from_pretrained(str(directory)))
        check_scales(directory, {path: layer.scale for path, layer in layers.items()})
        problems = _obstacles(layers)
        if not layers:
            problems = ["it adapts only what reads images, and text alone is served"]
        if problems:
            raise AdapterNotSupported(directory, problems)
        tensors = load_file(directory / WEIGHTS_FILE)
        tensors = base_copies.without_copies(directory, tensors, self._ends)
        pairs: dict[str, LoraPair] = {}
        for path, layer in layers.items():
            a, b = (tensors.pop(f"{_PREFIX}{path}.{name}", None) for name in layer.names)
            shapes = layer.shapes
            if a is None or b is None:
                problems.append(f"{path} has no lora_A or no lora_B in the file")
            elif (tuple(a.shape), tuple(b.shape)) != shapes:
                problems.append(f"{path} is {tuple(a.shape)}, {tuple(b.shape)}; expected {shapes}")
            else:
                whole_a, whole_b = map(_on_diagonal, (a, b), layer.num_blocks)
                pairs[path] = LoraPair(whole_a.float(), whole_b.float() * layer.scale)
            if layer.is_dora:
                magnitude = tensors.pop(f"{_PREFIX}{path}.{_MAGNITUDE}", None)
                if magnitude is None or tuple(magnitude.shape) != (layer.out_features,):
                    problems.append(f"{path} has no {_MAGNITUDE} of ({layer.out_features},)")
                elif path in pairs:
                    pairs[path] = replace(pairs[path], magnitude=magnitude.float())
        config, images = read_config(directory), f"{_PREFIX}{IMAGES}."
        if self._reads_images:
            tensors = {n: tensor for n, tensor in tensors.items() if not n.startswith(images)}
        used = tuple(part for field, part in TRAINING_ONLY.items() if config.get(field) is not None)
        left = [name for name in tensors if not any(part in name for part in used)]
        problems += [f"{name} belongs to no adapted layer" for name in left]
        if problems:
            raise AdapterNotSupported(directory, problems, _FILE_HINT)
        return AdapterWeights(pairs)

    def _layers_of(self, config: LoraConfig) -> dict[str, _InjectedLayer]:
        """Return PEFT's layers of this configuration by module path."""
        fields = {k: v for k, v in config.to_dict().items() if k not in WITHOUT_EFFECT}
        # As they stand: of two patterns that fit a layer PEFT takes the first.
        key = json.dumps(fields, default=sorted)
        with self._lock:
            if key not in self._layers:
                self._layers[key] = self._inject(config)
            if len(self._layers) > _KEPT_CONFIGS:
                del self._layers[next(iter(self._layers))]
            return self._layers[key]

    def _inject(self, config: LoraConfig) -> dict[str, _InjectedLayer]:
        config.inference_mode = True
        config.init_lora_weights = False  # there are no weights to initialise
        config.fan_in_fan_out = False  # PEFT does so itself on nn.Linear, with a warning
        for field in TRAINING_ONLY:
            setattr(config, field, None)
        model = inject_adapter_in_model(config, copy.deepcopy(self._skeleton), adapter_name=_NAME)
        head = _output_layer(self._skeleton)
        return {
            name: _InjectedLayer(
                names=_EMBEDDING if isinstance(module, LoraEmbedding) else _LINEAR,
                num_blocks=_num_blocks(module),
                rank=module.r[_NAME],
                in_features=module.in_features,
                out_features=module.out_features,
                scale=module.scaling[_NAME],
                is_dora=isinstance(module.lora_variant.get(_NAME), DoraLinearVariant),
                obstacle=self._obstacle(name, module, head),
            )
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and not name.startswith(IMAGES)
        }

    def _obstacle(self, name: str, module: Any, head: str | None) -> str | None:
        if name == head and not self._may_adapt_ends:
            return "the output layer"
        return _unknown_kind(module, may_embed=self._may_adapt_ends and name in self._ends)


def _num_blocks(layer: Any) -> tuple[int, int]:
    """Return in how many blocks A and B of an injected layer are; 1: they are whole."""
    factors = (layer.lora_A, layer.lora_B)
    parts = [dict(factor.items()).get(_NAME) for factor in factors]  # none of an embedding
    of_a, of_b = (p.nblocks if isinstance(p, BlockDiagonalLinear) else 1 for p in parts)
    return of_a, of_b


def _on_diagonal(rows: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Return the matrix whose blocks on the diagonal are given one below the other."""
    if num_blocks == 1:
        return rows
    whole: torch.Tensor = torch.block_diag(*rows.chunk(num_blocks))  # type: ignore[no-untyped-call]
    return whole


def _has_magnitudes(directory: Path) -> bool:
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            return any(name.endswith(f".{_MAGNITUDE}") for name in list(file.keys()))
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS_FILE} cannot be read: {error}") from error


def _obstacles(layers: Mapping[str, _InjectedLayer]) -> list[str]:
    return [f"{path} is {layer.obstacle}" for path, layer in layers.items() if layer.obstacle]


def _output_layer(model: Any) -> str | None:
    """Return the path of the layer that gives the logits."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _unknown_kind(layer: Any, *, may_embed: bool) -> str | None:
    """Return what an injected layer is. Returns None if it is a LoRA, DoRA or BD-LoRA layer that is
    linear, or the embedding."""
    if type(layer) is not LoraLinear and not (may_embed and type(layer) is LoraEmbedding):
        return f"a {type(layer).__name__}, not a linear layer"
    variant = layer.lora_variant.get(_NAME)
    known = (DoraLinearVariant, DoraEmbeddingVariant, BdLoraLinearVariant)
    if variant is not None and type(variant) not in known:
        return f"a {type(variant).__name__}"
    if layer.lora_bias.get(_NAME) or layer.fan_in_fan_out:
        return "a linear layer with a LoRA bias or a transposed weight"
    return None


def make_reader(base: Pretrained, *, in_bytes: bool = False) -> PeftReader:
    """Return the reader of this base's adapters, on a copy of the base without weights.

    Args:
        in_bytes: for the compiled step: neither embedding nor output layer, and no DoRA.
    """
    with torch.device("meta"):
        skeleton = type(base.model)(base.model.config)
    return PeftReader(
        skeleton,
        None if in_bytes else base_copies.ends_of(base.model),
        may_adapt_ends=base.family == "causal" and not in_bytes,
        may_rescale=not in_bytes,
    )


def unsupported_adapter(reader: PeftReader, adapters: Mapping[str, Path]) -> str | None:
    """Return which adapter the fast decoder cannot serve, and why. Returns None if it serves all.

    An adapter that PEFT cannot read either, or that neither decoder serves, is not judged here:
    loading it names the problem.
    """
    for name, directory in adapters.items():
        try:
            check_is_servable(directory)
            problems = reader.unsupported(directory)
        except Exception as error:  # PEFT and torch each have kinds of their own
            kind = type(error).__name__
            logger.warning("adapter %s cannot be served: %s: %s", name, kind, error)
            continue
        if problems:
            listed = "; ".join(problems)
            return f"adapter '{name}' has features that the fast decoder cannot express: {listed}"
    return None
