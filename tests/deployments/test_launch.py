"""The launcher's command: nothing is started, or sent, that the preflight refuses."""

from pathlib import Path
from typing import Any

import pytest

from deployments import launch
from deployments.startup.cluster import free_port


def test_nothing_is_started_when_the_preflight_finds_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "supervise", lambda *args, **kwargs: pytest.fail("started"))
    assert launch.main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


def test_ctrl_c_during_the_download_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(content: dict[str, Any]) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "preflight", lambda argv: 0)
    monkeypatch.setattr(launch, "_fetch_base_model", interrupted)
    monkeypatch.setattr(launch, "supervise", lambda *args, **kwargs: pytest.fail("started"))
    assert launch.main(["serve_config.yaml"]) == 130
    assert "stopped before Serve was started" in capsys.readouterr().err


def test_two_launchers_on_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither clinic listens yet: the second launcher starts while the first one's base loads."""
    statuses: list[int] = []
    port = free_port()
    config = tmp_path / "clinic.yaml"
    config.write_text(f"http_options: {{port: {port}}}\napplications: [{{name: clinic}}]\n")

    def running(*args: Any, **options: Any) -> int:
        statuses.append(launch.main([str(config)]))
        return 0

    monkeypatch.setattr(launch, "preflight", lambda argv: 0)
    monkeypatch.setattr(launch, "_fetch_base_model", lambda content: True)
    monkeypatch.setattr(launch, "_build_shelf", lambda content: True)
    monkeypatch.setattr(launch, "supervise", running)
    for _ in range(2):  # with the first launcher its claim goes
        assert launch.main([str(config)]) == 0
        assert statuses.pop() == 2
        assert f"http_options.port: {port} is another launcher's" in capsys.readouterr().err
