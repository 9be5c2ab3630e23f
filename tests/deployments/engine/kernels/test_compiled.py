"""Every kernel of a decode step and of a prefill, compiled for GPUs that need not be there, at the
sizes of real models: it compiles, a program fits its shared memory and its registers.

With Triton beside torch's CPU build (`pip install triton`), and without TRITON_INTERPRET.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1" or importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton, not interpreted", allow_module_level=True)

from deployments.engine.kernels import (
    quantised_product,
    triton_attention,
    triton_division,
    triton_groups,
    triton_kv_cache,
    triton_linear,
    triton_lora,
    triton_mask,
    triton_pick,
    triton_prefill,
)
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope, Shrink
from deployments.engine.kernels.quantised_tiles import tile_of
from deployments.engine.kernels.triton_grouped_lora import (
    lora_expand_add,
    lora_expand_gated,
    lora_shrink,
)
from deployments.engine.quantised.interleaved import InterleavedWeight
from tests.deployments.engine.kernels.compiling import (
    A100,
    CUBIN_TOOL,
    H200,
    L4,
    Gpu,
    compiling,
)

pytestmark = [
    pytest.mark.skipif(not os.access(CUBIN_TOOL, os.X_OK), reason="Triton without NVIDIA's tools"),
    pytest.mark.slow,
]
MOST_SPILLED = 144  # 136 were seen: a prompt with heads of 256 dimensions on an A100
# 8 were seen: nf4, 32 rows, A100 and L4; 16: int8 with adapters, 64 rows, an A100 and Triton 3.6
FEW_SPILLED = 16
ONE_WARP_SPILLS = 384  # of 64 keys of 128 dimensions, as timed (docs/engine.md: what was tried)
GPUS = [
    pytest.param(gpu, id=gpu.name, marks=[] if gpu is H200 else [pytest.mark.long])
    for gpu in (H200, A100, L4)
]
BF16 = torch.bfloat16
# (outputs, inputs) of the products of a layer and of the output layer.
SHAPES = {
    "flan-t5-xl": [(6144, 2048), (2048, 2048), (10240, 2048), (2048, 5120), (32128, 2048)],
    "llama-1b": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)],
    "llama-8b": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)],
    "gemma2-9b": [(8192, 3584), (3584, 4096), (28672, 3584), (3584, 14336), (256000, 3584)],
}
# Key/value heads, query heads of each, dimensions of one, and options.
ATTENTION: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "flan-t5-xl": (32, 1, 64, {"bias": True}),
    "llama-1b": (8, 4, 64, {}),
    "llama-8b": (8, 4, 128, {}),
    "qwen3-8b": (8, 4, 128, {"norm": BF16}),
    "gemma2-9b": (8, 2, 256, {"softcap": 50.0, "window": 4096}),
    "gemma3-4b": (4, 2, 256, {"window": 1024, "norm": torch.float32}),
    "t5gemma2": (4, 2, 256, {"window": 1024, "prompts": True, "norm": torch.float32}),
}
_STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "nf4": torch.uint8}


def on(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def integers(count: int) -> torch.Tensor:
    return on(count, dtype=torch.long)


def weight_of(kind: str, outputs: int, inputs: int) -> torch.Tensor | InterleavedWeight:
    if kind == "plain":
        return on(outputs, inputs)
    width = inputs // 2 if kind == "nf4" else inputs
    factors = (inputs // 64, outputs) if kind == "nf4" else (outputs,)
    values = on(outputs, width, dtype=_STORED[kind])
    return InterleavedWeight(kind, values, on(*factors, dtype=torch.float32), (outputs, inputs))  # type: ignore[arg-type]


def product(weight: torch.Tensor | InterleavedWeight, x: torch.Tensor, **more: Any) -> Any:
    if isinstance(weight, torch.Tensor):
        return quantised_product.plain_product(x, weight, **more)
    return quantised_product.product(x, weight, **more)


def expansion(rows: int, columns: tuple[int, ...], rank: int, inputs: int) -> Expansion:
    """Of grouped rows, as one of lora_shrink's."""
    groups = triton_groups.group_rows(integers(rows), 10, ranks=rank * len(columns), inputs=inputs)
    starts = [sum(columns[:i]) for i in range(len(columns))]
    stacks = [(start, on(10, rank, n)) for start, n in zip(starts, columns, strict=True)]
    shrunk = on(rows, len(columns), rank, dtype=torch.float32)
    return Expansion(shrunk, stacks, integers(rows), groups, is_beside=True)


@contextlib.contextmanager
def checked(gpu: Gpu, most_spilled: int = 0) -> Iterator[None]:
    """Compile what is launched inside, and check what a program of each kernel takes.

    most_spilled: bytes of a thread.
    """
    with compiling(gpu) as kernels:
        yield
    assert kernels, "nothing was launched"
    for kernel in kernels:
        assert kernel.shared_bytes <= gpu.shared_bytes, f"{kernel} on {gpu}"
        assert kernel.spilled_bytes <= most_spilled, f"{kernel} on {gpu}"


def with_each_tile(kind: str, rows: int) -> list[tuple[int, int]]:
    """Return shapes of these models' products, one for each tile that they take."""
    every = [shape for shapes in SHAPES.values() for shape in shapes]
    return list({tile_of(kind, rows, *shape): shape for shape in every}.values())


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        *(("plain", rows) for rows in (1, 16, 32, 64)),
        *((kind, rows) for kind in ("int8", "fp8", "nf4") for rows in (1, 16, 32, 192)),
    ],
)
def test_products(gpu: Gpu, kind: str, rows: int) -> None:
    if kind == "fp8" and gpu.capability < (8, 9):
        pytest.skip("fp8 is refused there")
    with checked(gpu, FEW_SPILLED if kind == "nf4" else 0):
        for outputs, inputs in with_each_tile(kind, rows):
            weight = weight_of(kind, outputs, inputs)
            product(weight, on(rows, inputs), residual=on(rows, outputs))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", ["plain", "int8", "nf4"])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("rank", [16, 64])
def test_products_with_adapters(gpu: Gpu, kind: str, rows: int, rank: int) -> None:
    """Of all linear layers of an 8B Llama, shrinks before them."""
    with checked(gpu, MOST_SPILLED):
        for columns, inputs, activation in (
            ((4096, 1024, 1024), 4096, None),
            ((14336, 14336), 4096, "silu"),
            ((4096,), 14336, None),
        ):
            added, x = expansion(rows, columns, rank, inputs), on(rows, inputs)
            assert added.groups is not None
            lora_shrink(x, [on(10, rank, inputs) for _ in columns], added.groups)
            weight = weight_of(kind, sum(columns), inputs)
            product(weight, x, activation=activation, expansion=added)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", ["plain", "int8", "nf4"])
@pytest.mark.parametrize("rank", [0, 8])
def test_one_row_from_its_norm_on(gpu: Gpu, kind: str, rank: int) -> None:
    with checked(gpu):
        for outputs, inputs in with_each_tile(kind, 1):
            if inputs <= triton_lora.MAX_NORM_COLUMNS:
                stacks = [on(10, rank, inputs)] * 2 if rank else []
                norm = on(inputs), 1e-6
                shrink = Shrink(stacks, integers(1), integers(2)) if stacks else None
                for activation in (None, "silu") if not rank else (None,):
                    weight = weight_of(kind, outputs, inputs)
                    quantised_product.product_with_shrink(
                        on(1, inputs), weight, shrink, norm=norm, activation=activation
                    )


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", ["plain", "int8", "nf4"])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_products_that_take_adapters_a_along(gpu: Gpu, kind: str, rows: int) -> None:
    """Of all linear layers of an 8B Qwen3, with what comes behind them."""
    with checked(gpu, 0 if gpu is H200 else FEW_SPILLED):
        for columns, inputs in (
            ((4096, 1024, 1024), 4096),
            ((12288, 12288), 4096),
            ((4096,), 12288),
        ):
            stacks = [on(10, 16, inputs) for _ in columns]
            shrink = Shrink(stacks, integers(rows), on(10, dtype=torch.int32))
            weight, x = weight_of(kind, sum(columns), inputs), on(rows, inputs)
            residual = on(rows, sum(columns)) if len(columns) == 1 else None
            quantised_product.product_with_shrink(x, weight, shrink, residual=residual)
        lora_expand_gated(on(rows, 24576), expansion(rows, (12288, 12288), 16, 4096), "silu")
        for rank, width in ((8, 2048), (16, 4096), (64, 4096), (16, 8192)):
            owed = expansion(rows, (width,), rank, width)
            triton_lora.expand_norm(on(rows, width), owed, on(width), 1e-6)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("rows", [64, 1000])
def test_adapters_beside_products_of_torch(gpu: Gpu, rows: int) -> None:
    with checked(gpu, MOST_SPILLED):
        for rank in (8, 64):
            added = expansion(rows, (1024, 512, 512), rank, 4096)
            lora_expand_add(on(rows, 2048), added, [None, on(10, 512, dtype=torch.float32), None])
            gated = expansion(rows, (2048, 2048), rank, 4096)
            lora_expand_gated(on(rows, 4096), gated, "silu")


def test_the_longest_prompt_with_the_largest_adapters_has_counters() -> None:
    with checked(H200, MOST_SPILLED):
        added = expansion(131_072, (4096, 1024, 1024), 256, 4096)
        assert added.groups is not None
        lora_shrink(on(131_072, 4096), [on(10, 256, 4096)] * 3, added.groups)


@pytest.mark.parametrize("gpu", GPUS)
def test_norms_gates_and_picks(gpu: Gpu) -> None:
    with checked(gpu):
        for inputs in (2048, 4096):
            stacks = [on(10, 8, inputs)] * 2
            triton_lora.norm_shrink(on(64, inputs), on(inputs), 1e-6, stacks, integers(64))
            triton_lora.rms_norm_rows(on(64, inputs), on(inputs), 1e-6)
            triton_lora.gated_activation(on(64, 2 * inputs), "gelu_new")
        triton_lora.normalise_(on(64, 12, 256), on(12, 256), 1e-6)
        for dim, rotated in ((128, 128), (256, 256), (96, 48)):
            rope = Rope(on(64, rotated), on(64, rotated))
            triton_prefill.rotate_(on(64, 40, dim), HeadNorm(on(40, dim), 1e-6), rope)
            triton_prefill.rotate_(on(64, 40, dim), None, rope)
        triton_pick.pick(on(64, 256000), integers(2), integers(64), integers(64), integers(65))
        places = on(2, 64, dtype=torch.long)
        triton_mask.mask_logits_(on(64, 256000), on(64, 8000, dtype=torch.int32), places)
        triton_division.over_127(on(6144, dtype=torch.float32))
        triton_kv_cache.write_int8(
            on(9, 2, 8, 128, dtype=torch.int8), on(2, 8, 9), integers(64), on(64, 2, 8, 128)
        )


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_dequantised_copies(gpu: Gpu, kind: str) -> None:
    if kind == "fp8" and gpu.capability < (8, 9):
        pytest.skip("fp8 is refused there")
    with checked(gpu):
        weight = weight_of(kind, 6144, 2048)
        assert isinstance(weight, InterleavedWeight)
        quantised_product.dequantise(weight, slice(0, 4096), BF16)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("rows", [16, 1000])
def test_products_in_one_order(gpu: Gpu, rows: int) -> None:
    with checked(gpu):
        for outputs, inputs in ((2048, 2048), (10240, 2048), (2048, 5120)):
            triton_linear.linear(on(rows, inputs), on(outputs, inputs), on(outputs))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("rows", [1, 64, 256])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("model", ATTENTION)
def test_attention_in_a_decode_step(gpu: Gpu, model: str, rows: int, is_int8: bool) -> None:
    heads, groups, dim, own = ATTENTION[model]
    with checked(gpu, ONE_WARP_SPILLS if dim == 128 else MOST_SPILLED):
        options: dict[str, Any] = {"bias": None, "rope": None, "scale": 0.1, **own}
        if own.get("bias"):
            options["bias"] = on(heads, 1024)
        else:
            options["rope"] = Rope(on(1024, dim), on(1024, dim))
        if own.get("norm"):
            options["norm"] = HeadNorm(on(heads * (groups + 1), dim, dtype=own["norm"]), 1e-6)
        if own.get("prompts"):
            options["prompts"] = integers(rows), integers(rows)
        cache = on(4096, 2, heads, dim, dtype=torch.int8 if is_int8 else BF16)
        options["kv_scales"] = on(2, heads, 4096) if is_int8 else None
        columns = (heads * groups * dim, heads * dim, heads * dim)
        for rank, shares_rows in ((0, False), (8, False), (8, True)):
            if shares_rows and rows > 64:
                continue
            added = expansion(rows, columns, rank, 2048) if rank else None
            triton_attention.decode_attention(
                on(rows, heads * (groups + 2), dim), added, cache,
                integers(rows), integers(rows), shares_rows=shares_rows, **options,
            )  # fmt: skip
        if groups == 1:
            triton_attention.cross_attention(
                on(rows, heads, dim), None, cache, integers(rows), integers(rows), scale=0.1,
                kv_scales=options["kv_scales"],
            )  # fmt: skip


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("model", ATTENTION)
def test_attention_in_a_prefill(gpu: Gpu, model: str, is_int8: bool) -> None:
    heads, groups, dim, own = ATTENTION[model]
    with checked(gpu, MOST_SPILLED):
        cache = on(4096, 2, heads, dim, dtype=torch.int8 if is_int8 else BF16)
        triton_prefill.prefill_attention(
            on(500, heads * groups, dim), cache, blocks=on(9, 5, dtype=torch.int32),
            kv_scales=on(2, heads, 4096) if is_int8 else None,
            bias=on(heads * groups, 2047) if own.get("bias") else None, scale=0.1,
            is_causal=not own.get("bias"), window=own.get("window"), softcap=own.get("softcap"),
        )  # fmt: skip
