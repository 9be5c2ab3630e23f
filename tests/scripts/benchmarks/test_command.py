"""The benchmark command: immediate help that explains everything, and the figures of a report."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.settings import PROJECT_ROOT
from scripts import benchmark
from scripts.benchmarks.command import publish, quantile, spread

BENCHMARKS = "service engine load churn hot_add gateway serve clients training".split()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_explains_itself_and_every_argument(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m scripts.benchmark {name}" in text
    module, _ = benchmark._BENCHMARKS[name]
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert [action.option_strings for action in parser._actions if not action.help] == []


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from scripts import benchmark\n"
        "try: benchmark.main(['engine', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_spread_names_its_percentile() -> None:
    values = [0.001 * number for number in range(1, 101)]
    assert spread(values) == {"n": 100, "median": 0.051, "p95": 0.096, "max": 0.1}
    assert spread(values, 90, 2)["p90"] == 0.09
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_the_report_is_the_last_line_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report.json"
    publish("engine", ["engine", "--out", "a b"], {"x": 1}, out=out, lines=[("x", 1)])
    table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert table.split() == ["x", "1"]
    assert report["command"] == "python -m scripts.benchmark engine --out 'a b'"
    assert {"commit", "processor", "packages"} <= set(report)
    assert json.loads(out.read_text()) == report
