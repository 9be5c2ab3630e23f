"""The churn benchmark end to end on a tiny model: every part runs, and nothing fails."""

import json
from pathlib import Path

import pytest

from scripts import benchmark


@pytest.mark.slow
def test_all_parts_and_a_report(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "churn.json"
    argv = ["churn", "--model", str(tiny_llama_dir), "--dtype", "float32", "--out", str(out)]
    argv += "--registered 6 --slots 4 --rows 4 --rank 4 --prompt_tokens 6 --output_tokens 4".split()
    argv += "--requests 20 --rate 50 --adds 1 --cycles 10 --threads 1".split()
    assert benchmark.main(argv) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert set(report["load"]) == {"read_ms", "install_probed_ms", "install_ms"}
    assert (report["hot_add"]["add_s"]["n"], report["hot_add"]["failed"]) == (1, 0)
    assert set(report["hot_add"]["others_ms_per_token"]) == {"adding", "quiet"}
    tiered, resident = report["zipf"]["tiered"], report["zipf"]["all_resident"]
    assert (tiered["failed"], resident["failed"]) == (0, 0)
    assert (tiered["slots"], resident["slots"]) == (4, 6)
    cycles = report["cycles"]
    assert cycles["wrong_version"] == cycles["other_text"] == cycles["failed"] == 0
    assert cycles["right"] > 0
