"""The checks of the machine: ports, the local cluster file, disk space, memory."""

import socket
from pathlib import Path

import pytest

from deployments.startup import checks
from deployments.startup.checks import (
    available_memory_bytes,
    check_cluster_file,
    check_disk,
    check_machine,
    check_port,
    cluster_file,
    machine_notes,
)


def test_a_port_in_use_is_seen_even_when_it_is_shared() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        (problem,) = check_port("127.0.0.1", port, "http_options.port", "choose another port")
        assert f"127.0.0.1:{port} is in use: choose another port" in problem
    assert check_port("127.0.0.1", port, "http_options.port", "choose another port") == []


def test_a_stale_cluster_file_is_named_and_a_live_one_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "ray_current_cluster"
    assert check_cluster_file(file) == []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        file.write_text(f"127.0.0.1:{port}")
        assert check_cluster_file(file) == []
    (problem,) = check_cluster_file(file)
    assert f"delete the file (rm {file})" in problem
    file.write_text("nonsense")
    assert len(check_cluster_file(file)) == 1


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not" / "yet", "the cache") == []
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 2**60)
    (problem,) = check_disk(tmp_path / "not" / "yet", "the cache")
    assert f"the cache ({tmp_path})" in problem
    assert "are needed" in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_listener_on_every_interface_is_seen(host: str) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        (problem,) = check_port(host, server.getsockname()[1], "port", "mend")
    assert "is in use" in problem


def test_a_host_that_is_not_ours_is_named() -> None:
    (problem,) = check_port("192.0.2.1", 8000, "http_options.port", "mend")
    assert "192.0.2.1:8000 cannot be bound" in problem


def test_rays_own_rules_say_where_its_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_ray_address_file

    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    assert str(cluster_file()) == get_ray_address_file(None) == "/tmp/ray/ray_current_cluster"
    for variable in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(variable, f"/{variable}")
        assert str(cluster_file()) == get_ray_address_file(None)


def test_everything_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 2**60)
    (tmp_path / "ray").mkdir()
    cluster_file().write_text("127.0.0.1:9")
    with socket.socket() as app, socket.socket() as dashboard:
        for server in (app, dashboard):
            server.bind(("127.0.0.1", 0))
            server.listen()
        monkeypatch.setattr(checks, "DASHBOARD_PORT", dashboard.getsockname()[1])
        problems = check_machine("127.0.0.1", app.getsockname()[1])
    for words in (
        "http_options.port",
        "Ray's dashboard",
        "ray_current_cluster",
        "temporary",
        "cac",
    ):
        assert sum(words in problem for problem in problems) == 1, (words, problems)
    assert len(problems) == 5


def test_notes_tell_of_a_live_cluster_and_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(checks, "available_memory_bytes", lambda: 3 * 2**30)
    assert machine_notes() == [
        "3.0 GiB of memory available: less than the 4 GiB of the default model"
    ]
    (tmp_path / "ray").mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        cluster_file().write_text(address)
        assert any(address in note for note in machine_notes())


def test_memory_is_read_where_the_system_tells(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert available_memory_bytes(file) is None
    file.write_text("MemTotal: 9 kB\nMemAvailable:   4 kB\n")
    assert available_memory_bytes(file) == 4096
