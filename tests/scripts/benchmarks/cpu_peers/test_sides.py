"""What the machine's counters say of a block."""

from types import SimpleNamespace
from typing import Any

import pytest

from scripts.benchmarks.cpu_peers.sides import lost_shares


def counters(**seconds: float) -> Any:
    names = "user nice system idle iowait irq softirq steal guest guest_nice".split()
    values = SimpleNamespace(**(dict.fromkeys(names, 100.0) | seconds))
    values._fields = names
    return values


@pytest.mark.parametrize(
    ("after", "taken_s", "shares"),
    [
        ({"user": 104.0, "idle": 106.0}, 4.0, (0.0, 0.0)),
        ({"user": 104.0, "idle": 106.0}, 3.0, (0.0, 0.1)),
        ({"user": 104.0, "idle": 106.0}, 4.1, (0.0, 0.0)),  # clocks of another grain
        ({"nice": 102.0, "softirq": 101.0, "idle": 107.0}, 1.0, (0.0, 0.2)),
        ({"user": 104.0, "steal": 102.0, "iowait": 104.0}, 4.0, (0.2, 0.0)),
        # Time of guests is counted in user already.
        ({"user": 104.0, "guest": 104.0, "idle": 106.0}, 4.0, (0.0, 0.0)),
    ],
)
def test_time_that_neither_side_took_is_lost(
    after: dict[str, float], taken_s: float, shares: tuple[float, float]
) -> None:
    assert lost_shares(counters(), counters(**after), taken_s) == pytest.approx(shares)
