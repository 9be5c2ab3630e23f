"""Ratios of two sides on a machine whose speed drifts: from blocks that are neighbours in time.

A turn is three blocks of two sides, X Y X: the mean of the logarithms of X's two speeds less that
of Y's. Whatever changes evenly over a turn cancels. A comparison's ratio is the Hodges-Lehmann
estimate over its turns (the median of the means of all pairs of them: nearly as efficient as the
mean, and unmoved by a few outliers; Hodges and Lehmann 1963), its interval a percentile bootstrap
over turns (Efron and Tibshirani 1993, chapter 13).
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from scripts.evaluation.bootstrap import interval

OURS, LLAMA_CPP, PEFT = "polyclinic", "llama.cpp", "PEFT"
MIXED, BASE, ONE_BY_ONE = "mixed", "base", "one by one"
MAX_OTHERS = 0.05  # share of all cores that a block may lose to other processes and other guests
MAX_PROBES = 1.3  # how much longer than before a block the same product may take after it, or less
# How much longer than usual two cores may wait for each other around a block. On a virtual machine
# they do so for tens of seconds, and a side that computes with both is then another share of one
# that computes with one.
MAX_WAIT = 1.25
_USUAL = 10  # percentile of a run's waits
_CALMEST = 30  # percent of the turns that count at least, however restless the machine is
MIN_TURNS = 5  # before an interval is believed
_LEAST_TURNS = 2  # of a comparison that count, on a restless machine too
_RESAMPLES = 2000


PROBES = ("product", "copy", "wait")
Probe = tuple[float, float, float]
"""Microseconds of each (`in_torch.probe`)."""


class Condition(NamedTuple):
    """What is measured in a block."""

    side: str
    adapters: str
    streams: int

    def __str__(self) -> str:
        return f"{self.side}, {self.adapters}, {self.streams}"


class Comparison(NamedTuple):
    """The ratio of one side's speed (ours) to another's."""

    ours: Condition
    theirs: Condition

    def __str__(self) -> str:
        return str(self.theirs)

    def turn(self, number: int) -> tuple[Condition, Condition, Condition]:
        """Return the blocks of the turn of this number. Theirs is in the middle, as it takes
        longer; of two blocks of ours either, in turn."""
        if self.theirs.side == OURS and number % 2:
            return self.theirs, self.ours, self.theirs
        return self.ours, self.theirs, self.ours


@dataclass(frozen=True, slots=True)
class Block:
    """One side for some seconds, and what the machine did meanwhile."""

    condition: Condition
    tokens_per_s: float
    first_token_s: float | None  # median; None: not over HTTP
    stolen: float  # share of all cores that the hypervisor gave to other guests
    others: float  # share of all cores that processes of no side took
    at_s: float  # when it ended, since all sides are up
    probes_us: tuple[Probe, Probe]  # the same small works before and after it

    @property
    def is_robbed(self) -> bool:
        """Whether other processes or guests took more than `MAX_OTHERS`."""
        return self.stolen + self.others > MAX_OTHERS

    def restlessness(self, usual_wait_us: float) -> float:
        """Return how far the probes reached or exceeded their limits, 1 at the limit. It is of what
        was seen of the machine, never of the block's own speed."""
        low, high = sorted(probe[0] for probe in self.probes_us)
        wait = max(probe[2] for probe in self.probes_us)
        return max(high / low / MAX_PROBES, wait / usual_wait_us / MAX_WAIT)

    def as_row(self) -> dict[str, Any]:
        """Return it as the result file lists it."""
        row = asdict(self) | self.condition._asdict()
        del row["condition"]
        return {name: _rounded(value) for name, value in row.items()}


Turn = Sequence[Block]


@dataclass(frozen=True, slots=True)
class Calm:
    """What of a machine counts as undisturbed in a run.

    Args:
        usual_wait_us: microseconds that its cores wait for each other when they are quick to do so.
        limit: the most `Block.restlessness` of a turn that counts.
    """

    usual_wait_us: float = math.inf
    limit: float = 1.0

    def is_long(self, wait_us: float) -> bool:
        """Return whether cores that wait so long for each other are disturbed."""
        return wait_us / self.usual_wait_us / MAX_WAIT > self.limit

    def is_disturbed(self, turn: Turn) -> bool:
        return any(
            block.is_robbed or block.restlessness(self.usual_wait_us) > self.limit for block in turn
        )


def calm_of(turns: Iterable[Turn]) -> Calm:
    """Return what counts as undisturbed among the turns of a run. The limits above hold; where the
    probes seldom keep theirs, the calmest three in ten of the turns that nobody robbed count."""
    turns = _unrobbed(turns)
    if not turns:
        return Calm()
    waits = [probe[2] for turn in turns for block in turn for probe in block.probes_us]
    usual = float(np.percentile(waits, _USUAL))
    each = [_restlessness(turn, usual) for turn in turns]
    return Calm(usual, max(1.0, float(np.percentile(each, _CALMEST))))


def _unrobbed(turns: Iterable[Turn]) -> list[Turn]:
    return [turn for turn in turns if not any(block.is_robbed for block in turn)]


def _restlessness(turn: Turn, usual_wait_us: float) -> float:
    return max(block.restlessness(usual_wait_us) for block in turn)


def comparisons(streams: Iterable[int]) -> list[Comparison]:
    """Return ours over each peer, and our mixed adapters over our base alone. PEFT's requests one
    by one are as fast whatever the number of streams, so they are compared at the first only."""
    found = []
    for index, num in enumerate(streams):
        mixed, base = Condition(OURS, MIXED, num), Condition(OURS, BASE, num)
        found += [
            Comparison(mixed, Condition(LLAMA_CPP, MIXED, num)),
            Comparison(base, Condition(LLAMA_CPP, BASE, num)),
            Comparison(mixed, Condition(PEFT, MIXED, num)),
            Comparison(mixed, base),
        ]
        if index == 0:
            found.append(Comparison(mixed, Condition(PEFT, ONE_BY_ONE, num)))
    return found


def log_ratio(comparison: Comparison, turn: Turn) -> float:
    """Return the logarithm of ours over theirs in one turn."""
    speeds: dict[Condition, list[float]] = {}
    for block in turn:
        speeds.setdefault(block.condition, []).append(math.log(block.tokens_per_s))
    return statistics.fmean(speeds[comparison.ours]) - statistics.fmean(speeds[comparison.theirs])


def ratio(
    comparison: Comparison, turns: Sequence[Turn], calm: Calm, seed: int = 0
) -> dict[str, Any]:
    """Return the ratio over the turns that count, its 95 % interval (low, high), and each turn's;
    how many turns there were, how many were disturbed and left out, and how many count although the
    machine was restless, if any."""
    counting = counted_turns(turns, calm)
    logs = [log_ratio(comparison, turn) for turn in counting]
    counted = {"turns": len(logs), "disturbed": len(turns) - len(logs)}
    if restless := len(counting) - len(undisturbed(counting, calm)):
        counted["restless"] = restless
    if not logs:
        return counted
    drawn = np.random.default_rng(seed).integers(0, len(logs), (_RESAMPLES, len(logs)))
    resampled = np.array(logs)[drawn]
    low, high = np.exp(interval(_hodges_lehmann(resampled)))
    ratio = math.exp(_hodges_lehmann(np.array([logs]))[0])
    each = [_rounded(math.exp(log)) for log in logs]
    return {"ratio": ratio, "low": float(low), "high": float(high), **counted, "each": each}


def half_width(comparison: Comparison, turns: Sequence[Turn], calm: Calm) -> float:
    """Return half of the interval as a share of the ratio, infinite before `MIN_TURNS`."""
    found = ratio(comparison, turns, calm)
    if found["turns"] < MIN_TURNS:
        return math.inf
    return math.log(found["high"] / found["low"]) / 2


def next_of(
    turns: Mapping[Comparison, Sequence[Turn]],
    seconds: Mapping[Comparison, float],
    calm: Calm,
    precision: float,
) -> Comparison | None:
    """Return the comparison that the next turn is of: one of those with the fewest turns before
    `MIN_TURNS`, then the one whose interval becomes narrowest for a second of measuring. None if
    no interval is wider than `precision`.

    seconds: that a turn of each takes. A further turn takes 1 / n off the variance of n, so that
    turns come to stand as the deviation over the root of the time (Neyman's allocation).
    """
    count = {each: len(undisturbed(made, calm)) for each, made in turns.items()}
    fewest = min(count, key=lambda comparison: (count[comparison], len(turns[comparison])))
    if count[fewest] < MIN_TURNS:
        return fewest
    gains = {}
    for comparison, made in turns.items():
        width = half_width(comparison, made, calm)
        if width > precision:
            gains[comparison] = width**2 / count[comparison] / seconds[comparison]
    return max(gains, key=lambda comparison: gains[comparison]) if gains else None


def undisturbed(turns: Iterable[Turn], calm: Calm) -> list[Turn]:
    """Return the turns of which no block was disturbed."""
    return [turn for turn in turns if not calm.is_disturbed(turn)]


def counted_turns(turns: Sequence[Turn], calm: Calm) -> list[Turn]:
    """Return the undisturbed turns of a comparison, or, where they are fewer than two, its two
    calmest that nobody robbed."""
    calm_ones = undisturbed(turns, calm)
    if len(calm_ones) >= _LEAST_TURNS:
        return calm_ones
    calmest = sorted(_unrobbed(turns), key=lambda turn: _restlessness(turn, calm.usual_wait_us))
    return calmest[:_LEAST_TURNS]


def summary(turns: Mapping[Comparison, Sequence[Turn]]) -> dict[str, Any]:
    """Return each condition's blocks summed up: the medians of those that were not disturbed or are
    of turns that count."""
    calm = calm_of(itertools.chain.from_iterable(turns.values()))
    blocks: dict[str, list[Block]] = {}
    for made in turns.values():
        counting = [id(turn) for turn in counted_turns(made, calm)]
        for turn in made:
            for block in turn:
                if id(turn) in counting or not calm.is_disturbed([block]):
                    blocks.setdefault(str(block.condition), []).append(block)
    return {name: _summed_up(group) for name, group in sorted(blocks.items())}


def _summed_up(blocks: Sequence[Block]) -> dict[str, Any]:
    speeds = sorted(block.tokens_per_s for block in blocks)
    firsts = [block.first_token_s for block in blocks if block.first_token_s is not None]
    found: dict[str, Any] = {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "least": round(speeds[0], 1),
        "most": round(speeds[-1], 1),
        "blocks": len(blocks),
    }
    return found | ({"first_token_s": round(statistics.median(firsts), 4)} if firsts else {})


def _hodges_lehmann(samples: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    """Return the estimate of each row of samples, (R, n) -> (R,)."""
    first, second = np.triu_indices(samples.shape[1])
    return np.median((samples[:, first] + samples[:, second]) / 2, axis=1)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
