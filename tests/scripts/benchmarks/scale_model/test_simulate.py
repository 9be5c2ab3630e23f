"""The scale model: near the measured runs, and right where the answer is known without it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark import main
from scripts.benchmarks.scale_model import simulate
from scripts.benchmarks.scale_model.cluster import Cluster, Shape, Worker
from scripts.benchmarks.scale_model.costs import Costs, read_costs

pytestmark = pytest.mark.slow

FILES = Path("docs/benchmarks")
NAMES = (
    "serving_2_h200.json",
    "serving_h200.json",
    "gateway_fast.json",
    "churn_llama_1b_shape_h100.json",
)


@pytest.fixture(scope="module")
def costs() -> Costs:
    return read_costs(*(FILES / name for name in NAMES))


def test_the_costs_are_those_of_the_files(costs: Costs) -> None:
    assert costs.step(1) == pytest.approx(0.00115)
    assert costs.step(48) == pytest.approx((0.001241 + 0.001305) / 2)  # between 32 and 64 rows
    assert costs.step(128) == pytest.approx(0.001305 + 2 * (0.001305 - 0.001241))
    assert costs.prompts(4) == costs.prefill == 0.0036
    assert costs.prompts(5) == 2 * costs.prefill
    assert costs.read == 0.015532


@pytest.mark.parametrize("name", ["one_gpu", "two_gpus", "classified"])
def test_throughput_is_within_the_bound_of_every_measured_run(name: str, costs: Costs) -> None:
    measured = json.loads((FILES / NAMES[0]).read_text())[name]
    for check in simulate.compare(measured, costs):
        assert abs(check["off"]["tokens_per_s"]) <= 0.08, check
        assert abs(check["off"]["first_token_p50_s"]) <= 0.20, check
        # Two replicas with half their rows: docs/decisions.md says why that burst is not met.
        is_met = (check["replicas"], check["streams"]) != (2, 64)
        assert abs(check["off"]["first_token_p99_s"]) <= (0.20 if is_met else 0.40), check


def alone(costs: Costs, **changes: Any) -> Cluster:
    shape = Shape(replicas=1, routers=1, rows=4, output_tokens=10, adapters=1)
    return Cluster(dataclasses.replace(shape, **changes), dataclasses.replace(costs, path_spread=0))


def test_one_answer_takes_the_sum_of_its_parts(costs: Costs) -> None:
    cluster = alone(costs)
    cluster.env.process(cluster.ask())
    cluster.env.run()
    (answer,) = cluster.answers
    before = costs.path / 2 + costs.router_call + costs.actor_call + costs.prefill
    assert answer.first == pytest.approx(
        before + costs.path / 2 + costs.router_token + costs.actor_token
    )
    assert answer.end == pytest.approx(before + 9 * costs.step(1) + costs.path / 2)


def test_a_question_waits_for_a_row(costs: Costs) -> None:
    cluster = alone(costs, rows=1)
    for _ in range(2):
        cluster.env.process(cluster.ask())
    cluster.env.run()
    first, second = sorted(cluster.answers, key=lambda answer: answer.end)
    assert second.first > first.end - costs.path
    assert len(cluster.answers) == 2


def test_an_adapter_that_is_not_resident_costs_its_load(costs: Costs) -> None:
    (replica,) = alone(costs, adapters=5, slots=2, host=3).replicas
    for adapter in (0, 1, 2):
        replica.fetch(adapter)
    assert replica.fetch(2) == (True, 0.0)
    assert replica.fetch(0) == (False, costs.install)  # in main memory
    assert replica.fetch(4) == (False, costs.install + costs.read)


def test_placement_by_residency_finds_more_adapters_on_the_device(costs: Costs) -> None:
    def hits(placement: str) -> float:
        shape = Shape(8, 8, 64, 16, adapters=1000, slots=32, host=64, placement=placement)
        cluster = Cluster(shape, costs)
        for _ in range(400):
            cluster.env.process(cluster.ask())
        cluster.env.run()
        return sum(answer.hit for answer in cluster.answers) / 400

    assert hits("residency") > 1.3 * hits("two_choices")


def test_tokens_leave_a_worker_less_time() -> None:
    worker = Worker(token_s=0.001)
    worker.streams = 5
    assert worker.use(0.0, 0.01, step_s=0.01) == pytest.approx(0.02)  # half its time is taken
    worker.end(10)
    assert worker.busy_s == pytest.approx(0.02)


def test_it_reports_each_size_and_what_limits_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "gaps.json"
    trace.write_text("[0.001, 0.02]")
    arguments = ["simulate", "--replicas", "1", "3", "--requests", "200", "--adapters", "50"]
    assert main([*arguments, "--trace", str(trace), "--controller_ms", "100"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, three = report["sizes"]
    assert (one["routers"], three["routers"]) == (4, 12)
    assert three["answers_per_s"] == pytest.approx(3 * one["answers_per_s"], rel=0.2)
    assert three["controller_busy"] == pytest.approx(1.5)
    assert report["full_at_replicas"]["controller"] == 1  # 0.8 of 1.5 at three
    assert report["catalogue"]["bytes"] > 50 * 100


def test_a_file_of_another_benchmark_is_refused() -> None:
    with pytest.raises(SystemExit, match="not the result file"):
        main(["simulate", "--serving", str(FILES / "gateway_fast.json")])
