"""What the start of a replica takes, part by part."""

import time

import psutil


class StartTimes:
    """Begins with the process, long before the first line of ours runs in it."""

    def __init__(self) -> None:
        self._began_at = psutil.Process().create_time()
        self._latest = self._began_at
        self._parts: dict[str, float] = {}

    def ended(self, part: str) -> None:
        """Note that a part has ended now; the next one begins."""
        now = time.time()
        self._parts[f"{part}_s"] = round(now - self._latest, 3)
        self._latest = now

    def report(self) -> dict[str, float]:
        """Return the seconds of each part, and `began_at` and `ready_at` in Unix seconds."""
        return {"began_at": self._began_at, **self._parts, "ready_at": self._latest}
