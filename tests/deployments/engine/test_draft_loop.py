"""The loop over a decoder whose answers are a function of what was said: guesses change nothing."""

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.decoder import DecoderInfo
from deployments.engine.request import Request, SamplingParams, SchedulerOutput
from tests.deployments.engine.prefix_runs import Driver
from tests.deployments.engine.test_step_engine import EOS, ScriptedStepDecoder, _Ready

PERIOD = 7  # answers repeat themselves, but for every 11th token


def said(ids: Sequence[int]) -> int:
    """The token that follows; sometimes the end."""
    length = len(ids)
    if length % 11 == 0:
        return 40 + length % 5 if ids[0] % 2 or length < 33 else EOS
    return ids[-PERIOD] if length >= PERIOD else 30 + length


class Speaker(ScriptedStepDecoder):
    """Fails if a row is decoded beyond what its request may need."""

    can_try_drafts = True

    def __init__(self) -> None:
        super().__init__()
        self.capacities = (200,) * 4
        self.said: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.num_steps = 0
        self.num_right = 0

    @property
    def info(self) -> DecoderInfo:
        eos = frozenset({EOS})
        return DecoderInfo("scripted", "test", "cpu", "none", 200, eos, self.adapters)

    def step(self, plan: SchedulerOutput) -> _Ready:
        self.num_steps += 1
        for chunk in plan.prefill:
            if chunk.is_last:
                request = chunk.request
                self.said[chunk.row] = list(request.prompt_ids)
                self.limits[chunk.row] = len(request.prompt_ids) + request.sampling.max_tokens
        rows = [*(c.row for c in plan.prefill if c.is_last), *plan.decode]
        return _Ready({row: self._next(row) for row in rows})

    def step_drafts(
        self, rows: Sequence[int], drafts: Mapping[int, Sequence[int]]
    ) -> Mapping[int, list[int]]:
        self.num_steps += 1
        found: dict[int, list[int]] = {}
        for row in rows:
            guesses = [*drafts.get(row, ()), None]
            assert len(self.said[row]) + len(guesses) <= self.limits[row], "beyond its row"
            found[row] = []
            for guess in guesses:
                found[row].append(self._next(row))
                if found[row][-1] != guess:
                    break
            self.num_right += len(found[row]) - 1
        return found

    def _next(self, row: int) -> int:
        self.said[row].append(said(self.said[row]))
        return self.said[row][-1]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 90), st.integers(0, 40)),
        min_size=1,
        max_size=6,
    )
)
def test_answers_are_the_same(shapes: list[tuple[int, int, int]]) -> None:
    requests = [
        Request("r", tuple(range(1, length + 1)), None, SamplingParams(tokens))
        for length, tokens, _ in shapes
    ]
    arrivals = [arrival for _, _, arrival in shapes]
    sides = []
    for tries in (False, True):
        driver = Driver(Speaker(), reuses_prefixes=False, tries_drafts=tries)
        found = driver.run(requests, arrivals=arrivals)
        driver.loop._scheduler.check_invariants()
        sides.append((found.tokens, found.num_ended))
    assert sides[0] == sides[1]
    assert sides[0][1] == len(requests)


def test_repeated_text_takes_fewer_steps() -> None:
    decoder = Speaker()
    request = Request("r", tuple(range(1, 11)), None, SamplingParams(120))
    found = Driver(decoder, reuses_prefixes=False, tries_drafts=True).run([request])
    assert len(found.tokens[0]) == 120
    assert decoder.num_right + decoder.num_steps == 120
    assert decoder.num_steps < 90
