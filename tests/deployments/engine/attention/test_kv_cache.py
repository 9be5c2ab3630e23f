"""The plan of KV cache stays in its budget; views and writes address the right row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.row_plan import plan_rows


def test_every_row_is_full_when_memory_allows() -> None:
    assert plan_rows(4, 100, 10, 4 * 112 * 10) == (112,) * 4


def test_short_memory_makes_short_rows_and_keeps_long_ones() -> None:
    assert plan_rows(16, 2048, 1, 16 * 700) == (496,) * 14 + (2048,) * 2


def test_too_little_memory_is_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(ValueError, match=r"1 MiB .* hold 1024 positions.*at least 2"):
        plan_rows(4, 2048, 1024, 2**20)


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 1000), st.integers(1, 10**8))
def test_a_plan_is_within_its_budget(rows: int, positions: int, size: int, budget: int) -> None:
    try:
        plan = plan_rows(rows, positions, size, budget)
    except ValueError:
        assert budget < (positions + 15) // 16 * 16 * size
        return
    assert sum(plan) * size <= budget
    assert 1 <= len(plan) <= rows
    assert max(plan) >= positions
    assert list(plan) == sorted(plan)


def cache(capacities: tuple[int, ...]) -> KvCache:
    return KvCache(
        capacities,
        num_layers=1,
        num_heads=2,
        head_dim=3,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_a_span_reads_what_was_written_to_its_rows() -> None:
    cached = cache((4, 4, 4, 8, 8))
    rows = [0, 2, 4]
    written = torch.randn(3, 2, 2, 3)
    positions = torch.tensor([cached.starts[row] + 1 for row in rows])
    cached.write(0, positions, written)
    spans = cached.spans(rows)
    assert [(s.start, s.num_rows, s.capacity, s.rows) for s in spans] == [
        (0, 3, 4, (0, 2)),
        (20, 1, 8, (4,)),
    ]
    for span in spans:
        keys, values = cached.keys_values(0, span, 0, 3)
        assert keys.shape == (span.num_rows, 2, 3, 3)
        assert span.index is not None
        assert span.offsets is not None
        assert torch.equal(keys[span.offsets, :, 1], written[span.index, 0])
        assert torch.equal(values[span.offsets, :, 1], written[span.index, 1])
        assert not keys[span.offsets, :, 0].any()
    assert torch.equal(cached.layers[0][cached.starts[2] + 1], written[1])


def test_rows_in_order_need_no_gather() -> None:
    (span,) = cache((4, 4, 4)).spans([0, 1, 2])
    assert span.index is None
    (span,) = cache((4, 4, 4)).spans([1])
    assert (span.start, span.num_rows, span.index) == (4, 1, None)
