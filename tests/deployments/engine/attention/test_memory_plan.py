"""The memory of a GPU is planned from numbers alone: no GPU is needed."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.attention.memory_plan import (
    KEPT_MIXTURES,
    MIB,
    SCRATCH_POSITIONS,
    RowPlan,
    Shapes,
    kept_mixtures,
    plan_card,
    plan_host,
    reserve,
    room_on,
    workspace_bytes,
)
from deployments.engine.attention.rows_of_model import adapter_size, shrunk_size
from deployments.engine.kernels.quantised_tiles import parts_of
from deployments.engine.lora.layers import LoraLayer, LoraModule

GB = 10**9
# flan-t5-xl with 8 adapters of rank 8 on q and v; 24 layers of 32 heads of 64 in bfloat16.
T5_XL = Shapes(
    num_slots=10,
    adapter=144 * 8 * 4096,
    widest=2048 + 10240,
    dequantised=1 << 25,
    shrunk=0,
    prefill_tokens=1024,
    max_rows=8,
    vocab_size=32128,
    itemsize=2,
    workspace=32 * MIB,
)
POSITION = 24 * 2 * 32 * 64 * 2
ROWS, POSITIONS = 8, 768


def plan(
    free: int, *, rows: int = ROWS, budget: int | None = None, shapes: Shapes = T5_XL
) -> RowPlan:
    return plan_card(
        rows, POSITIONS, POSITION, free=free, shapes=replace(shapes, max_rows=rows), budget=budget
    )


def reserved(free: int) -> int:
    return reserve(T5_XL, free).total + SCRATCH_POSITIONS * POSITION


def test_all_rows_where_they_fit() -> None:
    found = plan(80 * GB)
    assert found.capacities == (768,) * 8
    assert found.report() == {
        "asked": 8,
        "given": 8,
        "by_positions": {"768": 8},
        "reason": "all rows fit at full length",
    }


def test_rows_fit_to_the_byte() -> None:
    needed = ROWS * POSITIONS * POSITION
    free = needed
    for _ in range(9):  # what is reserved depends a little on what is free
        free = needed + reserved(free)
    assert plan(free).capacities == (768,) * 8
    assert plan(free - 1).capacities != (768,) * 8


def test_a_small_card_gets_fewer_positions_and_says_why() -> None:
    free = 2 * GB
    found = plan(free, rows=64)
    assert sum(found.capacities) * POSITION <= free - reserved(free)
    assert len(found.capacities) < 64
    assert max(found.capacities) == 768
    assert found.asked == 64
    numbers = [int(n) for n in re.findall(r"(\d+) MiB", found.reason)]
    assert numbers[:1] == [64 * 768 * POSITION // MIB]
    assert re.search(r"64 rows of 768 positions need 9216 MiB, and \d+ are left", found.reason)
    assert re.search(r"adapters \d+, prefill \d+, logits \d+, CUDA \d+", found.reason)


def test_not_even_one_row_stops_with_the_number_and_the_settings() -> None:
    with pytest.raises(ValueError, match=r"768 positions needs 144") as refused:
        plan(500 * MIB)
    text = str(refused.value)
    assert text.startswith("500 MiB of the GPU are free beside the weights, of which ")
    for setting in ("max_input_tokens", "max_output_tokens", "max_adapters", "quantization: int8"):
        assert setting in text
    assert "\n" not in text


def test_a_budget_that_is_asked_for_is_kept_or_refused() -> None:
    four = plan(80 * GB, budget=4 * 768 * POSITION)
    assert sum(four.capacities) * POSITION <= 4 * 768 * POSITION
    assert four.reason == "engine.kv_memory_mib is 576"
    with pytest.raises(ValueError, match=r"engine.kv_memory_mib: rows of 1152 MiB, and 1431 MiB"):
        plan(1500 * 10**6, budget=8 * 768 * POSITION)
    with pytest.raises(ValueError, match="raise engine.kv_memory_mib to at least 144"):
        plan(80 * GB, budget=100 * MIB)


def test_more_adapters_longer_prefills_and_larger_vocabularies_leave_less() -> None:
    free = 8 * GB
    for field, value in {
        "num_slots": 34,
        "adapter": 144 * 64 * 4096,
        "widest": 32768,
        "prefill_tokens": 4096,
        "vocab_size": 128_256,
        "workspace": 64 * MIB,
        "itemsize": 4,
    }.items():
        changed: Mapping[str, int] = {field: value}
        assert reserve(replace(T5_XL, **changed), free).total > reserve(T5_XL, free).total, field


def test_mixtures_stay_few_where_memory_is_short() -> None:
    long = replace(T5_XL, prefill_tokens=4096)
    assert kept_mixtures(long, 70 * GB) == KEPT_MIXTURES
    assert kept_mixtures(long, 2 * GB) == 1
    assert plan(2 * GB, shapes=long).num_mixtures == 1


def test_kernels_need_no_copies_of_adapters_but_keep_what_a_shrunk() -> None:
    """T5-XL's rank 8 on q and v, long prompts: 64 adapters side by side were 302 MiB a copy."""
    copied = replace(T5_XL, num_slots=66, max_rows=64, prefill_tokens=4096)
    shrunk = shrunk_size(LAYERS, [{"q": (8, 64, 64)}])
    assert shrunk == 8 * 2 * (1 + 1), "two modules in a layer, a sum in one part"
    embedding = {"model.embed_tokens": (8, 50_000, 64)}
    assert shrunk_size(LAYERS, [embedding]) == 8 * 2 * (1 + 16)
    kernels = replace(copied, shrunk=shrunk)
    assert kept_mixtures(kernels, 70 * GB) == 0
    with_copies, without = (reserve(shapes, 70 * GB).adapters for shapes in (copied, kernels))
    slots = 66 * copied.adapter * copied.itemsize
    assert without == slots + 4 * shrunk * (1024 + 4096)
    assert with_copies >= 3 * slots
    longer = replace(kernels, prefill_tokens=8192)
    assert reserve(longer, GB).adapters == reserve(kernels, GB).adapters + 4 * shrunk * 4096


@pytest.mark.parametrize("inputs", [64, 2048, 14336, 32128, 1_000_000])
def test_what_a_shrinks_has_room(inputs: int) -> None:
    layer = LoraLayer("down", inputs, (LoraModule("down", 0, 64),))
    parts, length = parts_of(inputs)
    assert (parts - 1) * length < inputs <= parts * length
    ranks = 24 * 1
    assert shrunk_size([layer], [{"down": (20, inputs, 64)}]) >= ranks * (1 + parts)


@settings(max_examples=200, deadline=None)
@given(
    free=st.integers(0, 20 * GB),
    rows=st.integers(1, 128),
    positions=st.integers(1, 4096),
    size=st.integers(1, 500_000),
    tokens=st.sampled_from([16, 1024, 4096, 65_536]),
)
def test_what_is_planned_is_never_more_than_is_free(
    free: int, rows: int, positions: int, size: int, tokens: int
) -> None:
    shapes = replace(T5_XL, max_rows=rows, prefill_tokens=tokens)
    try:
        found = plan_card(rows, positions, size, free=free, shapes=shapes, budget=None)
    except ValueError:
        return
    assert 1 <= len(found.capacities) <= rows
    assert sum(found.capacities) * size + reserve(shapes, free).total <= free
    assert max(found.capacities) >= positions


def test_a_cpu_gets_all_rows_unless_a_budget_says_otherwise() -> None:
    free = 8 * GB
    assert plan_host(4, 100, 10, free=free, budget=None).capacities == (112,) * 4
    assert plan_host(4, 100, 10, free=0, budget=2**30).reason == "all rows fit at full length"
    few = plan_host(64, 4096, 4096, free=free, budget=64 * MIB)
    assert sum(few.capacities) * 4096 <= 64 * MIB
    assert few.reason == "engine.kv_memory_mib is 64"
    half = plan_host(64, 4096, 4096, free=128 * MIB, budget=None)
    assert half.capacities == few.capacities
    assert half.reason == "half of the free memory is 64 MiB"
    assert room_on(torch.device("cpu")) == float("inf")


LAYERS = [
    LoraLayer("model.embed_tokens", 50_000, (LoraModule("model.embed_tokens", 0, 64),)),
    LoraLayer("lm_head", 64, (LoraModule("lm_head", 0, 50_000),)),
    LoraLayer("qkv", 64, (LoraModule("q", 0, 64), LoraModule("v", 64, 96))),
]


def test_adapters_are_counted_by_their_rank_and_their_layers() -> None:
    served = [{"q": (4, 64, 64)}, {"v": (20, 64, 32)}]
    assert adapter_size(LAYERS, served, at_most=0) == 24 * (128 + 96)
    assert adapter_size(LAYERS, [], at_most=10**9) == 8 * (128 + 96)
    assert adapter_size(LAYERS, [], at_most=100) == 100


@pytest.mark.parametrize(
    ("capability", "setting", "mib"),
    [
        ((9, 0), None, 32),
        ((10, 0), "", 32),
        ((8, 9), None, 9),
        ((9, 0), ":4096:2:16:8", 8.125),
        ((7, 5), ":16:8", 0.125),
    ],
)
def test_cublas_workspace(capability: tuple[int, int], setting: str | None, mib: float) -> None:
    assert workspace_bytes(capability, setting) == mib * MIB
