"""The checks of the machine: ports, the local cluster file, disk space, memory."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.settings import parse_settings
from deployments.startup import checks
from deployments.startup.checks import (
    check_cluster_file,
    check_disk,
    check_folders,
    check_machine,
    check_port,
    check_state_folder,
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
        (problem,) = check_port(host, server.getsockname()[1], "port", "hint")
    assert "is in use" in problem


def test_a_host_that_is_not_ours_is_named() -> None:
    (problem,) = check_port("192.0.2.1", 8000, "http_options.port", "hint")
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
    with socket.socket() as app:
        app.bind(("127.0.0.1", 0))
        app.listen()
        problems = check_machine("127.0.0.1", app.getsockname()[1])
    (tmp_path / "state").touch()
    problems += check_folders(parse_settings({"state_dir": str(tmp_path / "state")}))
    for words in ("http_options.port", "ray_current_cluster", "temporary", "state_dir:", "cache"):
        assert sum(words in problem for problem in problems) == 1, (words, problems)
    assert len(problems) == 5


@pytest.mark.parametrize("taken", ["file", "/proc/polyclinic", "file/below"])
def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, taken: str) -> None:
    (tmp_path / "file").touch()
    folder = Path(tmp_path, taken)
    (problem,) = check_state_folder(folder)
    assert problem.startswith(f"args.state_dir: {folder} cannot be written (")
    assert "set state_dir to a folder that is" in problem


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_place_that_may_not_be_looked_at_is_a_problem_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A folder of another user, or of a file server that is gone."""
    folder, stat = tmp_path / "state", Path.stat

    def failing(path: Path, **options: Any) -> Any:
        if path.is_relative_to(folder):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    (problem,) = check_state_folder(folder / "live")
    assert problem.startswith(f"args.state_dir: {folder / 'live'} cannot be written (")
    (problem,) = check_disk(folder / "live", "the cache")
    assert problem.startswith(f"the cache ({folder / 'live'}): cannot be looked at (")


def test_a_state_folder_is_not_made_by_the_check(tmp_path: Path) -> None:
    assert check_state_folder(tmp_path / "not" / "yet") == []
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_used_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 2**60)
    args = {"base_model": str(tmp_path), "state_dir": "memory://bucket/state"}
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/data")
    assert check_folders(parse_settings(args)) == []  # a local base needs no cache
    (problem,) = check_folders(parse_settings({**args, "auth": {"mode": "keys"}}))
    assert "/proc/data/polyclinic cannot be written" in problem  # where the keys are


def test_notes_tell_of_a_live_cluster_and_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    memory = SimpleNamespace(available=3 * 2**30)
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: memory)
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
