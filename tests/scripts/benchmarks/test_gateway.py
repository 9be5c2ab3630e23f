"""What the gateway's report says of given times."""

import pytest

from scripts.benchmark import main
from scripts.benchmarks.gateway import summary
from scripts.benchmarks.over_http.http_client import Timed


def timed(milliseconds: float, per_s: float) -> tuple[Timed, Timed]:
    alone = Timed([milliseconds / 1000] * 9 + [1.0], 1.0)
    return alone, Timed([0.05] * 100, 100 / per_s)


def test_each_round_is_compared_with_the_chain_of_the_same_round() -> None:
    rounds = {
        "chain": [timed(5, 100), timed(10, 50), timed(6, 90)],
        "gateway": [timed(7, 80), timed(12.5, 30), timed(7, 81)],
        "classified": [timed(15, 40), timed(20, 20), timed(16, 36)],
    }
    report = summary(rounds)
    gateway = report["over_chain"]["gateway"]
    assert gateway["added_p50_ms"] == 2.0  # the median of 2, 2.5 and 1
    assert gateway["added_p50_ms_range"] == [1.0, 2.5]
    assert gateway["share_of_requests_kept"] == pytest.approx(0.8)
    assert gateway["share_range"] == [0.6, 0.9]
    assert report["over_chain"]["classified"]["added_p50_ms"] == 10
    assert report["targets"]["added_p50_ms"] == {"most": 3.0, "is": 2.0}
    assert report["sides"]["chain"]["p99_ms"] == [1000, 1000, 1000]


def test_the_modes_are_those_two() -> None:
    with pytest.raises(SystemExit):
        main(["gateway", "--mode", "quick"])
