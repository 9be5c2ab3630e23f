"""Decide in which dtype a model's keys and values are kept."""

import dataclasses
from typing import Literal

from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.models.base import Model

KvCacheDtype = Literal["auto", "int8"]


def keep_keys_values(model: Model, wanted: KvCacheDtype) -> None:
    """Let a model of the fast decoder keep keys and values as is wanted; auto: as its activations.

    Raises:
        FastDecoderImpossible: `wanted` is int8, and the kernels that read it do not run here.
    """
    if wanted == "auto":
        return
    kind = model.device.type
    if not are_fused(kind):
        lacking = "and the device is the CPU" if kind == "cpu" else "which is not installed"
        raise FastDecoderImpossible(
            "engine.kv_cache_dtype: int8 is read by Triton's kernels on a GPU, "
            f"{lacking}: set it to auto"
        )
    model.kv_shape = dataclasses.replace(model.kv_shape, is_int8=True)


def refuse_reference_int8(wanted: KvCacheDtype) -> None:
    """Refuse the reference decoder, whose keys and values are transformers'.

    Raises:
        FastDecoderImpossible: `wanted` is int8.
    """
    if wanted == "int8":
        raise FastDecoderImpossible(
            "engine.kv_cache_dtype: int8 is the fast decoder's, and the reference decoder serves: "
            "set it to auto, or choose a decoder, base and adapters for which the fast one serves"
        )
