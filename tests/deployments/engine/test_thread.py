"""One thread for a decoder's whole life."""

import threading
import time

import pytest

from deployments.engine.thread import TorchThread


def test_tasks_run_in_order_on_one_thread_until_it_is_closed() -> None:
    thread = TorchThread()
    gate = threading.Event()
    seen: list[int] = []
    first = thread.submit(lambda: gate.wait(5))
    cancelled = thread.submit(lambda: seen.append(0))
    assert cancelled.cancel()
    others = [thread.submit(lambda n=n: seen.append(n) or threading.get_ident()) for n in (1, 2)]  # type: ignore[misc]
    thread.close()
    gate.set()
    assert first.result(5) is True
    assert len({other.result(5) for other in others} | {threading.get_ident()}) == 2
    assert seen == [1, 2]
    deadline = time.monotonic() + 5
    while others[0].result() in {found.ident for found in threading.enumerate()}:
        assert time.monotonic() < deadline, "the thread did not end"
        time.sleep(0.01)


def test_what_a_task_raises_comes_to_the_caller_and_the_next_one_runs() -> None:
    thread = TorchThread()

    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        thread.submit(fail).result(5)
    assert thread.submit(lambda: 7).result(5) == 7
    thread.close()
