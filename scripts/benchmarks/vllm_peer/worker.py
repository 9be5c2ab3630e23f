"""Run vLLM's engine on given requests, in an interpreter that has vLLM; imports nothing of ours.

    PYTHONPATH=VLLM:PROJECT python -m scripts.benchmarks.vllm_peer.worker WORK.json OUT.json

WORK.json: `base` (a folder), `adapters` (name -> folder; empty: without LoRA), `rank`, `rows`,
`positions`, `repeats`, `sides` (name -> {`at_once`, `requests`: [prompt ids, adapter, tokens]}) and
`profile` (name of the side whose GPU time is taken; "" for none). End-of-sequence tokens are
ignored; greedy.
"""

import asyncio
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_BATCHED_TOKENS = 8192
_ids = itertools.count()


def main(work_file: str, out_file: str) -> None:
    work = json.loads(Path(work_file).read_text())
    out = Path(out_file)
    import torch
    import vllm

    report: dict[str, Any] = {"vllm": vllm.__version__, "torch": torch.__version__}
    if work["profile"]:
        found = Profiled(work).gpu_time(work["sides"][work["profile"]]["requests"])
        write(out, report | found)
        return
    started = time.perf_counter()
    side = Streamed(work)
    report |= {"start_s": round(time.perf_counter() - started, 1), "sides": {}}
    for name, given in work["sides"].items():
        report["sides"][name] = measured(side, given, work["repeats"])
        print(name, json.dumps(report["sides"][name]), flush=True)
        write(out, report)
    side.close()


def write(out: Path, report: dict[str, Any]) -> None:
    """Replace the file in one step: a worker that is ended leaves the last whole report."""
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(report))
    fresh.replace(out)


def measured(side: "Streamed", given: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Return medians of `repeats` runs after one to warm up."""
    side.run(given["requests"], given["at_once"])
    samples = [side.run(given["requests"], given["at_once"]) for _ in range(repeats)]
    rates = [tokens / seconds for tokens, seconds, _ in samples]
    return {
        "tokens_per_s": round(statistics.median(rates), 1),
        "tokens_per_s_samples": [round(rate, 1) for rate in rates],
        "first_token_p50_s": round(statistics.median(statistics.median(f) for *_, f in samples), 4),
    }


def settings(work: dict[str, Any]) -> dict[str, Any]:
    found = {
        "model": work["base"],
        "dtype": "bfloat16",
        "max_model_len": work["positions"],
        "max_num_seqs": work["rows"],
        "max_num_batched_tokens": _BATCHED_TOKENS,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.8,
        "disable_log_stats": True,
    }
    if work["adapters"]:
        lora = {"enable_lora": True, "max_loras": len(work["adapters"])}
        found |= {**lora, "max_lora_rank": max(8, work["rank"])}
    return found


def loras(work: dict[str, Any]) -> dict[str | None, Any]:
    from vllm.lora.request import LoRARequest

    named = enumerate(work["adapters"].items(), 1)
    return {None: None} | {name: LoRARequest(name, n, path) for n, (name, path) in named}


def params(tokens: int, kind: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, output_kind=kind)


class Streamed:
    """The asynchronous engine: each request is streamed, with its text."""

    def __init__(self, work: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

        async def start() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings(work)))

        self._engine = self._loop.run_until_complete(start())
        self._loras = loras(work)

    def run(self, requests: list[Any], at_once: int) -> tuple[int, float, list[float]]:
        """Return tokens, seconds, and the seconds to each first token."""
        started = time.perf_counter()
        done = self._loop.run_until_complete(self._all(requests, at_once))
        seconds = time.perf_counter() - started
        tokens = sum(number for number, _ in done)
        assert tokens == sum(n for _, _, n in requests), "not every token was written"
        return tokens, seconds, [first for _, first in done]

    async def _all(self, requests: list[Any], at_once: int) -> list[tuple[int, float]]:
        from vllm.sampling_params import RequestOutputKind

        free = asyncio.Semaphore(at_once)

        async def one(prompt: list[int], adapter: str | None, number: int) -> tuple[int, float]:
            async with free:
                started, first, tokens = time.perf_counter(), 0.0, 0
                async for output in self._engine.generate(
                    {"prompt_token_ids": prompt},
                    params(number, RequestOutputKind.DELTA),
                    f"r{next(_ids)}",
                    lora_request=self._loras[adapter],
                ):
                    first = first or time.perf_counter() - started
                    tokens += len(output.outputs[0].token_ids)
                return tokens, first

        return await asyncio.gather(*(one(*request) for request in requests))

    def close(self) -> None:
        self._engine.shutdown()


class Profiled:
    """The engine in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0), under torch's profiler."""

    def __init__(self, work: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**settings(work))
        self._loras = loras(work)

    def _run(self, requests: list[Any]) -> float:
        from vllm.sampling_params import RequestOutputKind

        started = time.perf_counter()
        self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _, _ in requests],
            [params(number, RequestOutputKind.FINAL_ONLY) for *_, number in requests],
            lora_request=[self._loras[adapter] for _, adapter, _ in requests],
            use_tqdm=False,
        )
        return time.perf_counter() - started

    def gpu_time(self, requests: list[Any]) -> dict[str, Any]:
        """Return the milliseconds of kernels for each step that writes a token of every row (one
        step that reads the prompts is among them), the wall time, and the longest kernels."""
        from torch.profiler import ProfilerActivity, profile

        self._run(requests)
        without_profiler = self._run(requests)
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            seconds = self._run(requests)
        steps = requests[0][2]
        kernels = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(kernel.self_device_time_total for kernel in kernels)
        return {
            "rows": len(requests),
            "steps": steps,
            "kernels_ms": round(total / 1000 / steps, 3),
            "wall_ms": round(1000 * without_profiler / steps, 3),
            "wall_ms_profiled": round(1000 * seconds / steps, 3),
            "launches": round(sum(kernel.count for kernel in kernels) / steps, 1),
            "longest": [
                [kernel.key[:60], round(kernel.self_device_time_total / 1000 / steps, 4)]
                for kernel in kernels[:8]
            ],
        }


if __name__ == "__main__":
    main(*sys.argv[1:])
