"""Plan the rows of the KV cache: how many, and how long, within a budget of memory."""

from deployments.engine.attention.kv_cache import ALIGNMENT

_LONG_ROWS = 8  # when the budget is short, one row in _LONG_ROWS has full length
_SHORTEST = 8  # a short row holds at least 1/_SHORTEST of a long one


def full_length(num_positions: int) -> int:
    """Return the capacity of a row that holds the longest answer."""
    return -(-num_positions // ALIGNMENT) * ALIGNMENT


def plan_rows(
    max_rows: int, num_positions: int, bytes_per_position: int, budget_bytes: int
) -> tuple[int, ...]:
    """Return the capacities of the rows, short ones first, that fit in the budget.

    Args:
        num_positions: prompt and answer at their longest.
        bytes_per_position: keys and values of all layers.

    Raises:
        ValueError: not even one full row fits.
    """
    full = full_length(num_positions)
    affordable = budget_bytes // bytes_per_position
    if affordable < full:
        raise ValueError(
            f"{budget_bytes / 2**20:.0f} MiB of key/value memory hold {affordable} positions; one "
            f"answer may need {full}: raise engine.kv_memory_mib to at least "
            f"{-(-full * bytes_per_position // 2**20)}, or lower engine.max_input_tokens"
        )
    for num_rows in range(max_rows, 1, -1):
        if num_rows * full <= affordable:
            return (full,) * num_rows
        num_long = max(1, num_rows // _LONG_ROWS)
        num_short = num_rows - num_long
        rest = (affordable - num_long * full) // num_short
        short = min(full, rest // ALIGNMENT * ALIGNMENT)
        if short * _SHORTEST >= full:
            return (short,) * num_short + (full,) * num_long
    return (full,)
