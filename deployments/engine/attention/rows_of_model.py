"""Plan the rows of a model whose weights are on its device, and of the adapters it is to serve."""

import os
from collections.abc import Iterable, Mapping, Sequence

import psutil
import torch

from deployments.engine.attention.memory_plan import (
    RowPlan,
    Shapes,
    free_bytes,
    plan_card,
    plan_host,
    workspace_bytes,
)
from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.quantised_tiles import DEQUANTISED, most_parts
from deployments.engine.lora.layers import LoraLayer
from deployments.engine.lora.stacks import RANK_BUCKET
from deployments.engine.models.base import Model
from deployments.engine.models.linear import HEAD
from deployments.engine.models.llama import EMBEDDING

# Module path -> rank, inputs, outputs.
AdapterShapes = Mapping[str, tuple[int, int, int]]
_ENDS = (HEAD, EMBEDDING)
# Adapters that come later may take so much more than those of the start.
_ROOM = 20  # at most a twentieth of the free memory


def plan_rows_of(
    model: Model,
    adapters: Iterable[AdapterShapes],
    *,
    max_rows: int,
    num_positions: int,
    num_slots: int,
    prefill_tokens: int,
    budget: int | None,
    is_quantised: bool,
) -> RowPlan:
    """Return the rows that fit on the model's device.

    Args:
        adapters: those that are to be served.
        num_slots: of adapters, those for the base and for replacing one included.
        budget: for keys and values, in bytes; None: what is left.

    Raises:
        ValueError: not even one row fits; names the numbers and the settings.
    """
    size = model.kv_shape.bytes_per_position
    if model.device.type != "cuda":
        available = psutil.virtual_memory().available
        return plan_host(max_rows, num_positions, size, free=available, budget=budget)
    free = free_bytes(model.device)
    itemsize, served = model.kv_shape.dtype.itemsize, list(adapters)
    shapes = Shapes(
        num_slots=num_slots,
        adapter=adapter_size(
            model.lora_layers, served, at_most=free // _ROOM // itemsize // num_slots
        ),
        widest=max(map(_width, _inner(model.lora_layers))),
        dequantised=min(DEQUANTISED, max(map(_area, _inner(model.lora_layers))))
        if is_quantised
        else 0,
        shrunk=shrunk_size(model.lora_layers, served) if are_fused(model.device.type) else 0,
        prefill_tokens=longest_prefill(model, prefill_tokens, num_positions),
        max_rows=max_rows,
        vocab_size=model.vocab_size,
        itemsize=itemsize,
        workspace=workspace_bytes(
            torch.cuda.get_device_capability(model.device),
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        ),
    )
    return plan_card(max_rows, num_positions, size, free=free, shapes=shapes, budget=budget)


def longest_prefill(model: Model, prefill_tokens: int, num_positions: int) -> int:
    """Return the tokens of the longest prefill: a prompt that cannot be split is read whole."""
    return prefill_tokens if model.can_split_prompts else max(prefill_tokens, num_positions)


def adapter_size(
    layers: Sequence[LoraLayer], adapters: Sequence[AdapterShapes], *, at_most: int
) -> int:
    """Return the elements of A and B in one slot: of these adapters, or of one of rank 8 on every
    linear layer, if that is more; no more than `at_most` for what only others may need."""
    rank = _rank(adapters)
    modules = {path: sizes for each in adapters for path, (_, *sizes) in each.items()}
    needed = rank * sum(map(sum, modules.values()))
    room = RANK_BUCKET * sum(
        layer.in_features + module.stop - module.start
        for layer in _inner(layers)
        for module in layer.modules
    )
    return max(needed, min(room, at_most))


def shrunk_size(layers: Sequence[LoraLayer], adapters: Sequence[AdapterShapes]) -> int:
    """Return the float32 that kernels keep of a token's products with A in one layer: the sums, and
    the parts that they are cut into. Embedding and output layer count if an adapter changes them.
    """
    changed = {path for each in adapters for path in each}
    own = [layer for layer in layers if layer.name not in _ENDS or layer.name in changed]
    ranks = max(RANK_BUCKET, _rank(adapters)) * max(len(layer.modules) for layer in own)
    return ranks * (1 + most_parts(max(layer.in_features for layer in own)))


def _rank(adapters: Sequence[AdapterShapes]) -> int:
    """Return the rank of the stacks of these adapters."""
    rank = max((rank for each in adapters for rank, _, _ in each.values()), default=0)
    return -(-rank // RANK_BUCKET) * RANK_BUCKET


def _inner(layers: Sequence[LoraLayer]) -> list[LoraLayer]:
    """Return the layers without embedding and output layer."""
    return [layer for layer in layers if layer.name not in _ENDS]


def _width(layer: LoraLayer) -> int:
    return layer.in_features + layer.modules[-1].stop


def _area(layer: LoraLayer) -> int:
    return layer.in_features * layer.modules[-1].stop
