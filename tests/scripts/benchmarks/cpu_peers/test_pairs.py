"""Ratios of neighbouring blocks: what drifts does not move them, what disturbs is left out."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from scripts.benchmarks.cpu_peers.pairs import (
    BASE,
    LLAMA_CPP,
    MIN_TURNS,
    MIXED,
    ONE_BY_ONE,
    OURS,
    PEFT,
    Block,
    Calm,
    Comparison,
    Condition,
    Probe,
    calm_of,
    comparisons,
    half_width,
    next_of,
    ratio,
    summary,
)

RUN_S = 800.0
SPEEDS = {OURS: 900.0, LLAMA_CPP: 90.0}
SECONDS = {OURS: 2.0, LLAMA_CPP: 11.0}  # of a block on a machine at its full speed
PEER = Comparison(Condition(OURS, MIXED, 16), Condition(LLAMA_CPP, MIXED, 16))
WAIT_US = 1.0
CALM = Calm(WAIT_US)
OWN = Comparison(Condition(OURS, MIXED, 16), Condition(OURS, BASE, 16))

Drift = Callable[[float], float]
DRIFTS: dict[str, Drift] = {
    "none": lambda _: 1.0,
    "30 % slower at the end": lambda share: 1 - 0.3 * share,
    "30 % faster at the end": lambda share: 0.7 + 0.3 * share,
    "15 % up and down within minutes": lambda share: 0.85 + 0.15 * math.sin(40 * share),
    "suddenly 30 % slower": lambda share: 1.0 if share < 0.4 else 0.7,
}


def probe(product_us: float, wait_us: float = WAIT_US) -> Probe:
    return product_us, 5.0, wait_us


def block(condition: Condition, speed: float = 100.0, **machine: object) -> Block:
    quiet: dict[str, object] = {"first_token_s": 0.1, "stolen": 0.0, "others": 0.0}
    given = quiet | {"at_s": 0.0, "probes_us": (probe(20.0), probe(20.0))} | machine
    return Block(condition, speed, **given)  # type: ignore[arg-type]


def turns_of(
    comparison: Comparison, drift: Drift, noise: float, seed: int, ours: float = 1.0
) -> list[list[Block]]:
    """Run on a simulated machine; `ours` is how much faster the side `ours` is than its base."""
    generator, now = np.random.default_rng(seed), 0.0
    turns: list[list[Block]] = []
    while now < RUN_S:
        turn = []
        for condition in comparison.turn(len(turns)):
            speed = SPEEDS[condition.side] * (ours if condition == comparison.ours else 1.0)
            at = drift(now / RUN_S)
            turn.append(block(condition, speed * at * math.exp(generator.normal(0, noise))))
            now += SECONDS[condition.side] / at
        turns.append(turn)
        now += 45.0 if comparison == PEER else 15.0  # the other comparisons
    return turns


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS.keys())
@pytest.mark.parametrize(("comparison", "truth"), [(PEER, 10.0), (OWN, 0.9)])
def test_a_machine_that_drifts_moves_no_ratio(
    drift: Drift, comparison: Comparison, truth: float
) -> None:
    faster = truth if comparison == OWN else 1.0
    for seed in range(5):
        found = ratio(comparison, turns_of(comparison, drift, 0.01, seed, faster), CALM)
        assert found["ratio"] == pytest.approx(truth, rel=0.02)
        assert found["low"] <= found["ratio"] <= found["high"]
        assert found["turns"] == len(found["each"]) >= MIN_TURNS


def test_one_side_after_the_other_would_be_moved_by_it() -> None:
    """The drift of these tests is large enough to be seen without the pairs."""
    turns = turns_of(PEER, DRIFTS["30 % slower at the end"], 0.0, 0)
    speeds = [one.tokens_per_s for turn in turns for one in turn if one.condition == PEER.ours]
    assert speeds[0] / speeds[-1] > 1.25


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Noise of 5 % in each block; of 200 runs 95 % are expected to, and short ones fall short."""
    held = 0
    for seed in range(200):
        found = ratio(PEER, turns_of(PEER, DRIFTS["30 % slower at the end"], 0.05, seed), CALM)
        held += found["low"] <= 10.0 <= found["high"]
    assert 0.86 * 200 <= held <= 0.99 * 200


def test_outliers_move_a_ratio_little() -> None:
    turns = turns_of(PEER, DRIFTS["none"], 0.01, 0)
    turns[2] = [block(one.condition, one.tokens_per_s) for one in turns[2]]
    turns[2][1] = block(PEER.theirs, 30.0)  # a third of its speed, and nothing was seen
    assert ratio(PEER, turns, CALM)["ratio"] == pytest.approx(10.0, rel=0.02)


@pytest.mark.parametrize(
    ("machine", "is_disturbed"),
    [
        ({}, False),
        ({"stolen": 0.04}, False),
        ({"stolen": 0.06}, True),
        ({"others": 0.06}, True),
        ({"stolen": 0.03, "others": 0.03}, True),
        ({"probes_us": (probe(20.0), probe(25.0))}, False),
        ({"probes_us": (probe(20.0), probe(27.0))}, True),
        ({"probes_us": (probe(27.0), probe(20.0))}, True),
        ({"probes_us": (probe(20.0, 1.2), probe(20.0))}, False),
        ({"probes_us": (probe(20.0, 1.3), probe(20.0))}, True),
        ({"probes_us": (probe(20.0), probe(20.0, 1.3))}, True),
    ],
)
def test_a_block_is_disturbed_by_what_the_machine_did(
    machine: dict[str, object], is_disturbed: bool
) -> None:
    for speed in (1.0, 100.0):
        assert CALM.is_disturbed([block(PEER.ours, speed, **machine)]) == is_disturbed


def quiet_turn(comparison: Comparison, ours: float, theirs: float) -> list[Block]:
    speeds = {comparison.ours: ours, comparison.theirs: theirs}
    return [block(condition, speeds[condition]) for condition in comparison.turn(0)]


def test_disturbed_turns_are_counted_and_left_out() -> None:
    bad = [*quiet_turn(PEER, 500.0, 10.0)[:2], block(PEER.ours, 500.0, stolen=0.5)]
    good = quiet_turn(PEER, 500.0, 100.0)
    found = ratio(PEER, [good, bad, good], CALM)
    assert found["ratio"] == pytest.approx(5.0)
    assert (found["turns"], found["disturbed"]) == (2, 1)
    assert ratio(PEER, [bad], CALM) == {"turns": 0, "disturbed": 1}


def test_turns_go_where_they_narrow_an_interval_most_until_all_are_narrow() -> None:
    even = [quiet_turn(PEER, 500.0, 100.0)] * MIN_TURNS
    uneven = [quiet_turn(OWN, 500.0, speed) for speed in (480, 490, 500, 510, 520, 500)]
    assert half_width(PEER, even[1:], CALM) == math.inf
    assert half_width(PEER, even, CALM) == pytest.approx(0.0)
    seconds = {PEER: 30.0, OWN: 5.0}
    assert next_of({PEER: even, OWN: uneven}, seconds, CALM, 0.001) == OWN
    assert next_of({PEER: even, OWN: uneven}, seconds, CALM, 0.1) is None
    assert next_of({PEER: even[1:], OWN: uneven}, seconds, CALM, 0.001) == PEER
    assert next_of({PEER: [], OWN: []}, seconds, CALM, 0.001) == PEER
    as_uneven = [quiet_turn(PEER, 500.0, one[1].tokens_per_s) for one in uneven]
    assert next_of({PEER: as_uneven, OWN: uneven}, seconds, CALM, 0.001) == OWN
    assert next_of({PEER: as_uneven, OWN: uneven}, {PEER: 5.0, OWN: 30.0}, CALM, 0.001) == PEER


def test_a_turn_that_was_disturbed_lets_the_others_go_first() -> None:
    bad = [block(condition, others=0.5) for condition in PEER.turn(0)]
    assert next_of({PEER: [bad], OWN: []}, {PEER: 1.0, OWN: 1.0}, CALM, 0.01) == OWN


def test_the_usual_wait_is_that_of_the_quick_times() -> None:
    """However much of the run is slow, as long as a tenth is not."""
    waits = [3.6] * 3 + [5.4] * 17
    turns = [[block(PEER.ours, probes_us=(probe(20.0, w), probe(20.0, w)))] for w in waits]
    calm = calm_of(turns)
    assert calm.usual_wait_us == pytest.approx(3.6)
    assert calm.limit == pytest.approx(5.4 / 3.6 / 1.25), "of three turns in ten"


def test_a_calm_machine_is_held_to_the_limits() -> None:
    waits = [3.6] * 7 + [5.4] * 3
    turns = [[block(PEER.ours, probes_us=(probe(20.0, w), probe(20.0, w)))] for w in waits]
    calm = calm_of(turns)
    assert calm.limit == 1.0
    assert [calm.is_disturbed(turn) for turn in turns] == [w > 4.5 for w in waits]


@pytest.mark.parametrize(
    "restless",
    [
        lambda n: (probe(20.0), probe(40.0 + n)),
        lambda n: (probe(20.0, 1.0), probe(20.0, 3.0 + n)),
    ],
)
def test_on_a_restless_machine_the_calmest_turns_count(
    restless: Callable[[int], tuple[Probe, Probe]],
) -> None:
    numbers = (7, 3, 9, 0, 8, 5, 1, 6, 2, 4)
    turns = [[block(PEER.ours, probes_us=restless(n))] for n in numbers]
    turns.append([block(PEER.ours, others=0.5)])
    calm = calm_of(turns)
    assert calm.limit > 1.5
    are_disturbed = [calm.is_disturbed(turn) for turn in turns]
    assert are_disturbed == [*(n > 2 for n in numbers), True]


def test_a_comparison_without_calm_turns_keeps_its_two_calmest() -> None:
    def turn(ours: float, wait: float, **machine: float) -> list[Block]:
        probes = (probe(20.0, wait), probe(20.0))
        speeds = {PEER.ours: ours, PEER.theirs: 100.0}
        return [block(c, speeds[c], probes_us=probes, **machine) for c in PEER.turn(0)]

    turns = [turn(900.0, 3.0), turn(500.0, 2.0), turn(500.0, 2.5), turn(100.0, 2.0, others=0.5)]
    found = ratio(PEER, turns, CALM)
    assert found["ratio"] == pytest.approx(5.0)
    assert (found["turns"], found["disturbed"], found["restless"]) == (2, 2, 2)
    calm = turn(700.0, 1.0)
    assert ratio(PEER, [*turns, calm], CALM)["restless"] == 1
    assert "restless" not in ratio(PEER, [*turns, calm, calm], CALM)


def test_ours_stands_around_a_peer_and_takes_turns_with_itself() -> None:
    assert PEER.turn(0) == PEER.turn(1) == (PEER.ours, PEER.theirs, PEER.ours)
    assert OWN.turn(0) == (OWN.ours, OWN.theirs, OWN.ours)
    assert OWN.turn(1) == (OWN.theirs, OWN.ours, OWN.theirs)


def test_each_peer_is_compared_and_our_adapters_with_our_base() -> None:
    compared = comparisons([1, 16])
    named = {str(each): each.ours.adapters for each in compared if each.theirs.streams == 16}
    assert named == {
        f"{LLAMA_CPP}, {MIXED}, 16": MIXED,
        f"{LLAMA_CPP}, {BASE}, 16": BASE,
        f"{PEFT}, {MIXED}, 16": MIXED,
        f"{OURS}, {BASE}, 16": MIXED,
    }
    alone = [each.theirs.streams for each in compared if each.theirs.adapters == ONE_BY_ONE]
    assert alone == [1]  # as fast with sixteen streams


def test_a_condition_is_summed_up_over_all_its_undisturbed_blocks() -> None:
    disturbed = block(PEER.theirs, 1.0, others=0.2)
    turn = [block(PEER.ours, 100.0), disturbed, block(PEER.ours, 120.0, first_token_s=0.3)]
    own = [block(OWN.ours, 110.0), block(OWN.theirs, 130.0), block(OWN.ours, 111.0)]
    found = summary({PEER: [turn], OWN: [own]})
    assert found == {
        "polyclinic, base, 16": {
            "tokens_per_s": 130.0,
            "least": 130.0,
            "most": 130.0,
            "blocks": 1,
            "first_token_s": 0.1,
        },
        "polyclinic, mixed, 16": {
            "tokens_per_s": 110.5,
            "least": 100.0,
            "most": 120.0,
            "blocks": 4,
            "first_token_s": 0.1,
        },
    }
