"""A replica whose engine is in a process of its own: same answers, and what a death costs."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.bases.models import BaseModelError
from adapters.seed_check import AdapterError
from deployments.engine.errors import EngineStopped
from deployments.engine.request import TokenEvent
from deployments.engine.structured.grammar import json_grammar
from deployments.engine_process.client import EngineProcess
from deployments.model import deployment
from deployments.model.deployment import ModelReplica
from deployments.settings import Settings
from tests.deployments.clinic_in_process import MAX_TOKENS, QUESTION, Expected
from tests.deployments.model.test_deployment import call, settings_of

pytestmark = pytest.mark.slow  # each process imports torch


@pytest.fixture(scope="module")
def settings(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    base, catalog = tiny_catalogs["llama"]
    state = tmp_path_factory.mktemp("state")
    return settings_of(base, catalog, state, cpu_threads=1, max_adapters=1, step_timeout_s=2)


@pytest.fixture(scope="module", autouse=True)
def stays() -> Iterator[None]:
    """What ends a replica's process would end the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "_end_soon", lambda: None)
        yield


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set where a replica in service would end its own process."""
    event = threading.Event()
    monkeypatch.setattr(deployment, "_end_soon", event.set)
    return event


@pytest.fixture
def replica(settings: Settings, lost: threading.Event) -> Iterator[ModelReplica]:
    replica = ModelReplica(settings, "cpu")
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def standing(settings: Settings) -> Iterator[ModelReplica]:
    """A replica for tests that leave it as it was."""
    replica = ModelReplica(settings, "cpu")
    yield replica
    replica.close()


def pid_of(replica: ModelReplica) -> int:
    return replica._engine.core.pid  # type: ignore[attr-defined, no-any-return]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: object, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)


async def last_of(events: AsyncIterator[TokenEvent]) -> tuple[str, TokenEvent]:
    found = [event async for event in events]
    assert [e.finish_reason is not None for e in found] == [False] * (len(found) - 1) + [True]
    return "".join(event.text for event in found), found[-1]


async def test_answers_are_those_of_peft_with_one_slot_for_two_adapters(
    standing: ModelReplica, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    replica = standing
    base, catalog = Path(settings.base_model), Path(str(settings.adapters))
    folders = {name: catalog / "weights" / name for name in ("derm", "cardio")}
    expected = Expected(base, folders)
    wanted = {name: expected.answer(name) for name in ("derm", "cardio", None)}
    assert len(set(wanted.values())) == 3, "the adapters differ from the base and each other"
    for name in ("derm", "cardio", None, "derm", "cardio"):
        text, last = await last_of(replica.generate(call(name, MAX_TOKENS)))
        assert last.error is None
        assert text == wanted[name], name
    assert replica._adapters is not None
    tiers = sorted(a["tier"] for a in replica._adapters.report()["adapters"])
    assert tiers == ["device", "host"]
    assert (await replica.info())["rows_running"] == 0
    assert QUESTION not in caplog.text


async def test_a_killed_process_ends_its_answers_and_the_replica(
    replica: ModelReplica, lost: threading.Event
) -> None:
    asked = [asyncio.create_task(last_of(replica.generate(call(None, 30)))) for _ in range(6)]
    await until(lambda: replica._engine.num_running)
    os.kill(pid_of(replica), signal.SIGKILL)
    for _, last in await asyncio.gather(*asked):
        assert last.error is None or last.error.code == "engine_stopped"
    assert await asyncio.to_thread(lost.wait, 10)
    with pytest.raises(EngineStopped, match="signal 9"):
        await replica.check_health()
    _, refused = await last_of(replica.generate(call(None)))
    assert refused.error is not None
    assert refused.error.code == "engine_stopped"
    with pytest.raises(EngineStopped):
        await replica.info()


async def test_a_stopped_process_is_noticed_and_killed(
    replica: ModelReplica, lost: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.engine_process.client.SILENT_S", 1.0)
    monkeypatch.setattr("deployments.engine_process.client.LOST_S", 2.5)
    process = pid_of(replica)
    os.kill(process, signal.SIGSTOP)
    held = asyncio.create_task(last_of(replica.generate(call(None, 30))))
    await asyncio.sleep(1.5)
    _, refused = await last_of(replica.generate(call(None)))
    assert refused.error is not None
    assert "has not answered" in refused.error.message, "a silent process gets no new request"
    _, last = await held
    assert last.error is not None
    assert last.error.code == "engine_stopped"
    assert await asyncio.to_thread(lost.wait, 10)
    assert not is_running(process)


async def test_one_that_is_stopped_while_it_loads_fails_the_start(
    settings: Settings, lost: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that never starts would be waited for without an end. The start raises, and does
    not end its process, however late it notices."""
    close = EngineProcess.close

    def close_late(process: EngineProcess, timeout_s: float) -> None:
        time.sleep(0.3)
        close(process, timeout_s)

    monkeypatch.setattr(EngineProcess, "close", close_late)
    monkeypatch.setattr("deployments.stopped.STOPPED_S", 1.0)
    before = set(psutil.Process().children())
    starting = asyncio.create_task(asyncio.to_thread(ModelReplica, settings, "cpu"))
    await until(lambda: set(psutil.Process().children()) - before)
    (process,) = set(psutil.Process().children()) - before
    process.suspend()
    with pytest.raises(EngineStopped, match="signal 9"):
        await asyncio.wait_for(starting, 20)
    assert not is_running(process.pid)
    assert not lost.is_set()


async def test_a_process_that_is_not_understood_is_replaced(
    replica: ModelReplica, lost: threading.Event
) -> None:
    """Whatever waits for it hears of the end."""
    core: Any = replica._engine.core
    core._take = lambda *fields: 1 / 0
    with pytest.raises(EngineStopped):
        await asyncio.wait_for(asyncio.wrap_future(core._ask("call", "warm_up")), 10)
    assert await asyncio.to_thread(lost.wait, 10)
    with pytest.raises(EngineStopped):
        await replica.check_health()


async def test_steps_that_are_not_understood_end_their_requests(replica: ModelReplica) -> None:
    core: Any = replica._engine.core
    await replica.answer(call(None))
    core._listener._frames.feed = lambda data: iter([b"\xc1"])
    _, last = await asyncio.wait_for(last_of(replica.generate(call(None, 30))), 10)
    assert last.error is not None
    assert last.error.code == "engine_stopped"


BROKEN_STEPS = """
import deployments.engine_process.decoder_loading as loading

load = loading.load_decoder
QUESTION = "".join(["ecz", "ema"])

def load_broken(spec):
    decoder = load(spec)
    def step(scheduled):
        raise {error}(QUESTION)
    decoder.step = step
    return decoder

loading.load_decoder = load_broken
"""


@pytest.mark.parametrize(
    ("error", "num_asked", "reason"),
    [("ValueError", 3, "failed 3 times in a row"), ("SystemExit", 1, "loop died: SystemExit")],
)
async def test_an_engine_that_can_no_longer_serve_ends_its_process(
    error: str,
    num_asked: int,
    reason: str,
    settings: Settings,
    lost: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken device, and a loop that died: nobody waits for what never comes."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN_STEPS.format(error=error))
    monkeypatch.syspath_prepend(tmp_path)
    replica = ModelReplica(settings, "cpu")
    try:
        for _ in range(num_asked):
            _, last = await asyncio.wait_for(last_of(replica.generate(call(None))), 10)
            assert last.error is not None
            assert last.error.code in ("decoder_failed", "engine_stopped")
        assert await asyncio.to_thread(lost.wait, 10)
        with pytest.raises(EngineStopped, match=reason):
            await replica.check_health()
        assert "eczema" not in caplog.text
    finally:
        replica.close()


async def test_a_request_after_the_last_step_was_read_is_refused(replica: ModelReplica) -> None:
    """The process has closed its sockets, and takes its time to end."""
    await replica.answer(call(None))
    core = replica._engine.core
    core._steps.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]
    await until(lambda: core._stopped is not None)  # type: ignore[attr-defined]
    _, last = await asyncio.wait_for(last_of(replica.generate(call(None))), 10)
    assert last.error is not None
    assert last.error.code == "engine_stopped"


async def test_who_leaves_while_a_grammar_is_compiled_harms_nobody(standing: ModelReplica) -> None:
    core: Any = standing._engine.core
    waiting = asyncio.wrap_future(core.prepare(json_grammar({"type": "object"})))
    waiting.cancel()
    await asyncio.wrap_future(core.prepare(json_grammar({"type": "array"})))
    core.check()


async def test_a_cancelled_answer_gives_its_row_back(standing: ModelReplica) -> None:
    for _ in range(5):
        reading = asyncio.create_task(last_of(standing.generate(call("derm", 30))))
        await until(lambda: standing._engine.num_running)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        # Two rows, one slot: the eviction of the other adapter waits for no cancelled row.
        assert (await standing.answer(call("cardio"))).error is None
    assert standing._engine.num_running == 0


@pytest.mark.long
def test_its_process_ends_with_the_replica(settings: Settings) -> None:
    replica = ModelReplica(settings, "cpu")
    process = pid_of(replica)
    replica.close()
    assert not is_running(process)


def test_it_ends_when_the_replica_is_killed(settings: Settings, tmp_path: Path) -> None:
    """SIGKILL leaves the replica no time to say anything."""
    script = (
        "import sys, time\n"
        "from deployments.model.deployment import ModelReplica\n"
        "from deployments.settings import Settings\n"
        f"settings = Settings.model_validate_json({settings.model_dump_json()!r})\n"
        "replica = ModelReplica(settings, 'cpu')\n"
        "print(replica._engine.core.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        process = int(run.stdout.readline())
        assert is_running(process)
        run.kill()
    deadline = time.monotonic() + 10
    while is_running(process):
        assert time.monotonic() < deadline, "the engine's process outlived its replica"
        time.sleep(0.05)


def test_a_start_that_fails_says_what_the_process_said(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, catalog = tiny_catalogs["llama"]
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    (broken / "model.safetensors").write_bytes(b"")
    before = threading.active_count()
    with pytest.raises(Exception, match=r"(?i)safetensors|header"):
        ModelReplica(settings_of(broken, catalog, tmp_path / "state"), "cpu")
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline, "a thread is left behind"
        time.sleep(0.05)


def test_a_template_that_cannot_be_used_leaves_no_process(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, catalog = tiny_catalogs["llama"]
    silent = Path(shutil.copytree(base, tmp_path / "base"))
    (silent / "chat_template.jinja").write_text("{{ raise_exception('for rerankers only') }}")
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(BaseModelError, match=r"cannot write one question: .*for rerankers only"):
        ModelReplica(settings_of(silent, catalog, tmp_path / "state"), "cpu")
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_bad_adapter_of_the_shipped_catalogue_refuses_the_start(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, shipped = tiny_catalogs["llama"]
    catalog = Path(shutil.copytree(shipped, tmp_path / "catalog"))
    file = catalog / "weights" / "derm" / "adapter_model.safetensors"
    save_file({n: t * torch.nan for n, t in load_file(file).items()}, file)
    listed = catalog / "catalog.yaml"
    import hashlib

    old = hashlib.sha256((shipped / "weights/derm/adapter_model.safetensors").read_bytes())
    new = hashlib.sha256(file.read_bytes())
    listed.write_text(listed.read_text().replace(old.hexdigest(), new.hexdigest()))
    before = set(psutil.Process().children())
    with pytest.raises(AdapterError, match="adapter 'derm'"):
        ModelReplica(settings_of(base, catalog, tmp_path / "state"), "cpu")
    assert not set(psutil.Process().children()) - before, "the engine's process has ended"


@pytest.mark.long
async def test_its_log_records_arrive_without_texts(
    settings: Settings, lost: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    replica = ModelReplica(settings, "cpu")
    try:
        assert "base model" in caplog.text
        assert "decoder fast" in caplog.text
        await replica.answer(call("derm"))
        assert "eczema" not in caplog.text
    finally:
        replica.close()


def test_it_imports_no_ray() -> None:
    code = (
        "import sys, deployments.engine_process.main; "
        "print([name for name in ('ray', 'torch', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
