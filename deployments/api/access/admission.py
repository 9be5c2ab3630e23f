"""The requests in progress at one router replica, and whether new ones are let in."""

from deployments.api.errors import ApiError, engine_error
from deployments.messages import Backend

_OVERLOADED_RETRY_S = 1
_DRAINING_RETRY_S = 10


class Admission:
    """One event loop uses it; `drain` may come from any thread.

    Attributes:
        num_running: requests that were let in and have not ended; probes and the page do not count.
    """

    def __init__(self) -> None:
        self.num_running = 0
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """Whether the server is about to stop: what runs goes on, nothing new is let in."""
        return self._is_draining

    def drain(self) -> None:
        self._is_draining = True

    def refusal(self, max_running: int) -> ApiError | None:
        """Return why a new request is not let in now; None if it is."""
        if self._is_draining:
            return ApiError(
                503,
                "draining",
                "the server is stopping and takes no new request: try again shortly",
                headers={"retry-after": str(_DRAINING_RETRY_S)},
            )
        if self.num_running >= max_running:
            return ApiError(
                503,
                "overloaded",
                f"{max_running} requests are in progress at this router replica, its limit: try "
                "again shortly",
                detail={"limit": max_running},
                headers={"retry-after": str(_OVERLOADED_RETRY_S)},
            )
        return None


def check_capacity(backend: Backend, timeout_s: float) -> None:
    """Refuse a question that would not be answered in time, before it is classified.

    Raises:
        ApiError: 503 with Retry-After.
    """
    refusal = backend.refusal(timeout_s)
    if refusal is not None:
        raise engine_error(refusal)
