"""The model replicas as a router replica knows them, looked at once a second on a thread.

So /readyz and the refusals answer from what is known and wait for nobody: no queue, no load and no
replica that hangs can hold them up.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
EMPTY_PERIOD_S = 0.1  # while there is no replica, or none was heard yet
LOOK_TIMEOUT_S = 2.0
# A report that is older is of a replica that hangs, or cannot be reached.
STALE_S = 10.0
# The pause after a look is at least so many times as long as the look took.
_MIN_PAUSE_RATIO = 10


class Replicas(Protocol):
    """What a look needs of `ReplicaSet`."""

    def ask(self, method: str, timeout_s: float, *args: Any) -> list[Any]: ...

    def is_healthy(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found.

    reports: what `info` returned, of each replica that answered with this router's configuration.
    num_others: replicas that answered with another configuration.
    is_empty: Serve knows no replica that runs.
    is_asleep: of that, since none is kept when idle: it starts one for the first question.
    is_partial: some answered, and some did not.
    problem: why nobody answered; None if somebody did.
    """

    at: float
    reports: tuple[Mapping[str, Any], ...] = ()
    num_others: int = 0
    is_empty: bool = False
    is_asleep: bool = False
    is_partial: bool = False
    problem: str | None = "the model replicas have not been asked yet"


class ModelWatch:
    """Any thread may read it.

    Args:
        config: of this router: replicas with another one belong to the version before or after.
        sender: this router's name, for the replicas.
        may_sleep: no replica is kept when idle, and Serve starts one for a question that waits.
        clock: seconds, monotonic.

    Attributes:
        on_empty: called after each look that found no replica, with the time when it began
            (seconds, `time.monotonic`).
        on_reports: called with the reports of each look.
    """

    def __init__(
        self,
        replicas: Replicas,
        config: str,
        sender: str,
        *,
        may_sleep: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._config = config
        self._sender = sender
        self._may_sleep = may_sleep
        self.on_empty: Callable[[float], None] = lambda began: None
        self.on_reports: Callable[[Sequence[Mapping[str, Any]]], None] = lambda reports: None
        self._clock = clock
        self._latest = Look(clock())
        self._has_looked = False
        self._heard: Look | None = None  # the latest with a report
        self._saw_others = False
        self._has_slept = False
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="model-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._due.set()

    def look_soon(self) -> None:
        """Look again now: a call has lost its replica."""
        self._due.set()

    @property
    def latest(self) -> Look:
        return self._latest

    @property
    def is_served(self) -> bool:
        """Whether a call may find a replica of this configuration, now or once the first has come.
        True as long as that is not known, since Serve may know better: before the first look that
        answers, and at a start, when the first replica may be there before the next look sees it.
        """
        latest = self._latest
        if latest.is_empty:
            return latest.is_asleep or self._heard is None
        return bool(latest.reports) or not latest.num_others or self.is_awaited

    @property
    def is_awaited(self) -> bool:
        """Whether this router has replaced one of another configuration, and no model of its own
        was seen yet: calls wait for it, unless it is they that wake it."""
        return self._heard is None and self._saw_others and not self._latest.is_asleep

    @property
    def is_early(self) -> bool:
        """Whether this configuration's replicas were never seen, and another's are running, as far
        as is known by now."""
        return self._heard is None and (self._latest.num_others > 0 or not self._has_looked)

    @property
    def num_replicas(self) -> int:
        """Replicas of this configuration that answered lately; at least 1."""
        return max(1, len(self._heard.reports) if self._heard else 0)

    def readiness(self) -> tuple[Mapping[str, Any] | None, str | None]:
        """Return one replica's report, or why there is none that counts."""
        heard, latest = self._heard, self._latest
        if latest.is_asleep:
            return {**(heard.reports[0] if heard else {}), "asleep": True}, None
        if latest.is_empty:
            return None, "no model replica is running"
        if latest.num_others and not latest.reports:
            return None, "the model replicas have another configuration: this one is being replaced"
        if heard is None or self._clock() - heard.at > STALE_S:
            return None, f"no model replica answers: {latest.problem}"
        return heard.reports[0], None

    def look(self) -> Look:
        """Ask every replica once."""
        began = time.monotonic()
        found = self._ask()
        if found.reports:
            self._heard = found
        self._saw_others |= found.num_others > 0
        if found.is_empty and self._may_sleep:
            # Once it sleeps, the question that wakes it makes Serve's state "upscaling".
            self._has_slept |= self._heard is not None or self._replicas.is_healthy()
            found = dataclasses.replace(found, is_asleep=self._has_slept)
        before, self._latest, self._has_looked = self._latest, found, True
        self.on_reports(found.reports)
        if found.is_empty and not found.is_asleep:
            self.on_empty(began)
        if before.is_empty != found.is_empty:
            logger.warning("model replicas: %s", found.problem or "there are some again")
        return found

    def _ask(self) -> Look:
        try:
            answers = self._replicas.ask("info", LOOK_TIMEOUT_S, self._sender, time.time())
        except DeploymentUnavailableError:
            return Look(self._clock(), is_empty=True, problem="no model replica is running")
        except Exception as error:  # Ray's, Serve's, gRPC's: the thread is to look again
            return Look(self._clock(), problem=type(error).__name__)
        reports = [answer for answer in answers if isinstance(answer, dict)]
        ours = tuple(report for report in reports if report.get("config") == self._config)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        are_dead = bool(failed) and all(isinstance(answer, ActorDiedError) for answer in failed)
        return Look(
            self._clock(),
            ours,
            num_others=len(reports) - len(ours),
            is_empty=not reports and are_dead,
            is_partial=bool(reports and failed),
            problem=None if reports else _names(failed),
        )

    def _follow(self) -> None:
        while not self._stopped:
            started = self._clock()
            try:
                self.look()
            except Exception:  # it was a bug of ours, and the next look is needed all the same
                logger.exception("a look at the model replicas failed")
            took_s = self._clock() - started
            self._due.clear()
            is_soon = self._latest.is_empty or self._heard is None
            period_s = EMPTY_PERIOD_S if is_soon else PERIOD_S
            # A look that one replica has held up was no work for the others.
            pause_s = 0.0 if self._latest.is_partial else _MIN_PAUSE_RATIO * took_s
            self._due.wait(max(period_s, min(STALE_S / 2, pause_s)))


def _names(failed: Sequence[BaseException]) -> str:
    return ", ".join(sorted({type(error).__name__ for error in failed})) or "no answer"
