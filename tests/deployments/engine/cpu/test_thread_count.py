"""The number of threads follows the machine's load."""

import itertools
from collections.abc import Callable

import pytest

from deployments.engine.cpu.thread_count import ThreadCount


class Machine:
    """Steps take what `seconds` says for so many threads."""

    def __init__(self, seconds: Callable[[int], float], most: int = 2) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.count = ThreadCount(most, lambda: self.now)
        self.used: list[int] = []

    def run(self, steps: int, rows: int = 1) -> list[int]:
        for _ in range(steps):
            threads = self.count.begin(rows)
            self.used.append(threads)
            self.now += self.seconds(threads)
            self.count.end(self.seconds(threads))
        return self.used[-steps:]


def quiet(threads: int) -> float:
    return 0.01 / threads


def busy(threads: int) -> float:
    return 0.01 if threads == 1 else 0.05


def test_a_quiet_machine_keeps_all_and_seldom_tries_one() -> None:
    used = Machine(quiet).run(4000)
    assert used[:100] == [2] * 100
    assert 8 <= used.count(1) <= 8 * 6  # after 1, 2, 4, 8, 16 s
    assert used[-1] == 2


def test_a_busy_machine_gets_one_thread_and_later_all_again() -> None:
    machine = Machine(busy)
    assert machine.run(200)[-50:] == [1] * 50
    machine.seconds = quiet
    assert machine.run(4000)[-50:] == [2] * 50


def test_steps_that_seldom_wait_long_count() -> None:
    steps = itertools.count(1)

    def stalled(threads: int) -> float:
        """Two threads take half the time, but for each eighth step, which waits for a core."""
        if threads == 1:
            return 0.008
        return 0.1 if next(steps) % 8 == 0 else 0.004

    assert Machine(stalled).run(1000)[-50:] == [1] * 50


def test_a_gain_that_may_be_noise_changes_nothing() -> None:
    machine = Machine(lambda threads: 0.01 if threads == 2 else 0.0095)
    machine.run(2000)
    assert machine.count.current == 2


def test_steps_of_other_sizes_are_not_compared() -> None:
    machine = Machine(quiet)
    for step in range(1000):  # never eight of one size in a row
        machine.run(1, rows=1 + step % 2)
    assert set(machine.used) == {2}


@pytest.mark.parametrize("most", [1])
def test_one_core_leaves_no_choice(most: int) -> None:
    assert set(Machine(quiet, most).run(500)) == {1}
