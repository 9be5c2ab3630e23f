"""The hot-add benchmark's measurement on real Ray Serve, with a tiny base on two replicas."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.live_adapters.hot_add import add_arguments, measure_under_load
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.live_adapters.hot_add_service import prepare
from scripts.benchmarks.over_http.http_client import connect
from tests.e2e.conftest import Deploy
from tests.e2e.test_adapter_lifecycle import load_on_cpu, wait_for

APP = "hot-add"


@pytest.mark.long
def test_every_add_is_confirmed_and_no_stream_fails(
    tiny_llama_dir: Path, tmp_path: Path, deploy: Deploy
) -> None:
    from deployments.app import build_application
    from deployments.settings import parse_settings

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = ["--model", str(tiny_llama_dir), "--device", "cuda", "--dtype", "float32"]
    argv += "--rank 4 --adapters 3 --adds 2 --changes 1 --streams 2 --rows 4".split()
    argv += "--output_tokens 64 --warm_up_s 1 --quiet_s 0.5".split()
    args = parser.parse_args(argv)
    service = prepare(args, tmp_path)
    application = build_application(parse_settings(service.application["args"]), load=load_on_cpu)

    async def measured(url: str) -> dict[str, Any]:
        async with connect() as session:
            operator = Operator(session, url, service.user, service.admin, 2)
            assert (await operator.served())["decoder"] == "fast"
            return await measure_under_load(args, service.sources, operator)

    async def is_ready(url: str) -> bool:
        async with connect() as session:
            return await Operator(session, url, service.user, service.admin, 2).is_ready()

    with deploy(application, APP) as client:
        url = str(client.base_url).rstrip("/")
        wait_for(lambda: asyncio.run(is_ready(url)), "two replicas")
        report = asyncio.run(measured(url))
        listed = client.get("/v1/adapters", headers=service.admin).json()
    assert report["add_s"]["n"] == 2
    assert report["answers_checked"] == 2 * 3 * 2  # adds, answers of each replica, replicas
    others = report["others"]
    assert others["failed"] == 0
    assert others["answers"] > 2
    assert others["tokens"] > 64
    assert all(0 < ms < 10_000 for ms in others["ms_per_token"].values())
    assert (report["patch_s"]["n"], report["delete_s"]["n"]) == (2, 1)
    # What it says that it did is what the catalogue says now.
    versions = {a["name"]: a["version"] for a in listed["adapters"]}
    assert versions == {"a0": "v1", "a1": "1", "a2": "1"}
