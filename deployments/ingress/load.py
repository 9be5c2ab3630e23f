"""How long a new answer would wait: what is let in is to be answered in time, so the rest is
refused before it is classified."""

import math

from deployments.engine.request import ErrorInfo, TokenEvent

_WEIGHT = 0.05  # of the newest answer in the mean
_MAX_RETRY_S = 60


class WaitEstimate:
    """Answers in progress beyond the rows wait for as many to end. One event loop uses it."""

    def __init__(self) -> None:
        self._service_s: float | None = None

    def saw(self, event: TokenEvent) -> None:
        """Take the time of an answer that has ended into the mean."""
        total_s, queue_s = event.timings.total_s, event.timings.queue_s
        if event.finish_reason is None or event.error is not None or total_s is None:
            return
        took_s = max(0.0, total_s - (queue_s or 0.0))
        known = self._service_s
        self._service_s = took_s if known is None else known + _WEIGHT * (took_s - known)

    def wait_s(self, num_in_progress: int, num_rows: int) -> float:
        """Return the predicted wait of the last of them; 0 before an answer has ended."""
        return max(0, num_in_progress - num_rows) * (self._service_s or 0.0) / num_rows


def too_long(wait_s: float, limit_s: float, num_in_progress: int) -> ErrorInfo | None:
    """Return the refusal of a request that would wait longer than `limit_s`; None below that."""
    if wait_s <= limit_s:
        return None
    retry_s = min(_MAX_RETRY_S, max(1, math.ceil(wait_s - limit_s)))
    return ErrorInfo(
        "queue_full",
        f"{num_in_progress} requests are in progress, and an answer would begin in about "
        f"{wait_s:.0f} s, later than {limit_s:g} s: try again in {retry_s} s",
        retry_after_s=retry_s,
    )
