"""The command and the environment that Serve is started with, and the dashboard's port."""

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deployments import launch
from deployments.settings import PROJECT_ROOT
from deployments.startup import cluster


def test_the_environment_is_a_default_that_an_operator_overrules() -> None:
    environment = cluster.serve_environment({"RAY_AUTH_MODE": "disabled", "PYTHONPATH": "/x"})
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PYTHONPATH"] == f"{PROJECT_ROOT}{os.pathsep}/x"


def test_this_ray_reads_what_we_set() -> None:
    """Ray ignores a variable that it has renamed."""
    ray = Path(str(importlib.util.find_spec("ray").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    texts = [path.read_text() for path in ray.glob("serve/_private/*constants.py")]
    ours = {name for name in cluster.ENVIRONMENT if name.startswith("RAY_SERVE_")}
    assert len(ours) >= 5
    assert {name for name in ours if not any(f'"{name}"' in text for text in texts)} == set()


def test_a_port_that_another_ray_has_is_avoided() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        chosen = cluster.free_port(taken)
        assert chosen != taken
    assert cluster.free_port(taken) == taken


def test_serve_and_the_launcher_use_the_same_ports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(launch, "preflight", lambda argv: 0)
    monkeypatch.setattr(launch, "_fetch_base_model", lambda content: True)
    monkeypatch.setattr(launch, "_build_shelf", lambda content: True)
    monkeypatch.setattr(launch, "free_port", lambda preferred: preferred + 1)
    monkeypatch.setattr(launch, "supervise", lambda *args, **kwargs: seen.append(args) or 0)
    assert launch.main([str(PROJECT_ROOT / "serve_config.yaml")]) == 0
    ((command, addresses),) = seen
    assert command[-4:] == ["--metrics_port", "9465", "--dashboard_port", "8266"]
    assert addresses.dashboard == "http://127.0.0.1:8266"
    assert "--apply" in (said := capsys.readouterr().out)
    assert "http://127.0.0.1:9465/metrics" in said
    assert said.endswith("serve_config.yaml --dashboard http://127.0.0.1:8266\n")


def test_rays_sessions_lie_where_only_this_user_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    folder = short / f"polyclinic-{os.getuid()}"
    for mode in (0o700, 0o777):  # also one that was opened
        environment = cluster.serve_environment({})
        assert environment["RAY_TMPDIR"] == str(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(mode)
    assert cluster.serve_environment({"RAY_TMPDIR": "/x"})["RAY_TMPDIR"] == "/x"
    folder.rmdir()
    folder.symlink_to(tmp_path)  # somebody else's
    assert cluster.private_temp_dir() is None
    folder.unlink()
    short.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 60)
    assert cluster.private_temp_dir() is None, "its sockets would have paths that are too long"


def test_startup_loads_no_ray() -> None:
    names = [path.stem for path in Path(cluster.__file__).parent.glob("*.py")]
    modules = ", ".join(f"deployments.startup.{n}" for n in names if n != "__init__")
    code = f"import sys, deployments.launch, {modules}; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
