"""Keys and values in int8 are near what was written, wherever they are copied to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.attention.int8_kv_cache import Int8KvCache, dequantise, quantise
from deployments.engine.attention.row_plan import plan_rows
from deployments.engine.models.base import KvShape


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_numbers_are_within_half_a_step(numbers: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(numbers).to(dtype)
    whole, scale = quantise(x)
    assert whole.dtype == torch.int8
    assert int(whole.int().abs().max()) <= 127
    step = float(scale)
    error = (dequantise(whole, scale, torch.float32) - x.float()).abs().max()
    assert float(error) <= 0.5001 * step + 1e-36
    largest = float(x.float().abs().max())
    assert step <= largest / 127 * 1.008 + 1e-36, "rounded up by less than bfloat16's step"


def test_what_is_not_finite_stays_so() -> None:
    """So that an adapter that overflows is found when it is probed."""
    for number in (float("inf"), float("nan")):
        whole, scale = quantise(torch.tensor([1.0, number]))
        assert not dequantise(whole, scale, torch.float32).isfinite().any()


def test_zeros_are_zeros() -> None:
    whole, scale = quantise(torch.zeros(3, 8))
    assert not whole.any()
    assert not scale.any()


def cache(capacities: tuple[int, ...]) -> Int8KvCache:
    shape = KvShape(2, num_heads=2, head_dim=32, dtype=torch.bfloat16, is_int8=True)
    made = shape.new_cache(capacities, torch.device("cpu"))
    assert isinstance(made, Int8KvCache)
    assert made.num_bytes == sum(capacities) * shape.bytes_per_position
    return made


def test_a_span_reads_what_was_written_to_its_rows() -> None:
    cached, written = cache((16, 16, 16, 32)), torch.randn(3, 2, 2, 32).to(torch.bfloat16)
    rows = [0, 2, 3]
    cached.write(1, torch.tensor([cached.starts[row] + 1 for row in rows]), written)
    for span in cached.spans(rows):
        keys, values = cached.keys_values(1, span, 1, 3)
        assert keys.shape == (span.num_rows, 2, 2, 32)
        assert keys.dtype == torch.bfloat16
        assert span.index is not None
        for kept, number in ((keys, 0), (values, 1)):
            near = kept[span.offsets, :, 0].float()
            assert not torch.equal(near, written[span.index, number].float())
            torch.testing.assert_close(near, written[span.index, number].float(), rtol=0, atol=0.03)
            assert not kept[:, :, 1].any()


def test_a_copy_keeps_scales_with_their_rows() -> None:
    cached = cache((48, 48))
    written = torch.randn(20, 2, 2, 32) * 10.0 ** torch.arange(-10, 10)[:, None, None, None]
    for layer in (0, 1):
        cached.write(layer, torch.arange(20), written * (layer + 1))
    cached.copy(0, 1, 20)
    source, target = (cached.spans([row])[0] for row in (0, 1))
    for layer in (0, 1):
        for a, b in zip(
            cached.keys_values(layer, source, 0, 20),
            cached.keys_values(layer, target, 0, 20),
            strict=True,
        ):
            assert a.any()
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "rows"), [(24, 32, 64, 15), (16, 8, 64, 15), (32, 8, 128, 15)]
)
def test_the_same_memory_holds_nearly_twice_the_rows(
    layers: int, heads: int, dim: int, rows: int
) -> None:
    """T5-XL's shape, Llama-1B's and Llama-8B's: 15 rows of 1,024 positions where 8 fitted."""
    plain = KvShape(layers, heads, dim, torch.bfloat16)
    memory = 8 * 1024 * plain.bytes_per_position
    whole = replace(plain, is_int8=True)
    assert plan_rows(64, 1024, plain.bytes_per_position, memory).count(1024) <= 8
    assert sum(plan_rows(64, 1024, whole.bytes_per_position, memory)) >= rows * 1024
