"""Signals that ask the launcher to stop: kept, raised once, ignored under nohup."""

import signal
from collections.abc import Iterator

import pytest

from deployments.startup.stop_signals import Interrupted, StopSignals


def test_a_signal_before_the_block_is_kept_for_it(restored_signals: None) -> None:
    signals = StopSignals()
    signal.raise_signal(signal.SIGTERM)  # raises nothing yet
    with pytest.raises(Interrupted), signals:
        pytest.fail("the block must not run")
    signal.raise_signal(signal.SIGTERM)  # stopping has begun: nothing more to raise


def test_only_a_later_signal_is_a_second_one(
    restored_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that closes sends two at once."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    signals = StopSignals()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert not signals.is_urgent
    now = 101.0
    signal.raise_signal(signal.SIGTERM)
    assert signals.is_urgent


def test_a_closed_terminal_is_ignored_under_nohup(restored_signals: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.fixture
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
