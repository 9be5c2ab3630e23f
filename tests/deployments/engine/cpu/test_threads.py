"""Helpers take part in a call, and one that comes late is left out."""

import threading

import pytest

from deployments.engine.cpu.threads import Threads


def test_every_thread_has_a_number() -> None:
    seen: list[int] = []
    together = threading.Barrier(3, timeout=10)

    def task(number: int) -> None:
        together.wait()  # else a helper that comes late is left out
        seen.append(number)

    threads = Threads()
    for _ in range(20):
        seen.clear()
        threads.run(task, 3)
        assert sorted(seen) == [0, 1, 2]


def test_one_thread_needs_no_helper() -> None:
    seen: list[str] = []
    Threads().run(lambda number: seen.append(threading.current_thread().name), 1)
    assert seen == [threading.current_thread().name]


def test_a_helper_that_has_begun_is_waited_for_and_a_late_one_is_not() -> None:
    threads, begun, goes_on, ended = Threads(), threading.Event(), threading.Event(), []

    def slow(number: int) -> None:
        if number == 0:
            assert begun.wait(10)
            goes_on.set()
        else:
            begun.set()
            assert goes_on.wait(10)
            ended.append(number)

    threads.run(slow, 2)
    assert ended == [1]


def test_a_late_helper_does_nothing() -> None:
    threads, busy, free = Threads(), threading.Event(), threading.Event()
    done = threading.Thread(
        target=threads.run,
        args=(lambda number: (busy.set(), free.wait(10)) if number else busy.wait(10), 2),
    )
    done.start()
    assert busy.wait(10)
    seen: list[int] = []
    threads.run(seen.append, 2)  # its helper is busy with the first call
    free.set()
    done.join(10)
    threads.run(lambda number: None, 2)
    assert seen == [0]


def test_an_error_of_this_thread_is_raised() -> None:
    threads = Threads()

    def fail(number: int) -> None:
        if number == 0:
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        threads.run(fail, 2)
    threads.run(lambda number: None, 2)
