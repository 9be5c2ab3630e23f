"""Very long prompts are read in pieces that others hardly feel, on a clock that counts what each
step costs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.request import Request, SamplingParams, SchedulerOutput
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling import scheduler
from deployments.engine.scheduling.loop import StepLoop
from deployments.engine.scheduling.pacing import PIECE, Pacing
from deployments.engine.scheduling.prefixes import PrefixCache
from deployments.engine.scheduling.scheduler import Scheduler
from tests.deployments.engine.test_step_engine import ScriptedStepDecoder, _Ready

FIRST, PERIOD = 10, 50  # what the prompts of a timed decoder say over and over
DECODE_S, TOKEN_S = 0.006, 0.00002  # as an 8B base on a GPU, about


def request(prompt: int, tokens: int, adapter: str = "a") -> Request:
    return Request("r", tuple(range(prompt)), adapter, SamplingParams(tokens))


@dataclass
class Device:
    """Runs steps one after another; its loop schedules `ahead` steps before it waits for one."""

    books: Scheduler
    ahead: int
    decode_s: float = DECODE_S
    token_s: float = TOKEN_S
    ends: list[float] = field(default_factory=list)  # of each step
    chunks: list[tuple[float, int, int]] = field(default_factory=list)  # end, start, tokens
    decoded: list[float] = field(default_factory=list)  # ends of steps that decode

    def step(self) -> None:
        now = self.ends[-1 - self.ahead] if len(self.ends) > self.ahead else 0.0
        plan = self.books.schedule(now)
        self.books.check_invariants()
        tokens = sum(chunk.stop - chunk.start for chunk in plan.prefill)
        seconds = self.decode_s * bool(plan.decode) + self.token_s * tokens
        end = max(now, self.ends[-1] if self.ends else 0.0) + seconds
        self.ends.append(end)
        self.chunks += [(end, c.start, c.stop - c.start) for c in plan.prefill]
        if plan.decode:
            self.decoded.append(end)
        for each in plan.emits:
            if each.num_scheduled == each.request.sampling.max_tokens:
                self.books.finish(each)

    def decode(self, tokens: int) -> None:
        """Begin an answer of so many tokens, and take thirty steps."""
        self.books.add(request(100, tokens), 0.0)
        for _ in range(30):
            self.step()

    def read_until(self, end: int, steps: int = 5000) -> None:
        """Step until a prompt was read up to this position."""
        for _ in range(steps):
            self.step()
            if any(start + tokens == end for _, start, tokens in self.chunks):
                return
        raise AssertionError(f"position {end} was not read after {steps} steps")


def device(
    slowdown: float | None,
    ahead: int = 1,
    prefill_tokens: int = 4096,
    rows: int = 8,
    prefixes: PrefixCache | None = None,
    together: int = 1,
) -> Device:
    spread = None if slowdown is None else Pacing(slowdown, ahead)
    books = Scheduler(
        (20_000,) * rows,
        prefill_tokens=prefill_tokens,
        can_split_prompts=True,
        prompts_together=together,
        prefixes=prefixes,
        pacing=spread,
    )
    return Device(books, ahead)


def slowed(running: Device, since: int, until: float) -> float:
    """Return the time per token of those that decode, from this step that decodes on, over that of
    a step that reads nothing."""
    taken = [end for end in running.decoded[since:] if end <= until]
    return (taken[-1] - running.decoded[since - 1]) / len(taken) / running.decode_s


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("slowdown", [1.1, 1.3, 2.0])
def test_others_slow_down_as_far_as_it_was_asked(slowdown: float, ahead: int) -> None:
    running = device(slowdown, ahead)
    running.decode(4000)
    since = len(running.decoded)
    for _ in range(3):  # one behind the other
        running.books.add(request(8192, 1, "b"), 0.0)
    running.read_until(8192)
    first = running.ends[-1]
    running.chunks.clear()
    running.read_until(8192)
    assert all(tokens <= PIECE for _, _, tokens in running.chunks)
    # The last piece is not made up for yet.
    piece_s = PIECE * TOKEN_S * (1 + 8192 // 4096)
    steps = len(running.decoded) - since
    most = slowdown + piece_s / (steps * DECODE_S)
    least = 1 + 0.7 * (slowdown - 1)
    assert least <= slowed(running, since, running.ends[-1]) <= most
    assert slowed(running, since, first) <= slowdown + 2 * piece_s / (steps / 3 * DECODE_S)


def test_without_a_bound_a_prompt_is_read_at_once() -> None:
    running = device(None)
    running.decode(400)
    since = len(running.decoded)
    running.books.add(request(8192, 1, "b"), 0.0)
    running.read_until(8192)
    assert slowed(running, since, running.ends[-1]) > 5


def test_nobody_waits_for_a_prompt_alone() -> None:
    """Not while nothing decodes, nor where no step was seen that reads nothing."""
    running = device(1.3)
    for _ in range(2):
        running.books.add(request(8192, 5), 0.0)
    running.read_until(8192)
    read: Counter[float] = Counter()
    for end, _, tokens in running.chunks:
        read[end] += tokens
    assert set(read.values()) == {4096}, "each step reads as much as it can"


def test_long_prompts_that_are_there_from_the_first_step_on_are_spread_too() -> None:
    """One behind the other, so that no step would read nothing."""
    running = device(1.3, rows=3)
    running.books.add(request(100, 4000), 0.0)
    for _ in range(6):
        running.books.add(request(8192, 1, "b"), 0.0)
    for _ in range(6):
        running.read_until(8192)
        running.chunks.clear()
    assert slowed(running, 1, running.ends[-1]) < 1.4


@pytest.mark.parametrize(("prefill_tokens", "length"), [(1024, 6000), (4096, 16_000)])
def test_short_prompts_do_not_wait_for_its_end_though_nothing_decodes(
    prefill_tokens: int, length: int
) -> None:
    """Those that decoded ended together, and as many questions come at once."""
    running = device(1.3, rows=9, prefill_tokens=prefill_tokens)
    for _ in range(8):
        running.books.add(request(64, 40), 0.0)
    for _ in range(20):
        running.step()
    running.books.add(request(length, 1, "b"), 0.0)
    while running.books.num_running > 1 or running.books.num_waiting:
        running.step()
    short = [running.books.add(request(64, 40), 0.0) for _ in range(8)]
    running.chunks.clear()
    running.step()
    assert all(each.is_prefilled for each in short)
    assert not running.books.num_waiting
    assert sum(tokens for _, _, tokens in running.chunks) == 8 * 64, "the piece before is owed"
    running.read_until(length)


def test_shorter_prompts_are_not_spread_and_do_not_wait() -> None:
    running = device(1.3)
    running.decode(4000)
    running.books.add(request(12_000, 1, "b"), 0.0)
    for _ in range(3):
        running.step()
    running.books.add(request(4096, 1, "c"), 0.0)
    running.chunks.clear()
    running.step()
    running.step()
    assert (0, 4096) in [(start, tokens) for _, start, tokens in running.chunks]
    running.read_until(12_000)


def test_questions_of_one_token_do_not_hold_it_up_for_ever() -> None:
    """Nothing decodes any more that would make up for the piece before."""
    running = device(1.3)
    running.decode(40)
    running.books.add(request(8192, 1, "b"), 0.0)
    for _ in range(2000):
        running.books.add(request(64, 1), 0.0)
        running.step()
        if any(start + tokens == 8192 for _, start, tokens in running.chunks):
            return
    raise AssertionError("the long prompt was not read")


def test_a_pause_that_had_another_cause_is_forgotten() -> None:
    spread = Pacing(1.3, 0)
    now = 0.0

    def step(seconds: float, *, reads_long: bool = False) -> None:
        nonlocal now
        spread.begin(now)
        spread.end(decodes=True, reads=reads_long, reads_long=reads_long)
        now += seconds

    for _ in range(20):
        step(0.01)
    step(100.0, reads_long=True)  # an adapter was loaded meanwhile, say
    waited = 0
    step(0.01)
    while not spread.may_read:
        step(0.01)
        waited += 1
    assert 200 < waited < 1000


@pytest.mark.parametrize("ahead", [0, 1])
def test_pieces_come_one_at_a_time(ahead: int) -> None:
    """Though the time of a piece is seen only after the next step was scheduled."""
    running = device(1.3, ahead)
    running.decode(4000)
    running.books.add(request(8192, 1, "b"), 0.0)
    read = []
    for number in range(100):
        before = len(running.chunks)
        running.step()
        if len(running.chunks) > before:
            read.append(number)
    assert min(b - a for a, b in zip(read, read[1:], strict=False)) > 5


@pytest.mark.parametrize("num_long", [8, 16])
def test_long_prompts_that_wait_for_each_other_hold_no_rows(num_long: int) -> None:
    running = device(1.3)
    running.decode(200)
    for _ in range(num_long):
        running.books.add(request(8192, 100, "b"), 0.0)
    for _ in range(3):
        running.step()
    for adapter in "ab":  # behind the long ones of its queue, too
        short = running.books.add(request(64, 20, adapter), 0.0)
        running.step()
        assert short.num_scheduled == 1
    running.read_until(8192)


def test_nobody_is_held_back_for_a_crowd_of_long_prompts() -> None:
    """Nothing decodes that would wait for a prompt's reading; each step reads 4,096 tokens."""
    running = device(1.3, rows=4, together=4)
    for _ in range(5):
        running.books.add(request(16_000, 100, "b"), 0.0)
    running.step()
    short = running.books.add(request(64, 20), 0.0)
    running.step()
    assert short.num_scheduled == 1


def test_long_prompts_are_read_in_turn_whoever_comes_later() -> None:
    steps = []
    for later in (0, 40):
        running = device(1.3, rows=60)
        running.decode(4000)
        first = running.books.add(request(8192, 1, "b"), 0.0)
        steps.append(0)
        while not first.is_prefilled:
            if steps[-1] < later:
                running.books.add(request(8192, 1, "b"), 0.0)
            running.step()
            steps[-1] += 1
    assert steps[0] == steps[1]


def test_a_conversation_about_a_long_text_does_not_wait_for_other_long_prompts() -> None:
    """Its history is held; what is left to read is short."""
    running = device(1.3, prefixes=PrefixCache(lambda adapter: 0))
    history = tuple(range(9000))
    running.books.add(Request("r", history, "a", SamplingParams(1)), 0.0)
    running.read_until(9000)
    running.decode(4000)
    running.books.add(Request("r", (7,) * 9000, "a", SamplingParams(1)), 0.0)
    running.step()
    asked = running.books.add(Request("r", (*history, 1, 2, 3), "a", SamplingParams(5)), 0.0)
    running.step()
    assert asked.num_scheduled == 1


def test_a_short_prompt_does_not_wait_for_what_a_long_one_is_about_to_read() -> None:
    running = device(1.3, prefixes=PrefixCache(lambda adapter: 0))
    running.decode(4000)
    text = tuple(range(100, 8292))
    running.books.add(Request("r", text, "a", SamplingParams(1)), 0.0)
    running.step()
    short = running.books.add(Request("r", text[:3000], "a", SamplingParams(5)), 0.0)
    same = running.books.add(Request("r", text, "a", SamplingParams(5)), 0.0)
    running.step()
    assert short.num_scheduled == 1
    assert short.prefix is not None
    running.read_until(8192)
    assert same.row is None, "one as long waits: it would read the same"
    running.read_until(8192)
    assert same.prefix is not None
    assert same.prefix.num_tokens == 8191


class Timed(ScriptedStepDecoder):
    """Steps take time, on a clock of its own."""

    def __init__(self, ahead: int) -> None:
        super().__init__(ahead)
        self.capacities = (20_000,) * 3
        self.now = self.end = 0.0
        self.plans: list[SchedulerOutput] = []
        self.loop = StepLoop(
            self,
            4096,
            Outbox(lambda output: None),
            lambda: self.now,
            tries_drafts=True,
            long_prompt_slowdown=1.3,
        )

    def ask(self, prompt: int, tokens: int) -> None:
        ids = tuple(FIRST + i % PERIOD for i in range(prompt))
        asked = Request("r", ids, "a", SamplingParams(tokens))
        row = EngineRow(0, asked, Outbox(lambda output: None), frozenset(), lambda: self.now)
        self.loop.step([row])

    def steps_until(self, is_reached: Callable[[], bool]) -> int:
        before = len(self.plans)
        while not is_reached():
            self.loop.step([])
        return len(self.plans) - before

    def step(self, plan: SchedulerOutput) -> _Ready:
        self.plans.append(plan)
        tokens = sum(chunk.stop - chunk.start for chunk in plan.prefill)
        seconds = DECODE_S * bool(plan.decode) + TOKEN_S * tokens
        self.end = end = max(self.now, self.end) + seconds
        device, tokens_of = self, super().step(plan)

        class Late(_Ready):
            def wait(self) -> Mapping[int, int]:
                device.now = max(device.now, end)
                return tokens_of.wait()

        return Late({})

    def reads(self) -> bool:
        return bool(self.plans[-1].prefill)


@pytest.mark.parametrize("ahead", [0, 1])
def test_nobody_asking_anything_is_no_step(ahead: int) -> None:
    decoder = Timed(ahead)
    for _ in range(20):
        decoder.ask(100, 2)
        decoder.steps_until(lambda: not decoder.loop.has_work)
        decoder.now += 1.0
    decoder.ask(100, 90)
    for _ in range(5):
        decoder.loop.step([])
    decoder.ask(8192, 1)
    assert decoder.reads()
    for _ in range(5):
        decoder.loop.step([])
        assert not decoder.reads(), "the piece before is not made up for"


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_task_between_two_steps_is_owed_to_nobody(ahead: int) -> None:
    decoder = Timed(ahead)
    decoder.ask(1000, 900)
    decoder.steps_until(lambda: len(decoder.plans) == 12)
    decoder.ask(8192, 1)
    assert decoder.reads()
    decoder.loop.pause()
    decoder.now += 100.0
    decoder.loop.step([])
    assert decoder.steps_until(decoder.reads) < 20


class Guessing(Timed):
    """Says what its prompts say, so guesses are right."""

    can_try_drafts = True
    drafted_rows, draft_tokens = 1, 8

    def __init__(self, ahead: int) -> None:
        super().__init__(ahead)
        self.said: list[float] = []  # when each token came

    def step_drafts(self, lines: Mapping[int, Sequence[int]]) -> Mapping[int, list[int]]:
        self.now = self.end = max(self.now, self.end) + DECODE_S
        self.said += [self.now for line in lines.values() for _ in line]
        for row, line in lines.items():
            self.num_out[row] += len(line)
        return {
            row: [*line[1:], FIRST + (line[-1] - FIRST + 1) % PERIOD] for row, line in lines.items()
        }

    def step(self, plan: SchedulerOutput) -> _Ready:
        ready = super().step(plan)
        self.said += [self.end for _ in plan.decode]
        return ready


@pytest.mark.parametrize("ahead", [0, 1])
def test_answers_that_are_guessed_slow_down_no_more_than_others(ahead: int) -> None:
    """A step that reads a piece gives them one token, and others give several."""
    decoder = Guessing(ahead)
    decoder.ask(80 * PERIOD, 80 * PERIOD)
    while len(decoder.said) < 200:
        decoder.loop.step([])
    since, began, alone_s = len(decoder.said), decoder.said[-1], DECODE_S / decoder.draft_tokens
    assert began - decoder.said[-1 - 8 * decoder.draft_tokens] == pytest.approx(8 * DECODE_S)
    for _ in range(3):
        decoder.ask(8192, 1)
    decoder.steps_until(lambda: sum(plan.prefill != () for plan in decoder.plans) == 12)
    # The last piece is not made up for yet.
    taken_s = (decoder.said[-2] - began) / (len(decoder.said) - 1 - since)
    assert 1.15 * alone_s < taken_s < 1.3 * alone_s


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 120), st.integers(1, 12), st.sampled_from("abc")), max_size=12
    ),
    arrivals=st.lists(st.integers(0, 60), min_size=12, max_size=12),
    ahead=st.integers(0, 1),
    decode_s=st.floats(0.0, 0.01),
    token_s=st.floats(0.0, 0.01),
)
def test_every_prompt_is_read_and_answered(
    prompts: list[tuple[int, int, str]],
    arrivals: list[int],
    ahead: int,
    decode_s: float,
    token_s: float,
) -> None:
    """Whatever steps take, and whoever comes when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "LONG_PROMPT", 30)
        patch.setattr(scheduler, "PIECE", 8)
        running = device(1.3, ahead, prefill_tokens=16, rows=3)
        running.decode_s, running.token_s = decode_s, token_s
        added = []
        for number in range(20_000):
            due = [about for about, at in zip(prompts, arrivals, strict=False) if at == number]
            added += [running.books.add(request(*about), 0.0) for about in due]
            running.step()
            if number > 60 and all(each.is_finished for each in added):
                break
        assert len(added) == len(prompts)
        assert all(each.is_finished for each in added)
