"""vLLM gets the requests of our own benchmarks. The run itself needs a GPU and vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import benchmark
from scripts.benchmarks.in_process.engine_runs import random_requests
from scripts.benchmarks.vllm_peer import command
from scripts.benchmarks.vllm_peer.server import vllm_environment
from scripts.benchmarks.vllm_peer.worker import settings

ARGUMENTS = "vllm --rows 4 --requests 6 --adapters 2 --prompt_tokens 20 --output_tokens 9 --rank 4"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    return tmp_path


def work_of(base: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the worker is given for a part."""
    args = benchmark._parser().parse_args(ARGUMENTS.split())
    given: list[tuple[dict[str, Any], dict[str, str]]] = []

    def run(command_line: list[str], env: dict[str, str], **_: Any) -> Any:
        given.append((json.loads(Path(command_line[-2]).read_text()), env))
        Path(command_line[-1]).write_text('{"sides": {}}')
        return type("Done", (), {"returncode": 3})

    monkeypatch.setattr(command.subprocess, "run", run)
    adapters = {"a0": base / "a0", "a1": base / "a1"}
    found = command._in_process(args, base, adapters, base, part)
    assert found == {"sides": {}, "exit_code": 3}, "a worker that failed is told of"
    work, environment = given[0]
    is_profiled = part.startswith("gpu")
    assert (environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0") == is_profiled
    return work


def test_the_engine_gets_the_requests_of_ours(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(base, "engine", monkeypatch)
    ours = random_requests(
        6, 100, prompt_tokens=(16, 24), output_tokens=(9, 9), adapters=["a0", "a1"]
    )
    expected = [[list(r.prompt_ids), r.adapter, 9] for r in ours]
    assert work["sides"]["mixed"] == {"at_once": 6, "requests": expected}
    assert {r[1] for r in work["sides"]["no_adapters"]["requests"]} == {None}
    assert work["sides"]["one_stream"]["requests"] == expected[:1]
    loop = work["sides"]["closed_loop"]
    assert (loop["at_once"], len(loop["requests"])) == (4, 16)
    longest = max(len(prompt) + tokens for prompt, _, tokens in loop["requests"])
    assert settings(work)["max_model_len"] >= longest
    assert settings(work)["max_loras"] == 2


def test_without_lora_nothing_of_it_is_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(base, "gpu_base", monkeypatch)
    assert "enable_lora" not in settings(work)
    assert {r[1] for r in work["sides"][work["profile"]]["requests"]} == {None}
    assert len(work["sides"]["steps"]["requests"]) == 4


def test_vllm_sees_its_own_packages_first(tmp_path: Path) -> None:
    first, *rest = vllm_environment(tmp_path)["PYTHONPATH"].split(":")
    assert first == str(tmp_path)
    assert len(rest) == 1, "none of ours, whose versions may be others"
