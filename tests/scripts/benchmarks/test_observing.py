"""What the report on the cost of records and traces says of given rounds."""

import pytest

from scripts.benchmarks.observing import summary


def test_each_round_is_compared_with_the_quiet_one_before_it() -> None:
    report = summary(
        {
            "quiet": [(10.0, 100.0), (20.0, 50.0), (10.0, 100.0)],
            "observed": [(10.2, 98.0), (20.2, 50.0), (11.0, 90.0)],
        }
    )
    assert report["added_processor_share"] == pytest.approx(0.02)
    assert report["added_range"] == [0.01, 0.1]
    assert report["share_of_answers_kept"] == pytest.approx(0.98)
    assert report["target"] == {"most": 0.03, "is": 0.02}
    assert report["sides"]["observed"]["processor_ms"] == [10.2, 20.2, 11.0]
