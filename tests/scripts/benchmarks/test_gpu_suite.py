"""The steps side by side: each has its GPUs for itself, and none begins that cannot end in time."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import benchmark
from scripts.benchmarks import gpu_suite
from scripts.benchmarks.gpu_suite import Step

WRITES = """
import json, os, pathlib, sys, time
began = time.monotonic()
time.sleep(float(sys.argv[2]))
gpus = os.environ["CUDA_VISIBLE_DEVICES"]
report = {"commit": "c", "gpus": gpus, "began": began, "ended": time.monotonic()}
pathlib.Path(sys.argv[1]).write_text(json.dumps(report))
"""
WRITES_AS_TOLD = """
import json, pathlib, sys, time
out = sys.argv[1]
write = lambda: pathlib.Path(out).write_text(json.dumps({"commit": "c"}))
exec(sys.argv[2])
"""


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    steps: Sequence[Step],
    *more: str,
    writes: str = WRITES,
) -> int:
    def command(suite: gpu_suite._Suite, step: Step, gpus: Sequence[int]) -> list[str]:
        out = suite._args.logs / f"{step.name}.json"
        return [sys.executable, "-S", "-c", writes, str(out), step.command]

    monkeypatch.setattr(gpu_suite, "steps", lambda: list(steps))
    monkeypatch.setattr(gpu_suite._Suite, "_command", command)
    argv = ["gpu", "--gpus", "2", "--logs", str(folder / "logs"), "--out", str(folder / "all.json")]
    return benchmark.main([*argv, *more])


def test_steps_share_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [Step("both", "0.2", 1, gpus=2), Step("one", "0.3", 1), Step("other", "0.3", 1)]
    steps += [Step("third", "0", 1), Step("many", "0", 1, gpus=3), Step("long", "0", 1000)]
    assert run(monkeypatch, tmp_path, steps, "--limit_s", "60") == 0
    report = json.loads((tmp_path / "all.json").read_text())
    assert list(report["skipped"]) == ["many", "long"]
    assert report["both"]["gpus"] == "0,1"
    assert {report["one"]["gpus"], report["other"]["gpus"]} == {"0", "1"}
    assert report["both"]["ended"] <= min(report[name]["began"] for name in ("one", "other"))
    assert report["third"]["began"] >= min(report[name]["ended"] for name in ("one", "other"))


def test_a_step_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [Step("hangs", "600", 0.3), Step("next", "0", 1)]
    assert run(monkeypatch, tmp_path, steps, "--gpus", "1", "--limit_s", "60") == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["done"], last["failed"]) == (2, {"hangs": -9})
    assert "next" in json.loads((tmp_path / "all.json").read_text())


def test_a_report_is_read_when_its_step_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not one half written, when another step ends or it was ended itself; nor an older run's."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "fails.json").write_text('{"commit": "older"}')
    steps = [
        Step("writes", "pathlib.Path(out).write_text('{'); time.sleep(0.6); write()", 5),
        Step("ends", "time.sleep(0.3); write()", 5),
        Step("fails", "sys.exit(3)", 5),
        Step("hangs", "pathlib.Path(out).write_text('{'); time.sleep(600)", 0.5),
    ]
    assert run(monkeypatch, tmp_path, steps, "--limit_s", "60", writes=WRITES_AS_TOLD) == 1
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["writes"] == report["ends"] == {"commit": "c"}
    assert not {"fails", "hangs"} & set(report)


def test_every_step_is_a_benchmark_with_its_options() -> None:
    names = [step.name for step in gpu_suite.steps()]
    assert len(set(names)) == len(names)
    for step in gpu_suite.steps():
        args = benchmark._parser().parse_args(step.command.split())
        assert args.device == "cuda", step.name


SMALL = (
    "--device cpu --dtype float32 --threads 1 --rank 2 --adapters 3 --repeats 1 --prefill_tokens 32"
)
LOAD = "--concurrency 2 --requests 4 --prompt_tokens 4 4 --output_tokens 3 3 --rate_s 0.2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts", "smaller"),
    [
        ("llama_1b_adapters", ["runs"], f"{LOAD} --asked 1 3"),
        ("t5_adapters", ["runs"], f"{LOAD} --asked 1 3"),
        ("llama_1b_rates", ["runs", "rates", "limits"], f"{LOAD} --rates 20 40"),
        ("t5_rates", ["runs", "rates", "limits"], f"{LOAD} --rates 20 40"),
        (
            "llama_1b_peers",
            ["sides", "ratios", "attention"],
            "--requests 3 --rows 2 --prompt_tokens 6 --output_tokens 12",
        ),
    ],
)
def test_steps_of_traffic_run_in_small(
    name: str, parts: list[str], smaller: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The step's own command; what is given again is smaller."""
    (step,) = (step for step in gpu_suite.steps() if step.name == name)
    base = "tiny_flan_t5_dir" if name.startswith("t5") else "tiny_llama_dir"
    model, out = request.getfixturevalue(base), tmp_path / "out.json"
    argv = [*step.command.split(), *SMALL.split(), *smaller.split()]
    assert benchmark.main([*argv, "--model", str(model), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert all(report[part] for part in parts)


def test_vllm_is_left_out_where_there_is_none() -> None:
    args = argparse.Namespace(only=None, but=[], gpus=1, site=None, logs=Path("."), out=None)
    suite = gpu_suite._Suite(args)
    assert not any(step.needs_vllm for step in suite._chosen())
    assert suite.skipped["vllm_llama_1b"] == "there is no vLLM"
