"""Say which bases the fast decoder runs, and make its model of one."""

from collections.abc import Mapping
from typing import Any

from deployments.engine.model_loader import Pretrained
from deployments.engine.models.architectures import unsupported_causal
from deployments.engine.models.bart import BART_MODELS, BartModel, unsupported_by_bart
from deployments.engine.models.base import Model
from deployments.engine.models.llama import LlamaModel
from deployments.engine.models.products import kinds_in_one_product
from deployments.engine.models.t5 import T5_MODELS, T5Model, unsupported_by_t5
from deployments.engine.models.t5gemma import T5GEMMA_MODELS, T5GemmaModel, unsupported_by_t5gemma

# Class of transformers -> ours, and what says why one of them is not served.
_SEQ2SEQ: Mapping[str, Any] = {
    **dict.fromkeys(T5_MODELS, (T5Model, unsupported_by_t5)),
    **dict.fromkeys(BART_MODELS, (BartModel, unsupported_by_bart)),
    **dict.fromkeys(T5GEMMA_MODELS, (T5GemmaModel, unsupported_by_t5gemma)),
}


def unsupported_base(base: Pretrained, num_positions: int) -> str | None:
    """Return why the fast decoder cannot serve this base. Returns None if it can.

    Args:
        num_positions: of the longest answer, prompt included.
    """
    if base.with_bitsandbytes:
        return f"the base is quantised to {base.quantization} by bitsandbytes"
    if (mixed := kinds_in_one_product(base.model)) is not None:
        return mixed
    if base.family == "causal":
        return unsupported_causal(base.model, num_positions)
    name = type(base.model).__name__
    if name not in _SEQ2SEQ:
        return f"{name} is none of {', '.join(_SEQ2SEQ)}"
    obstacle: str | None = _SEQ2SEQ[name][1](base.model, num_positions)
    if obstacle is None and base.decoder_start_id is None:
        return "the model names no decoder_start_token_id"
    return obstacle


def make_torch_model(base: Pretrained, model: Any, num_positions: int) -> Model:
    """Return our model with the weights of `model`, which is the base's or of its kind."""
    make = LlamaModel if base.family == "causal" else _SEQ2SEQ[type(base.model).__name__][0]
    made: Model = make(model, model.dtype, num_positions)
    return made
