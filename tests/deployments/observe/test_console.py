"""Records of requests are in a replica's file, and not on its console."""

import io
import logging
import logging.handlers
import time
from collections.abc import Iterator

import pytest

from deployments.engine.request import FinishReason, Request, SamplingParams
from deployments.engine.row import EngineRow, Outbox
from deployments.observe.records import log_request
from deployments.replica import use_serve_handlers

NAMES = ("adapters", "deployments", "references", "router")


@pytest.fixture
def console_and_file() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """The handlers that Serve gives a replica: one of the console, one before a file."""
    texts = io.StringIO(), io.StringIO()
    console = logging.StreamHandler(texts[0])
    file = logging.handlers.MemoryHandler(1, target=logging.StreamHandler(texts[1]))
    serve = logging.getLogger("ray.serve")
    loggers = [serve, *map(logging.getLogger, NAMES)]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    serve.handlers = [console, file]
    yield texts
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_a_request_is_in_the_file_and_all_else_in_both(
    console_and_file: tuple[io.StringIO, io.StringIO],
) -> None:
    for _ in range(3):  # each change of the live settings comes by
        use_serve_handlers("INFO")
    log_request(logging.getLogger("deployments.api"), "visit.7", "answer", outcome="stop")
    for name in NAMES:
        logging.getLogger(name).warning("of %s", name)
    console, file = (text.getvalue().splitlines() for text in console_and_file)
    others = [f"of {name}" for name in NAMES]
    assert console == others
    assert file == ["answer: outcome stop", *others]


def test_the_engines_records_of_a_request_are_not_on_the_console(
    console_and_file: tuple[io.StringIO, io.StringIO],
) -> None:
    """Nor where the engine runs on a thread of the replica."""
    use_serve_handlers("INFO")
    asked = Request("visit.7", (5, 6, 7), None, SamplingParams(4), is_logged=True)
    row = EngineRow(1, asked, Outbox(lambda output: None), frozenset())
    row.begin()
    row.finish(FinishReason.STOP)
    console, file = (text.getvalue().splitlines() for text in console_and_file)
    assert console == []
    assert [line.partition(":")[0] for line in file] == ["engine_step", "engine_end"]


def test_records_of_requests_are_written_together_and_within_a_second(
    console_and_file: tuple[io.StringIO, io.StringIO],
) -> None:
    logger, file = logging.getLogger("deployments.api"), console_and_file[1]
    use_serve_handlers("INFO", are_requests_logged=True)
    for number in range(3):
        log_request(logger, f"visit.{number}", "answer", outcome="stop")
    assert file.getvalue() == ""
    deadline = time.monotonic() + 5
    while file.getvalue().count("outcome stop") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log_request(logger, "visit.4", "answer", outcome="length")
    logger.error("a step failed")
    assert file.getvalue().splitlines()[-2:] == ["answer: outcome length", "a step failed"]
    use_serve_handlers("INFO")
    log_request(logger, "visit.5", "answer", outcome="loop")
    assert file.getvalue().splitlines()[-1] == "answer: outcome loop"
