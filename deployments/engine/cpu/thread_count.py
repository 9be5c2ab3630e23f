"""Choose how many threads a step runs on, by the time that steps take beside other work."""

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

_TRIAL_STEPS = 8
_FIRST_PERIOD_S, _LONGEST_PERIOD_S = 1.0, 16.0
_GAIN = 0.9  # of the time that steps take now: what a change must reach


class ThreadCount:
    """Choose between one thread and `most`.

    Threads wait for each other in every layer: where another process has one of the cores, two are
    slower than one. So now and then a few steps run on the other number, and the faster one stays.
    Steps are compared with steps of as many rows. A trial that lost is repeated less often.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.current = most
        self._most, self._clock = most, clock
        self._times: dict[int, deque[float]] = {
            number: deque(maxlen=2 * _TRIAL_STEPS) for number in (1, most)
        }
        self._rows = 0
        self._period_s = _FIRST_PERIOD_S
        self._next_trial = clock() + self._period_s
        self._trial_left = 0

    def begin(self, rows: int) -> int:
        """Return the number of threads for a step of so many rows."""
        if self._most == 1:
            return 1
        if rows != self._rows:
            self._rows, self._trial_left = rows, 0
            for times in self._times.values():
                times.clear()
        has_enough = len(self._times[self.current]) >= _TRIAL_STEPS
        if not self._trial_left and has_enough and self._clock() >= self._next_trial:
            self._trial_left = _TRIAL_STEPS
            self._times[self._other].clear()
        return self._other if self._trial_left else self.current

    def end(self, seconds: float) -> None:
        """Take the time of the step that began last."""
        if self._most == 1:
            return
        if not self._trial_left:
            self._times[self.current].append(seconds)
            return
        self._times[self._other].append(seconds)
        self._trial_left -= 1
        if not self._trial_left:
            self._judge()

    @property
    def _other(self) -> int:
        return 1 if self.current == self._most else self._most

    def _judge(self) -> None:
        # Means: what a busy core costs is a few steps that take ten times as long.
        tried, usual = (statistics.fmean(self._times[n]) for n in (self._other, self.current))
        if tried < _GAIN * usual:
            self.current = self._other
            self._period_s = _FIRST_PERIOD_S
            logger.info(
                "steps of %d rows take %.1f ms on %d threads, %.1f ms before: they stay there",
                *(self._rows, 1e3 * tried, self.current, 1e3 * usual),
            )
        else:
            self._period_s = min(2 * self._period_s, _LONGEST_PERIOD_S)
        self._next_trial = self._clock() + self._period_s
