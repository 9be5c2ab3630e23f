"""When tokens arrived, and what that says of the time per token."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

Window = tuple[float, float]
"""From and to, in seconds of one clock; the end is not part of it."""


def per_token_ms(tokens: Sequence[float], windows: Sequence[Window], rows: int) -> float:
    """Milliseconds that a row waits for its next token.

    Args:
        tokens: when each token of any row came.
        rows: that ran all the time.
    """
    seconds = sum(stop - start for start, stop in windows)
    count = sum(1 for t in tokens if any(start <= t < stop for start, stop in windows))
    return seconds * rows / max(1, count) * 1000


def token_times(pieces: Sequence[tuple[float, int]], num_tokens: int) -> list[float]:
    """When each of an answer's tokens came, from its pieces (time, characters).

    A piece may hold several tokens, and a stream says their number only at its end: they are shared
    out by characters.
    """
    total = sum(length for _, length in pieces)
    times: list[float] = []
    so_far = 0
    for time, length in pieces:
        so_far += length
        times += [time] * (round(num_tokens * so_far / total) - len(times))
    return times


def longest_gap_s(answers: Iterable[Sequence[float]], windows: Sequence[Window]) -> float:
    """The longest wait between two pieces of one answer that touches one of the windows; 0 if
    none does."""
    gaps = [
        later - earlier
        for times in answers
        for earlier, later in itertools.pairwise(times)
        if any(earlier < stop and later > start for start, stop in windows)
    ]
    return max(gaps, default=0.0)


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }
