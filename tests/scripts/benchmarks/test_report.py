"""docs/measurements.md: every figure of a result file is on it, and it is up to date."""

import json
import shutil
from pathlib import Path
from typing import Any

from scripts import benchmark
from scripts.benchmarks import report

RESULT: dict[str, Any] = {
    "what": "serve",
    "commit": "abc1234",
    "processor": "A Processor",
    "num_cores": 2,
    "command": "python -m scripts.benchmark serve",
    "settings": {"dtype": "float32"},
    "load_average": {"before": [0.5, 1, 1], "after": [1.5, 1, 1]},
    "runs": [
        {"streams": n, "tokens_per_s": 50.0 * n, "first_token_s": spread}
        for n, spread in (
            (1, {"n": 9, "median": 0.1, "p99": 0.2, "max": 0.3}),
            (16, {"n": 90, "median": 0.4, "p99": 0.5, "max": 0.6}),
            (64, {"n": 99, "median": 0.7, "p99": 0.8, "max": 0.9}),
        )
    ],
    "sides": {"ours": {"requests_per_s": [10.0, 12.0, 14.0]}, "chain": {"failed": 0}},
    "missed": "the | aim",
}


def test_the_page_is_what_the_files_say(tmp_path: Path) -> None:
    page, folder = tmp_path / "measurements.md", tmp_path / "benchmarks"
    folder.mkdir()
    summary = report.PAGE.with_name(report.SUMMARY)
    shutil.copy(summary, tmp_path)
    for file in report.FOLDER.glob("*.json"):
        shutil.copy(file, folder)
    assert benchmark.main(["report", "--out", str(page), "--folder", str(folder)]) == 0
    assert page.read_text() == report.PAGE.read_text(), "run python -m scripts.benchmark report"
    assert (tmp_path / summary.name).read_text() == summary.read_text(), "the same"


def test_a_result_gets_its_tables_its_conditions_and_a_plot(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps(RESULT))
    inside = {k: v for k, v in RESULT.items() if k != "sides"}
    (folder / "two.json").write_text(json.dumps({"commit": "abc1234", "note": "N", "a": inside}))
    page = tmp_path / "page.md"
    assert benchmark.main(["report", "--folder", str(folder), "--out", str(page)]) == 0
    text = page.read_text()
    assert "A Processor, 2 cores. commit abc1234. load average 0.5 before, 1.5 after." in text
    assert "| 16 | 800 | 0.4 (0.5; 0.6), n=90 |" in text
    assert "| ours | 12 (10 to 14), n=3 |  |" in text
    assert "| missed | the \\| aim |" in text
    assert "two.json). N" in text
    assert "### a" in text
    plots = sorted(file.name for file in (folder / "plots").iterdir())
    assert plots == ["one.svg", "two.svg"]
    before = (folder / "plots" / "one.svg").read_bytes()
    benchmark.main(["report", "--folder", str(folder), "--out", str(page)])
    assert (folder / "plots" / "one.svg").read_bytes() == before


def test_what_all_rows_share_stands_below_them_and_no_cell_is_a_page() -> None:
    rows = [{"sent": n, "failed": 0, "why": {"text": n * "long"}} for n in (1, 2, 99)]
    lines = list(report.table("run", [(f"no_{row['sent']}", row) for row in rows]))
    assert lines[0].startswith("| run | sent | why |")
    assert lines[1:4] == [
        "| no 1 | 1 | text long |",
        "| no 2 | 2 | text longlong |",
        "| no 99 | 99 | see the file |",
    ]
    assert lines[4:] == ["", "In every row: failed 0.", ""]
    alike = list(report.table("", [("", {"a": 1})] * 3))
    assert alike[1:] == ["| 1 |"] * 3 + [""]  # a table keeps a column
