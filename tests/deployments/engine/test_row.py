"""What a row of the engine leaves in the log."""

import logging

import pytest

from deployments.engine.request import FinishReason, Request, SamplingParams, StepOutput
from deployments.engine.row import EngineRow, Outbox


def run(request: Request) -> StepOutput:
    outputs: list[StepOutput] = []
    outbox = Outbox(outputs.append)
    row = EngineRow(1, request, outbox, frozenset({0}))
    row.begin()
    for token in (5, 6, 0):
        row.push(token)
    row.finish(FinishReason.TIMEOUT)  # which is too late
    outbox.flush()
    return outputs[0]


@pytest.mark.parametrize("is_logged", [True, False])
def test_a_request_that_is_logged_has_two_records(
    our_records: list[logging.LogRecord], is_logged: bool
) -> None:
    request = Request("visit.7", (1, 2, 3), None, SamplingParams(9), None, is_logged)
    assert run(request).tokens == [5, 6]
    said = [(vars(record)["request_id"], record.getMessage()) for record in our_records]
    assert said == (
        [
            ("visit.7", "engine_step: the first one, 3 prompt tokens"),
            ("visit.7", "engine_end: stop, 3 tokens"),
        ]
        if is_logged
        else []
    )
