"""Measure this application, llama.cpp's server and PEFT on the same CPU, in turn, in one run.

    python -m scripts.benchmark peers --streams 1 16 --output_tokens 64

All serve the built-in base model with the same random adapters and get the same question, for
answers of exactly `--output_tokens` tokens. The two servers are asked over HTTP, by the same client
on the same cores, for one adapter after the other (`mixed`) and for the base model alone (`base`).
PEFT runs in a process of its own: `generate` on one batch of mixed adapters, and on one request
after the other with `set_adapter`. llama.cpp computes with the 4-bit weights that the base model is
distributed with, and keeps no prompt from request to request, as this application does not.

All are started once and take next to nothing while another is asked (`idle_cores`). They are
measured in short blocks, each with a fixed number of whole answers, in turns of three: ours, a
peer, ours. Each ratio comes from the turns alone, with a bootstrap interval, so that a machine that
becomes faster or slower during the run does not move it. The comparisons are made in turn, then
those whose intervals narrow fastest, until each is narrow or the time is over. A turn is left out,
and another made, if the machine was disturbed during one of its blocks: processor time taken by
other guests or other processes, a probe that takes longer after the block than before it, or cores
that wait for each other longer than they do otherwise in this run, as those of a virtual machine do
at times. Where that would leave fewer than three turns in ten, the calmest three in ten count, and
`machine.limit` says how far beyond these limits (1) they were; of a comparison that would have
fewer than two, its two calmest that nobody robbed do (`restless`). All blocks are written beside
`--out`, as `.blocks.jsonl`. Needs the extra `bench`.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_out, conditions, publish, spread
from scripts.benchmarks.cpu_peers import llama_cpp
from scripts.benchmarks.cpu_peers.pairs import (
    PROBES,
    Calm,
    Comparison,
    Turn,
    calm_of,
    comparisons,
    next_of,
    ratio,
    summary,
    undisturbed,
)
from scripts.benchmarks.cpu_peers.sides import FIXED, Sides, all_sides
from scripts.benchmarks.over_http.cpu_time import spent

_IDLE_S = 4.0
_STOP_S = 30.0  # to end everything
_CALM_S = 20.0  # that a turn waits at most for a calm machine

Turns = dict[Comparison, list[Turn]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--streams", type=positive, nargs="+", default=[1, 16], help="at once, one after the other")
    add("--output_tokens", type=positive, default=64, help="of each answer")
    add("--adapters", type=positive, default=8, help="that answer in turn")
    add("--rank", type=positive, default=8, help="of the adapters")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="ours and PEFT's")
    add("--threads", type=int, help="of torch in ours; default: our own choice")
    add("--limit_s", type=above_zero, default=870.0, help="of the whole run, about")
    narrow = "half of each ratio's 95 %% interval, as a share of it, at which its turns end"
    add("--precision", type=above_zero, default=0.01, help=narrow)
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    try:
        llama_cpp.check_installed()
    except llama_cpp.PeerMissing as error:
        print(error, file=sys.stderr)
        return 2
    before, began = os.getloadavg(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        until = began + args.limit_s - _STOP_S
        idle, turns = asyncio.run(_measure(args, Path(scratch), until))
    if not any(turns.values()):
        print(f"no turn ended within --limit_s {args.limit_s:g}: give it more", file=sys.stderr)
        return 2
    about = conditions(argparse.Namespace(**vars(args), **FIXED), before)
    report = about | {"idle_cores": idle} | _figures(turns)
    if args.out is not None:
        _write_blocks(turns, args.out.with_suffix(".blocks.jsonl"))
    lines = [*report["summary"].items(), *report["ratios"].items()]
    publish("peers", arguments, report, out=args.out, lines=lines)
    return 0


async def _measure(
    args: argparse.Namespace, folder: Path, until: float
) -> tuple[dict[str, float], Turns]:
    """Return what all processes take while nobody asks, and the turns of each comparison."""
    compared = comparisons(args.streams)
    async with all_sides(args, folder) as sides:
        for condition in dict.fromkeys(itertools.chain.from_iterable(compared)):
            await sides.measure(condition)
        before = sides.seconds_by_role()
        await asyncio.sleep(_IDLE_S)
        idle = spent(before, sides.seconds_by_role(), _IDLE_S)
        return idle, await _turns(sides, compared, until, args.precision)


async def _turns(
    sides: Sides, compared: Sequence[Comparison], until: float, precision: float
) -> Turns:
    """Make turns of those whose interval is not narrow yet, until no further turn ends in time."""
    order = random.Random(0).sample(compared, len(compared))
    turns: Turns = {comparison: [] for comparison in order}
    seconds = dict.fromkeys(order, 0.0)
    calm = Calm()
    while (comparison := next_of(turns, seconds, calm, precision)) is not None:
        await sides.calm(calm, _CALM_S)
        began = time.monotonic()
        if began + max(seconds.values()) > until:
            return turns
        number = len(undisturbed(turns[comparison], calm))
        turns[comparison].append(await sides.turn(comparison.turn(number)))
        seconds[comparison] = max(seconds[comparison], time.monotonic() - began)
        calm = calm_of(itertools.chain.from_iterable(turns.values()))
    return turns


def _figures(turns: Turns) -> dict[str, Any]:
    every = [turn for made in turns.values() for turn in made]
    blocks, calm = [block for turn in every for block in turn], calm_of(every)
    return {
        "summary": summary(turns),
        "ratios": {str(c): ratio(c, turns[c], calm) for c in sorted(turns, key=_by_streams)},
        "machine": {
            "blocks": len(blocks),
            "disturbed": sum(calm.is_disturbed([block]) for block in blocks),
            "usual_wait_us": round(calm.usual_wait_us, 2),
            "limit": round(calm.limit, 2),
            "stolen": spread([block.stolen for block in blocks]),
            "others": spread([block.others for block in blocks]),
            **{
                f"{name}_us": spread([block.probes_us[0][number] for block in blocks], digits=1)
                for number, name in enumerate(PROBES)
            },
        },
    }


def _write_blocks(turns: Turns, out: Path) -> None:
    """Write a line for each block, in the order of its comparison's turns."""
    calm = calm_of(turn for made in turns.values() for turn in made)
    lines = [
        json.dumps(
            {"comparison": str(comparison), "turn": number, **block.as_row()}
            | {"disturbed": calm.is_disturbed([block])}
        )
        for comparison, made in turns.items()
        for number, turn in enumerate(made)
        for block in turn
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")


def _by_streams(comparison: Comparison) -> tuple[int, str]:
    return comparison.theirs.streams, str(comparison)
