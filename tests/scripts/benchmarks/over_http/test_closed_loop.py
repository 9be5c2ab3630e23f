"""A closed loop ends after so many seconds, or after so many answers."""

import time
from typing import Any

import pytest

from scripts.benchmarks.over_http import closed_loop
from scripts.benchmarks.over_http.http_client import PreparedRequest

REQUESTS = [PreparedRequest.post(name, "http://nowhere", {}) for name in "abc"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    async def read(session: Any, request: PreparedRequest) -> Any:
        names.append(request.name)
        return request.name

    monkeypatch.setattr(closed_loop, "read_stream", read)
    return names


def ask(streams: range, seconds: float, most: int | None) -> int:
    until = time.perf_counter() + seconds
    return len(closed_loop._ask_all(REQUESTS, streams, until=until, most=most, keeps=True))


def test_each_stream_gets_so_many_answers_from_another_request_on(asked: list[str]) -> None:
    assert ask(range(3), 60.0, 4) == 12
    assert sorted(asked) == sorted("abcabcabcabc")


def test_nobody_asks_once_the_time_is_over(asked: list[str]) -> None:
    assert ask(range(2), -1.0, 4) == 0
    assert ask(range(2), 0.05, None) > 4
