"""Where a number was made: one commit for cards, reports and benchmarks."""

import subprocess
from pathlib import Path

import pytest

from scripts import environment
from scripts.environment import command_line, commit, processor


def test_the_commit_says_whether_files_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYCLINIC_COMMIT", raising=False)
    root = Path(environment.__file__).parent.parent
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    told = subprocess.run(git, cwd=root, capture_output=True, text=True).stdout.strip()
    assert commit() == (told or "unknown") == environment.environment()["commit"]


def test_a_copied_tree_states_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCLINIC_COMMIT", "abc1234")
    assert commit() == "abc1234"


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYCLINIC_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_the_processor_has_a_name_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "_CPUINFO", cpuinfo)
    assert processor()
    cpuinfo.write_text("processor : 0\nmodel name : Fast 3000\nmodel name : Fast 3000\n")
    assert processor() == "Fast 3000"
    cpuinfo.write_text("model name\t: Fast 3000\nflags\t\t: fpu avx512_vnni avx2 avx\n")
    assert processor() == "Fast 3000 (avx2, avx512_vnni)"


def test_the_command_has_no_path_of_this_machine() -> None:
    words = ["--data", "/home/me/data", "--out", "runs/a b", "--base", "../models/tiny"]
    told = "python -m scripts.train --data data --out 'runs/a b' --base tiny"
    assert command_line("train", words) == told
    words = ["--data=/home/me/data", "--out=runs/a", "--base", "~/models/tiny"]
    told = "python -m scripts.train --data=data --out=runs/a --base tiny"
    assert command_line("train", words) == told
