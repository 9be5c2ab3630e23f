"""The systemd unit: known to systemd, hardened, and patient with answers in progress."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.live_settings import RouterLiveSettings
from deployments.startup.supervision import GRACE_S, ORPHANS_GRACE_S
from tests.deploy.manifests import DEPLOY

UNIT = DEPLOY / "systemd" / "polyclinic.service"
PYTHON = "/srv/polyclinic/.venv/bin/python"
MOST_EXPOSED = 3.0  # of 10, by systemd's own count; a unit without hardening has 9.6


def settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def verify(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    unit = folder / UNIT.name
    unit.write_text(text)
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_knows_every_line(tmp_path: Path) -> None:
    text = UNIT.read_text().replace(PYTHON, sys.executable)
    done = verify(text, tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    wrong = verify(text.replace("ProtectSystem=strict", "ProtectSistem=strict"), tmp_path)
    assert "ProtectSistem" in wrong.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_little_is_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True)
    figure = done.stdout.split("Overall exposure level for polyclinic.service: ")[1].split()[0]
    assert float(figure) <= MOST_EXPOSED


def test_answers_in_progress_finish_before_it_is_killed() -> None:
    found = settings()
    needed_s = RouterLiveSettings().drain_s + GRACE_S + ORPHANS_GRACE_S
    assert float(found["TimeoutStopSec"]) >= needed_s
    assert found["KillMode"] == "mixed"  # only the launcher gets the signal
    assert found["KillSignal"] == "SIGTERM"


def test_it_comes_back_after_a_loss_but_not_after_a_wrong_file() -> None:
    found = settings()
    assert (found["Restart"], found["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_it_runs_as_its_own_user_with_files_of_its_own() -> None:
    found = settings()
    assert found["User"] == "polyclinic"
    assert (found["NoNewPrivileges"], found["ProtectSystem"]) == ("yes", "strict")
    assert found["UMask"] == "0077"
    assert found["ExecStart"].startswith(f"{PYTHON} -W ignore -m deployments.launch ")
