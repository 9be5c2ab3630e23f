"""Run the GPU's benchmarks side by side, one on each GPU or two, within a time limit.

    python -m scripts.benchmark gpu --limit_s 560 --out docs/benchmarks/gpu_h100.json
    python -m scripts.benchmark gpu --only llama_1b_engine llama_1b_http --site VLLM --out gpu.json

Each step is one of the other benchmarks in a process of its own, with its own GPUs, an equal share
of the cores, and a private network (needs root, `unshare` and `taskset`). Steps begin in
their order as GPUs become free; those that need more GPUs than there are, and those for which no
time is left, are named in `skipped`. The file is written again after each step, with what those
that ended have reported. Steps of vLLM run if this interpreter or `--site` has it.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deployments.settings import PROJECT_ROOT
from scripts.arguments import above_zero
from scripts.benchmarks.command import add_out
from scripts.benchmarks.over_http.loopback import in_new_namespace
from scripts.benchmarks.over_http.serve_process import PRIVATE_NETWORK
from scripts.environment import environment

_LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
_GPU = "--device cuda --dtype bfloat16"
_HTTP = f"{_GPU} --mode fast --seconds 10"
_ENGINE = f"{_GPU} --prefill_tokens 8192 --rows 64 --requests 64 --output_tokens 128 --skip_peft"
_LOAD = f"{_GPU} --prefill_tokens 8192 --concurrency 64 --requests 256 --output_tokens 128 128"
_SHORT, _LONG = "--prompt_tokens 64", "--prompt_tokens 512"
_WIDE = f"--rank 16 --targets {_LINEAR}"
_ONE_ROUTER_SET, _TWO = "--routers 4 --clients 4", "--replicas 2 --routers 8 --clients 8"


_PATIENCE = 1.5  # times the seconds that a step takes


@dataclass(frozen=True, slots=True)
class Step:
    """One benchmark; `seconds`: what it takes on an H200, about."""

    name: str
    command: str
    seconds: float = 100.0
    gpus: int = 1
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def needs_vllm(self) -> bool:
        return self.command.startswith("vllm ")


def _sides_of_8b(name: str) -> list[Step]:
    shape = f"--model {name.replace('_', '-')}-shape {_WIDE}"
    return [
        Step(f"{name}_engine", f"engine {shape} {_ENGINE} {_LONG}", 180),  # kernels compiled too
        Step(f"{name}_load", f"load {shape} {_LOAD} --prompt_tokens 409 614", 75),
        Step(f"vllm_{name}", f"vllm {shape} {_GPU} {_LONG} --parts engine", 250),
        Step(
            f"{name}_http", f"serve {shape} {_HTTP} {_ONE_ROUTER_SET} --rows 64 --streams 64", 130
        ),
        Step(f"vllm_{name}_http", f"vllm {shape} {_GPU} --parts http --streams 64", 200),
    ]


def _quantised(name: str) -> list[Step]:
    """The same engine over weights that are plain and quantised."""
    shape = f"--model {name.replace('_', '-')}-shape"
    return [
        Step(f"{name}_{kind}", f"engine {shape} {_ENGINE} {_SHORT} --quantization {kind}", 90)
        for kind in ("none", "int8", "nf4", "fp8")
    ]


def _long_contexts(name: str, rows: int) -> list[Step]:
    """Steps behind some 1,000 positions, over keys and values that are plain and in int8."""
    shape = f"--model {name.replace('_', '-')}-shape {_GPU} --prefill_tokens 8192 --skip_peft"
    size = f"--rows {rows} --requests {rows} --prompt_tokens 900 --output_tokens 128 --repeats 2"
    return [
        Step(
            f"{name}_kv_{kind}",
            f"engine {shape} {size} --batch_sizes 1 64 128 256 --kv_cache_dtype {kind}",
            100,
        )
        for kind in ("auto", "int8")
    ]


def _memory() -> list[Step]:
    shape = f"memory --model flan-t5-xl-shape {_GPU}"
    return [
        Step(f"memory_{kind}", f"{shape} --quantization {kind} --budget_gb {budget}", 60)
        for kind, budget in (("nf4", 4), ("int8", 5.5))
    ]


def _traffic(name: str, model: str, rates: str, seconds: Sequence[float]) -> list[Step]:
    """How many adapters are asked for, and requests at random times, up to saturation."""
    load = f"load {model} {_LOAD} --prompt_tokens 64 64"
    sweep = "--adapters 1024 --asked 1 8 64 1024 --popularity one uniform zipf"
    opened = f"--adapters 64 --popularity zipf --rates {rates}"
    return [
        Step(f"{name}_adapters", f"{load} {sweep}", seconds[0]),
        Step(f"{name}_rates", f"{load} {opened}", seconds[1]),
    ]


def steps() -> list[Step]:
    """Return all steps; those that need two GPUs first, so that no GPU waits long for another."""
    llama, t5 = "--model llama-1b-shape", "--model flan-t5-xl-shape"
    llama_8b, qwen_8b = _sides_of_8b("llama_8b"), _sides_of_8b("qwen3_8b")
    peer = f"vllm {llama} {_GPU} {_SHORT}"
    two = f"serve {llama} {_HTTP} {_TWO} --rows 128 --streams 64 128"
    http = f"{_HTTP} {_ONE_ROUTER_SET}"
    rates = "--seconds 5 --popularity zipf --adapters 64 --rates 50 100 150 200 225 250 275"
    rust = (("VLLM_USE_RUST_FRONTEND", "1"),)
    return [
        Step("llama_1b_two_gpus", two, 110, gpus=2),
        Step("vllm_llama_1b", f"{peer} --parts http engine --streams 1 64 128", 350),
        llama_8b[0],
        Step("t5_scaling", f"scaling {t5} {_GPU} --routers 4 --timeout_s 90", 190, gpus=2),
        Step("llama_1b_engine", f"engine {llama} {_ENGINE} {_SHORT}", 40),
        Step("llama_1b_http", f"serve {llama} {http} --rows 256 --streams 1 64 128 256", 140),
        llama_8b[2],
        Step("t5_engine", f"engine {t5} {_ENGINE} {_SHORT}", 45),
        Step("t5_http", f"serve {t5} {http} --rows 64 --streams 1 64", 125),
        qwen_8b[0],
        Step("llama_1b_classified", f"serve {llama} {http} --rows 128 --streams 64 --classified"),
        Step("vllm_llama_1b_gpu", f"{peer} --parts gpu gpu_base", 220),
        qwen_8b[2],
        Step("tolerance", "tolerance --device cuda --layers 8", 140),
        llama_8b[1],
        qwen_8b[1],
        llama_8b[3],
        llama_8b[4],
        Step("vllm_four_servers", f"{peer} --parts http --api_servers 4 --streams 64", 180),
        Step("vllm_rust", f"{peer} --parts http --streams 64", 180, environment=rust),
        *qwen_8b[3:],
        *_traffic("llama_1b", llama, "50 100 150 200 250 280 310 340 370", (75, 85)),
        *_traffic("t5", t5, "25 50 75 100 125 150 170 190 210", (115, 95)),
        Step("llama_1b_peers", f"engine {llama} {_ENGINE} {_SHORT} --continuous_batching", 90),
        Step(
            "llama_1b_http_rates",
            f"serve {llama} {http} --rows 64 --streams 64 {rates}",
            118,
        ),
        *_quantised("flan_t5_xl"),
        *_memory(),
        *_quantised("llama_1b"),
        *_quantised("llama_8b"),
        *_long_contexts("llama_1b", 256),
        *_long_contexts("flan_t5_xl", 128),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--only", nargs="+", help="names of steps")
    add("--but", nargs="+", default=[], help="names of steps to leave out")
    add("--gpus", type=int, help="of this machine; default: those that torch sees")
    add("--limit_s", type=above_zero, default=580.0, help="of all steps together")
    add("--site", type=Path, help="folder with vLLM and what it imports")
    add("--logs", type=Path, default=Path("runs/bench/gpu"), help="what the steps write; relative")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    suite = _Suite(args)
    asyncio.run(suite.run())
    failed = {name: code for name, code in suite.exit_codes.items() if code}
    print(json.dumps({"done": len(suite.exit_codes), "failed": failed, "skipped": suite.skipped}))
    return 1 if failed else 0


class _Suite:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        self._args = args
        self._num_gpus = torch.cuda.device_count() if args.gpus is None else args.gpus
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        self._device = f"{self._num_gpus} x {name}"
        self._free = list(range(self._num_gpus))
        self._began = time.monotonic()
        self._freed = asyncio.Condition()
        self._environment = environment()
        self.exit_codes: dict[str, int] = {}
        self._reports: dict[str, Any] = {}  # of steps that ended, by name
        self.skipped: dict[str, str] = {}
        args.logs.mkdir(parents=True, exist_ok=True)

    async def run(self) -> None:
        running = []
        for step in self._chosen():
            async with self._freed:
                while len(self._free) < step.gpus:
                    await self._freed.wait()
                left = self._args.limit_s - (time.monotonic() - self._began)
                if left < step.seconds:
                    self.skipped[step.name] = f"takes {step.seconds:g} s, {left:.0f} s were left"
                    continue
                gpus = [self._free.pop(0) for _ in range(step.gpus)]
            running.append(asyncio.create_task(self._run(step, gpus, left)))
        await asyncio.gather(*running)
        self._write()

    def _chosen(self) -> list[Step]:
        has_vllm = self._args.site or importlib.util.find_spec("vllm")
        chosen = []
        for step in steps():
            if step.name in self._args.but or step.name not in (self._args.only or [step.name]):
                continue
            if step.gpus > self._num_gpus:
                self.skipped[step.name] = f"needs {step.gpus} GPUs"
            elif step.needs_vllm and not has_vllm:
                self.skipped[step.name] = "there is no vLLM"
            else:
                chosen.append(step)
        return chosen

    async def _run(self, step: Step, gpus: Sequence[int], left: float) -> None:
        self._say(f"{step.name} begins on {list(gpus)}")
        began, report = time.monotonic(), self._args.logs / f"{step.name}.json"
        report.unlink(missing_ok=True)  # an earlier run's
        try:
            code = await self._finished(step, gpus, min(left, _PATIENCE * step.seconds))
        finally:
            async with self._freed:
                self._free = sorted([*self._free, *gpus])
                self._freed.notify_all()
        self.exit_codes[step.name] = code
        self._say(f"{step.name} took {time.monotonic() - began:.0f} s, exit code {code}")
        if code:
            text = (self._args.logs / f"{step.name}.log").read_text(errors="replace")
            print(text[-1500:], file=sys.stderr, flush=True)
        if code >= 0 and report.is_file():  # one that was killed may have written a part
            self._reports[step.name] = json.loads(report.read_text())
        self._write()

    async def _finished(self, step: Step, gpus: Sequence[int], limit_s: float) -> int:
        """Run a step to its end, or end it after that time; return its exit code."""
        log = self._args.logs / f"{step.name}.log"
        # Each Ray keeps its sessions, and the file that names the current one, for itself.
        scratch = tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)
        with scratch as ray, log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                *self._command(step, gpus),
                env={**self._environment_of(step, gpus), "RAY_TMPDIR": ray},
                cwd=PROJECT_ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                return await asyncio.wait_for(child.wait(), limit_s)
            except TimeoutError:
                _kill_tree(child.pid)
                return await child.wait()

    def _command(self, step: Step, gpus: Sequence[int]) -> list[str]:
        share = (os.cpu_count() or 1) // max(1, self._num_gpus)
        cores = ",".join(f"{gpu * share}-{gpu * share + share - 1}" for gpu in gpus)
        inner = ["taskset", "-c", cores, sys.executable, "-W", "ignore", "-m", "scripts.benchmark"]
        inner += [*step.command.split(), "--out", str(self._args.logs / f"{step.name}.json")]
        if step.needs_vllm and self._args.site:
            inner += ["--site", str(self._args.site)]
        if not step.command.startswith(("serve ", "scaling ")):
            return inner
        return in_new_namespace(inner)

    def _environment_of(self, step: Step, gpus: Sequence[int]) -> dict[str, str]:
        return {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            PRIVATE_NETWORK: "1",
            **dict(step.environment),
        }

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        """Put what the ended steps have reported together."""
        whole: dict[str, Any] = {"what": "gpu", "device": self._device, **self._environment}
        if self.skipped:
            whole["skipped"] = self.skipped
        for step in steps():
            if step.name in self._reports:
                whole[step.name] = self._reports[step.name]
        if self._args.out is not None:
            self._args.out.parent.mkdir(parents=True, exist_ok=True)
            self._args.out.write_text(json.dumps(whole, indent=1) + "\n")


def _kill_tree(pid: int) -> None:
    """End a step with all that it started: Serve's processes have sessions of their own."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
