"""What goes over the sockets comes back as it was, and what is something else is refused."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.channel.frames import BadFrame, FrameReader, load_frame, pack_frame
from deployments.engine.decoder import DecoderInfo
from deployments.engine.errors import (
    AdapterNotSupported,
    EngineError,
    EngineStopped,
    LoraPoolError,
    QueueFull,
)
from deployments.engine.request import (
    Drafts,
    EndedRow,
    ErrorInfo,
    FinishReason,
    Request,
    SamplingParams,
    StartedRow,
    StepOutput,
    TokenScore,
)
from deployments.engine_process.wire import (
    pack_error,
    pack_info,
    pack_request,
    pack_step,
    parts_of,
    unpack_error,
    unpack_info,
    unpack_request,
    unpack_step,
)

NUMBERS = st.integers(0, 2**62)


def payload(frame: bytes) -> bytes:
    [found] = FrameReader().feed(frame)
    return found


def test_a_request() -> None:
    free = SamplingParams(9, 0.5, 0.9, 2**63 - 1, ("\n", "é"), 3, 1.25, 2, 4, 5, 6, True)
    structured = SamplingParams(9, grammar="start: /é/")  # neither stops nor echoes
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    values = [{getattr(s, name) for s in (SamplingParams(1), free, structured)} for name in names]
    same = [name for name, found in zip(names, values, strict=True) if len(found) == 1]
    assert same == [], "a field that has its default value here may not travel"
    for sampling in (free, structured):
        request = Request("r", (0, 1, 2**31), "derm@1", sampling, 2.5, True, "t")
        word, number, *fields = load_frame(payload(pack_request(7, request)))
        assert (word, number, unpack_request(*fields)) == ("add", 7, request)


@given(
    st.lists(st.builds(StartedRow, NUMBERS, NUMBERS), max_size=9),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=9),
    st.lists(st.tuples(NUMBERS, st.sampled_from(FinishReason), NUMBERS), max_size=3),
)
def test_a_step(
    started: list[StartedRow],
    pairs: list[tuple[int, int]],
    ended: list[tuple[int, FinishReason, int]],
) -> None:
    error = ErrorInfo("decoder_failed", "it failed", None, 3)
    rows = [EndedRow(*row, None if row[1] is FinishReason.STOP else error) for row in ended]
    output = StepOutput(started, [n for n, _ in pairs], [t for _, t in pairs], rows)
    assert unpack_step(payload(pack_step(output))) == output


def test_a_step_with_the_scores_of_long_prompts_comes_in_parts() -> None:
    scores = {
        row: [TokenScore(n, -0.5, ((n, -1.0),) * 20) for n in range(9_000)] for row in range(4)
    }
    output = StepOutput([StartedRow(1, 2)], [0, 1], [5, 6], [], scores)
    frames = [pack_step(part) for part in parts_of(output)]
    assert max(map(len, frames)) < 2**20
    parts = [unpack_step(payload(frame)) for frame in frames]
    joined: dict[int, list[TokenScore]] = {}
    for part in parts:
        for row, found in part.scores.items():
            joined.setdefault(row, []).extend(found)
    assert joined == scores
    assert all(part.numbers == [] == part.started for part in parts[:-1])
    assert dataclasses.replace(parts[-1], scores=scores) == output
    bare = StepOutput([], [1], [2])
    assert list(parts_of(bare)) == [bare]


def test_a_step_with_guesses() -> None:
    output = StepOutput([], [0, 0], [5, 6], [], {}, {0: Drafts(7, 1), 12: Drafts(3, 0)})
    assert unpack_step(payload(pack_step(output))) == output


@pytest.mark.parametrize(
    "content", [[], [1], [[4], b"", b"", []], [[], b"123", b"", []], [[], b"", b"", [["x"]]], "no"]
)
def test_what_is_no_step_is_refused(content: object) -> None:
    with pytest.raises(BadFrame, match="not what a step makes"):
        unpack_step(payload(pack_frame(content)))  # type: ignore[arg-type]


def test_info() -> None:
    info = DecoderInfo("fast", "why", "cpu", "float32", 64, frozenset({0, 2}), frozenset({"a"}))
    info = replace(info, rows={"asked": 4, "given": 3, "by_positions": {"64": 3}, "reason": "x"})
    assert unpack_info(load_frame(payload(pack_frame([pack_info(info)])))[0]) == info


def test_errors_keep_their_class_text_and_problems() -> None:
    refused = AdapterNotSupported(Path("x"), ["it is DoRA", "it has biases"])
    for error in (refused, LoraPoolError("no slot"), EngineStopped("gone"), QueueFull(3, 2)):
        again = unpack_error(pack_error(error))
        assert type(again) is type(error)
        assert isinstance(again, EngineError)
        assert again.info == error.info
        assert getattr(again, "problems", None) == getattr(error, "problems", None)
    assert isinstance(unpack_error(pack_error(FileNotFoundError("no file"))), OSError)
    other = unpack_error(pack_error(KeyError("rank")))
    assert (type(other).__name__, str(other)) == ("KeyError", "'rank'")
    assert not isinstance(other, EngineError | OSError)
