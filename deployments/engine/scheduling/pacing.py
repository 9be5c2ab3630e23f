"""Spread the reading of a long prompt over time, so that other answers go on nearly as fast."""

from collections import deque
from dataclasses import dataclass

LONG_PROMPT = 4096  # tokens to be read; fewer are not spread
PIECE = 1024  # tokens that one step reads of a long prompt at most, beside others
# Of the slowdown that is allowed beyond 1: on an H200 the steps between two pieces take a hundredth
# longer than steps without any, so 1.3 came out as 1.312 (docs/benchmarks/long_prompt_h200.json).
_AIMED_AT = 0.9
_MEASURED = 15  # steps that read nothing, whose median counts
_MOST_OWED = 256  # such steps: more of a pause had another cause than a piece


@dataclass(slots=True)
class _Step:
    decodes: bool
    reads: bool
    reads_long: bool
    tokens: float = 1.0  # of each row that it decodes, on average


class Pacing:
    """Say when a step may read a piece of a long prompt: once the steps without one have made up
    for the time that the pieces before it took.

    What a step takes is the time from one call of `begin` to the next, or to `pause` before it. A
    step with guessed tokens may give a row several, and the time of each counts.

    Args:
        slowdown: the time per token of other answers may grow to so many times what it is without.
        steps_ahead: steps that are launched before the first one's tokens are waited for, so that
            a step's time is seen so many steps later.
    """

    def __init__(self, slowdown: float, steps_ahead: int) -> None:
        self._slowdown = 1.0 + _AIMED_AT * (slowdown - 1.0)
        self._latest: deque[_Step] = deque(maxlen=steps_ahead + 1)
        self._quiet_s: deque[float] = deque(maxlen=_MEASURED)  # per token, where nothing is read
        self._owed_s = 0.0
        self._unmeasured = 0  # steps to wait for one that reads nothing, where none was seen
        self._unseen = 0  # steps until the time of the last piece was seen
        self._began: float | None = None

    @property
    def may_read(self) -> bool:
        """Return whether the step that begins now may read a piece."""
        is_known = bool(self._quiet_s) or self._unmeasured == 0
        return is_known and self._unseen == 0 and self._owed_s <= 0.0

    def begin(self, now: float) -> None:
        """Begin a step, and count what the steps before it took. now: seconds, of one clock."""
        self.pause(now)
        self._began = now
        self._unmeasured = max(0, self._unmeasured - 1)
        self._unseen = max(0, self._unseen - 1)

    def pause(self, now: float, *, is_idle: bool = False) -> None:
        """Note that what comes until the next `begin` is no step's time: an adapter is loaded, say.

        is_idle: nobody asks anything, so nobody is left to make up for.
        """
        if self._began is not None and self._latest:
            self._count(now - self._began)
        self._began = None
        if is_idle:
            self._owed_s = 0.0

    def end(self, *, decodes: bool, reads: bool, reads_long: bool) -> None:
        """Note what the step does: decodes rows, reads prompts, reads a piece of a long one."""
        self._latest.append(_Step(decodes, reads, reads_long))
        if reads_long:
            self._unmeasured = _MEASURED
            self._unseen = self._latest.maxlen or 0

    def extend(self, num_tokens: float) -> None:
        """Count tokens that the step made beside one for each row it decodes, per such row."""
        self._latest[-1].tokens += num_tokens

    def _count(self, seconds: float) -> None:
        latest = self._latest[-1]
        if all(step.decodes and not step.reads for step in self._latest):
            self._quiet_s.append(seconds / latest.tokens)
        if not self._quiet_s:
            return
        quiet_s = sorted(self._quiet_s)[len(self._quiet_s) // 2]
        reads_long = any(step.reads_long for step in self._latest)
        if latest.decodes and reads_long:
            self._owed_s += seconds - self._slowdown * quiet_s * latest.tokens
        elif latest.decodes:
            self._owed_s -= (self._slowdown - 1.0) * quiet_s * latest.tokens
        elif not reads_long:  # nobody waited for a next token
            self._owed_s -= (self._slowdown - 1.0) * seconds
        # Nothing is saved up, but by the steps that end while a piece is launched behind them.
        least_s = -(self._slowdown - 1.0) * quiet_s * max(0, self._unseen - 1)
        self._owed_s = min(max(self._owed_s, least_s), _MOST_OWED * quiet_s)
