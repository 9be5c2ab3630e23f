"""Simulate clinics of 1 to 1,000 replicas with measured costs, and say what limits them.

    python -m scripts.benchmark simulate --replicas 1 10 100 1000 --adapters 10000

First the model is compared with the measured runs of `--serving` (throughput and the first token's
p99); then each size is simulated under open load: `--load` of what a replica did there, Poisson or
the gaps of `--trace` (a JSON list of seconds between questions to one replica), adapters by Zipf
(s = 1), with warm caches. The costs come from result files; docs/benchmarks.md says which of them
stand for what, and what the model leaves out.

Serve's controller and the state store: their share of what they can do, from what each replica
asks of them, and `full_at_replicas`. The catalogue's size and the time to read it are measured when
the command runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.arguments import above_zero, positive, share
from scripts.benchmarks.command import add_out, publish, settings_of, spread
from scripts.benchmarks.scale_model.costs import Costs, read_costs

_FILES = Path("docs/benchmarks")
_EDGE_S = 1.0  # of a closed loop's beginning, as `benchmark serve` leaves it out
_READY_SHARE = 0.2  # of an open run's beginning, left out
_LEAST_S = 2.0  # of an open run: several answers one after the other in each row
_BOUND = 0.15  # the model's distance from a measured run
_FULL = 0.8  # of a shared part's time; above it, it falls behind
_REPEATS = 5  # of a closed loop: its p99 is the burst with which it begins
_MEASURED = ("one_gpu", "two_gpus", "classified")
_FOLLOW_S = 5.0  # Model.adapter_check_s and Router.reload_check_s, as shipped
_KEYS_S = 0.5  # deployments/ingress/followed.py


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--replicas", type=positive, nargs="+", default=[1, 2, 10, 100, 1000], help="of the model")
    add("--adapters", type=positive, default=10_000, help="in the catalogue")
    add("--slots", type=positive, default=64, help="adapters on a replica's device")
    add("--host_mib", type=positive, default=1024, help="adapters in a replica's main memory")
    add("--rows", type=positive, default=64, help="answers of a replica together")
    add("--output_tokens", type=positive, default=128, help="of each answer")
    add("--routers_per_replica", type=above_zero, default=4.0, help="router replicas")
    add("--placement", choices=["two_choices", "residency"], default="two_choices")
    add("--classified", action="store_true", help="the router classifies each question")
    add("--load", type=share, default=0.7, help="of a replica's measured answers a second")
    add("--requests", type=positive, default=20_000, help="of each size, or 2 s of them")
    add("--trace", type=Path, help="gaps between questions; default: Poisson")
    add("--seed", type=int, default=0)
    add("--serving", type=Path, default=_FILES / "serving_2_h200.json", help="engine and HTTP")
    add("--saturated", type=Path, default=_FILES / "serving_h200.json", help="256 streams")
    add("--gateway", type=Path, default=_FILES / "gateway_fast.json", help="a question's routing")
    add("--churn", type=Path, default=_FILES / "churn_llama_1b_shape_h100.json", help="loading")
    add("--controller_ms", type=above_zero, default=1.2, help="of Serve, a second and replica")
    add("--store_reads_per_s", type=above_zero, default=5500.0, help="that the store answers")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    try:
        costs = read_costs(args.serving, args.saturated, args.gateway, args.churn)
        measured = json.loads(args.serving.read_text())
        checks = [check for name in _MEASURED for check in compare(measured[name], costs)]
        gaps = json.loads(args.trace.read_text()) if args.trace else None
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SystemExit(f"simulate: not the result file of that benchmark: {error!r}") from None
    full = next(c for c in checks if c["replicas"] == 1 and c["streams"] == args.rows)
    rate = args.load * full["measured"]["tokens_per_s"] / args.output_tokens
    catalogue = catalogue_costs(args.adapters)
    sizes = []
    for num in args.replicas:
        shape = shape_of(args, num, costs)
        sizes.append(open_run(args, shape, costs, rate, gaps) | shares(args, shape, catalogue))
    report = {
        "settings": settings_of(args),
        "checks": checks,
        "all_within_bound": all(check["is_within_bound"] for check in checks),
        "catalogue": catalogue,
        "sizes": sizes,
        "full_at_replicas": limits(sizes[-1]),
    }
    lines: list[tuple[str, Any]] = [
        (f"{check['replicas']} measured, {check['streams']} streams", check) for check in checks
    ]
    lines += [(f"{size['replicas']} replicas", size) for size in sizes]
    lines += [("full at replicas", report["full_at_replicas"])]
    publish("simulate", arguments, report, out=args.out, lines=lines)
    return 0


def compare(measured: Mapping[str, Any], costs: Costs) -> Iterator[dict[str, Any]]:
    """Simulate each run of a report of `benchmark serve`, and yield it beside what was measured."""
    from scripts.benchmarks.scale_model.cluster import Shape

    settings = measured["settings"]
    shape = Shape(
        settings["replicas"],
        settings["routers"],
        settings["rows"],
        settings["output_tokens"],
        adapters=settings["adapters"],
        classified=settings["classified"],
    )
    for run in measured["runs"]:
        found = closed_run(shape, costs, run["streams"], settings["seconds"])
        seen = {
            "tokens_per_s": run["tokens_per_s"],
            "first_token_p50_s": run["first_token_s"]["median"],
            "first_token_p99_s": run["first_token_s"]["p99"],
        }
        off = {name: round(found[name] / seen[name] - 1, 3) for name in seen}
        yield {
            "replicas": shape.replicas,
            "streams": run["streams"],
            "classified": shape.classified,
            "measured": seen,
            "simulated": found,
            "off": off,
            "is_within_bound": all(abs(share) <= _BOUND for share in off.values()),
        }


def closed_run(shape: Any, costs: Costs, streams: int, seconds: float) -> dict[str, float]:
    """Return tokens a second and the first token of `streams` that ask without a pause: medians of
    _REPEATS runs."""
    runs = [_closed_run(shape, costs, streams, seconds, seed) for seed in range(_REPEATS)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _closed_run(
    shape: Any, costs: Costs, streams: int, seconds: float, seed: int
) -> dict[str, float]:
    from scripts.benchmarks.scale_model.cluster import Cluster

    cluster = Cluster(shape, costs, seed)

    def stream() -> Generator[Any, Any, None]:
        while cluster.env.now < seconds:
            yield from cluster.ask()

    for _ in range(streams):
        cluster.env.process(stream())
    cluster.env.run()
    tokens = 0.0
    for answer in cluster.answers:
        inside = min(answer.end, seconds) - max(answer.first, _EDGE_S)
        tokens += shape.output_tokens * max(0.0, inside) / (answer.end - answer.first)
    firsts = spread([answer.first - answer.asked for answer in cluster.answers], 99, 4)
    return {
        "tokens_per_s": round(tokens / (seconds - _EDGE_S), 1),
        "first_token_p50_s": firsts["median"],
        "first_token_p99_s": firsts["p99"],
    }


def shape_of(args: argparse.Namespace, num: int, costs: Costs) -> Any:
    from scripts.benchmarks.scale_model.cluster import Shape

    return Shape(
        num,
        max(1, round(num * args.routers_per_replica)),
        args.rows,
        args.output_tokens,
        adapters=args.adapters,
        slots=args.slots,
        host=args.host_mib * 2**20 // costs.adapter_bytes,
        placement=args.placement,
        classified=args.classified,
    )


def open_run(
    args: argparse.Namespace, shape: Any, costs: Costs, rate: float, gaps: Sequence[float] | None
) -> dict[str, Any]:
    """Simulate questions that come at `rate` a second and replica."""
    from scripts.benchmarks.scale_model.cluster import Cluster

    cluster = Cluster(shape, costs, args.seed)

    def arrivals() -> Generator[Any, Any, None]:
        for number in range(max(args.requests, int(_LEAST_S * rate * shape.replicas))):
            cluster.env.process(cluster.ask())
            poisson = cluster.random.expovariate(rate * shape.replicas)
            gap = gaps[number % len(gaps)] / shape.replicas if gaps else poisson
            yield cluster.env.timeout(gap)

    cluster.env.process(arrivals())
    cluster.env.run()
    answers = cluster.answers[int(_READY_SHARE * len(cluster.answers)) :]
    lasted = max(answer.asked for answer in cluster.answers)
    routers = sum(router.busy_s for router in cluster.routers)
    actors = sum(replica.actor.busy_s for replica in cluster.replicas)
    return {
        "replicas": shape.replicas,
        "routers": shape.routers,
        "answers_per_s": round(len(cluster.answers) / lasted, 1),
        "first_token_s": spread([answer.first - answer.asked for answer in answers], 99, 4),
        "answer_s": spread([answer.end - answer.asked for answer in answers], 99, 3),
        "hit_rate": round(sum(answer.hit for answer in answers) / len(answers), 3),
        "router_busy": round(routers / lasted / shape.routers, 3),
        "replica_process_busy": round(actors / lasted / shape.replicas, 3),
    }


def shares(args: argparse.Namespace, shape: Any, catalogue: Mapping[str, float]) -> dict[str, Any]:
    """Return what the parts that all replicas share do, and what share of their best that is."""
    processes = shape.replicas + shape.routers
    reads = processes / _FOLLOW_S + shape.routers / _KEYS_S
    return {
        "controller_busy": round(processes * args.controller_ms / 1000, 3),
        "store_busy": round(reads / args.store_reads_per_s, 3),
        "gib_read_for_a_change": round(processes * catalogue["bytes"] / 2**30, 2),
        "connections": shape.replicas * shape.routers,
    }


def limits(size: Mapping[str, Any]) -> dict[str, int]:
    """Return at how many replicas each shared part is full, from its share at one size."""
    parts = {name: size[f"{name}_busy"] for name in ("controller", "store")}
    return {name: int(_FULL * size["replicas"] / busy) for name, busy in parts.items() if busy}


def catalogue_costs(num_adapters: int) -> dict[str, float]:
    """Return bytes of a catalogue with so many adapters, and the processor seconds to read it."""
    from adapters.catalog import dump, load_catalog, parse

    seed = load_catalog(Path("adapters"))
    first = seed.adapters[0]
    named = [
        first.model_copy(update={"name": f"a{number}", "specialty": f"s{number}"})
        for number in range(num_adapters)
    ]
    content = dump(seed.model_copy(update={"adapters": named}))
    started = time.process_time()
    parse(content, "the simulated catalogue")
    return {"bytes": len(content), "read_s": round(time.process_time() - started, 3)}
