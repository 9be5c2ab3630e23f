"""Decide whether a row's logits depend on what is computed beside it, and see to it.

Sums of floating-point numbers depend on their order. Libraries choose it by the shape of a batch,
so the same question may get another answer beside other questions.
"""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

import torch

from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.models.base import Model, TorchBatches
from deployments.engine.models.weights import has_blocks

logger = logging.getLogger(__name__)

BatchInvariant = bool | Literal["auto"]

PADDED = "the reference decoder pads the prompts of a group to one length"
# Where keeping the order costs at most 5 % of a step and of reading a prompt (docs/engine.md).
_IS_CHEAP = {"cpu": True, "cuda": False}
_ROWS = (1, 2, 3, 5, 8, 16, 33)  # of the products that are compared at the start


@dataclass(frozen=True, slots=True)
class Invariance:
    """Say whether logits depend on nothing that is computed beside them, and why."""

    is_on: bool
    reason: str


def make_invariant(model: Model, wanted: BatchInvariant) -> Invariance:
    """Let a model of the fast decoder keep one order of sums, where that is wanted.

    Raises:
        FastDecoderImpossible: `wanted` is true, and the order cannot be kept here; says what
            cannot keep it.
    """
    if not isinstance(model, TorchBatches):
        return Invariance(True, "the compiled step computes each row by itself")
    if wanted is False:
        return Invariance(False, "engine.batch_invariant is false")
    kind = model.device.type
    if wanted == "auto" and not _IS_CHEAP.get(kind, False):
        return Invariance(
            False,
            f"on {kind} it costs more than 5 %: engine.batch_invariant: true turns it on",
        )
    obstacle = _obstacle(model)
    if obstacle is None:
        return Invariance(True, "each row's sums have one order, whatever is computed beside it")
    if wanted is True:
        raise FastDecoderImpossible(
            f"engine.batch_invariant is true, but {obstacle}: set it to auto or false"
        )
    model.is_invariant = False
    logger.warning("answers may depend on what runs beside them, since %s", obstacle)
    return Invariance(False, obstacle)


def refuse_reference(wanted: BatchInvariant) -> None:
    """Refuse the reference decoder, whose answers depend on what runs beside them.

    Raises:
        FastDecoderImpossible: `wanted` is true.
    """
    if wanted is True:
        raise FastDecoderImpossible(
            f"engine.batch_invariant is true, but {PADDED}: set it to auto or false, or choose a "
            "decoder, base and adapters for which the fast decoder serves"
        )


def _obstacle(model: TorchBatches) -> str | None:
    """Return what cannot keep its order on this device. Returns None if everything can."""
    kind = model.device.type
    if kind != "cpu" and not are_fused(kind):
        return f"Triton is not installed, whose kernels keep it on {kind}"
    if not model.keep_order():
        if kind == "cpu" and not has_blocks(model.kv_shape.dtype):
            return "this processor lacks the instructions for bfloat16 (float32 keeps the order)"
        return "the products by its weights, as they are kept here, choose by the number of rows"
    if are_fused(kind):
        return None
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed, which compiles its attention"
    if model.kv_shape.head_dim % 16:
        return f"its heads have {model.kv_shape.head_dim} dimensions, no multiple of 16"
    from deployments.engine.cpu.row_batches import compile_rows

    try:
        compile_rows()
    except Exception as error:  # whatever Numba raises
        logger.exception("attention row by row cannot be compiled")
        return f"Numba cannot compile its attention here ({type(error).__name__}; see the log)"
    return _unstable(model)


@torch.inference_mode()
def _unstable(model: TorchBatches) -> str | None:
    """Return which product of the model depends on the number of rows. Returns None if none does:
    each shape is tried on random numbers, since oneDNN chooses by processor."""
    tried = set()
    dtype = model.kv_shape.dtype
    for product in model.products:
        assert product is not None, "a quantised head keeps no order"
        shape = (product.out_features, product.lora_layer.in_features)
        if shape in tried:
            continue
        tried.add(shape)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(max(_ROWS), shape[1], generator=generator).to(dtype)
        whole = product(x, None)
        for rows in _ROWS:
            if not torch.equal(product(x[-rows:].clone(), None), whole[-rows:]):
                return (
                    f"a product of {shape[1]} inputs and {shape[0]} outputs in "
                    f"{str(dtype).removeprefix('torch.')} depends on the number of rows on "
                    "this processor"
                )
    return None
