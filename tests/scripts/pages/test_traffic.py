"""Sections of docs/benchmarks.md that are written from result files: every figure, or nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import benchmark
from scripts.pages.traffic import BLOCKS

PAGE = (
    "# Measurements\n\n" + "".join(f"<!-- {n} -->\n\n<!-- /{n} -->\n\n" for n in BLOCKS) + "End.\n"
)


def spread(median: float, p95: float) -> dict[str, float]:
    return {"n": 9, "median": median, "p95": p95, "max": 2 * p95}


def times(first_s: float) -> dict[str, Any]:
    return {
        "first_token_s": spread(first_s, 2 * first_s),
        "time_per_token_ms": spread(1.5, 1.75),
        "longest_gap_s": spread(0.03, 0.04),
    }


def about(what: str, **more: Any) -> dict[str, Any]:
    return {
        "what": what,
        "commit": "abc1234",
        "processor": "A Processor",
        "num_cores": 16,
        "device": "A GPU",
        "command": f"python -m scripts.benchmark {what}",
        "settings": {"model": "llama-1b-shape", "adapters": 64, "popularity": "zipf"},
        "load_average": {"before": [0.5, 1, 1], "after": [1.5, 1, 1]},
        **more,
    }


def run(adapters: int, popularity: str, speed: float) -> dict[str, Any]:
    samples = {"tokens_per_s": speed, "tokens_per_s_samples": [speed - 10, speed, speed + 10]}
    return {"rows": 64, "adapters": adapters, "popularity": popularity, **samples, **times(0.03)}


def rate(per_s: float, first_s: float, failed: int = 0) -> dict[str, Any]:
    holds = {"failed": failed, "holds": first_s < 0.1 and not failed}
    return {"rate_per_s": per_s, "requests": 500, "answers_per_s": per_s, **holds, **times(first_s)}


LIMITS = {"adapters": 64, "popularity": "zipf"} | {
    "first_token_p95_limit_s": 0.2,
    "holds_up_to_per_s": 200,
    "breaks_at_per_s": 300,
}
SWEEP = about("load", runs=[run(1, "one", 40000.0), run(64, "zipf", 39000.0)])
RATES = about("load", runs=[run(64, "zipf", 1.0)], rates=[rate(200, 0.05), rate(300, 0.7, 4)])
RATES["limits"] = [{"rows": 64, **LIMITS}]
HTTP = about("serve", rates=[rate(100, 0.06)], limits=LIMITS | {"breaks_at_per_s": None})
PEERS = about(
    "engine",
    sides={
        "peft_mixed_batch": run(0, "", 750.0),
        "engine_no_adapters": run(0, "", 40123.0) | {"first_token_p50_s": 0.025},
        "transformers_no_adapters": run(0, "", 2321.0) | {"first_token_p50_s": 0.5},
    },
    ratios={"no adapters over transformers'": 17.29, "mixed over no adapters": 0.98},
    dtype="bfloat16",
    weights="int8: asked for",
    attention={"transformers_no_adapters": "sdpa", "transformers_one_adapter": "sdpa"},
)


def summary(ours: float, theirs: float) -> dict[str, Any]:
    names = ("polyclinic, mixed, 16", "llama.cpp, mixed, 16", "PEFT, one by one, 16")
    speeds = (ours, theirs, theirs / 2)
    return {name: {"tokens_per_s": speed} for name, speed in zip(names, speeds, strict=True)}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks.md").write_text(PAGE)
    return tmp_path


def written(docs: Path, **files: Any) -> str:
    for name, content in files.items():
        (docs / "benchmarks" / f"{name}.json").write_text(json.dumps(content))
    argv = ["report", "--folder", str(docs / "benchmarks"), "--out", str(docs / "page.md")]
    assert benchmark.main(argv) == 0
    return (docs / "benchmarks.md").read_text()


def test_without_figures_there_is_neither_table_nor_heading(docs: Path) -> None:
    assert written(docs) == PAGE
    other = about("load", runs=[{"rows": 64, "tokens_per_s": 5.0}, run(8, "turns", 3.0)])
    assert written(docs, other=other, peers=about("peers", summary=summary(9.0, 3.0))) == PAGE


def test_every_figure_of_a_file_is_on_the_page(docs: Path) -> None:
    text = written(docs, gpu={"commit": "c", "sweep": SWEEP, "rates": RATES}, http=HTTP, peer=PEERS)
    assert "A GPU; A Processor, 16 cores. commit abc1234. load average 0.5 before" in text
    assert "`python -m scripts.benchmark load`. [File](benchmarks/gpu.json)." in text
    assert "| 1 | itself | 40,000 (39,990 to 40,010) | 0.03, 0.06 | 1.5, 1.75 | 0.04 |" in text
    assert "| 64 | zipf | 39,000 (38,990 to 39,010) |" in text
    assert "| 64 zipf | 300 | 300 | 4 of 500 | 0.7, 1.4 | 1.5, 1.75 | 0.04 | **no** |" in text
    assert (
        "- 64 zipf: no request fails and the p95 of the first token is at most 0.2 s up to 200"
        in text
    )
    assert "**llama-1b-shape, over HTTP**" in text
    assert "200 requests a second, not at 300.\n" in text
    assert "200 requests a second.\n" in text
    assert "| transformers no adapters | 2,321 (2,311 to 2,331) | 0.5 |" in text
    assert "| peft mixed batch | 750 (740 to 760) |  |" in text
    assert "| no adapters over transformers' |\n|---|\n| 17.29 |" in text
    assert "attention there is sdpa; its weights are bfloat16, ours int8." in text
    (plot,) = re.findall(r"\]\((benchmarks/plots/[\w.]+)\)", text)
    drawn = (docs / plot).read_text()
    assert "llama-1b-shape, over HTTP, 64 zipf" in drawn
    assert text == written(docs), "the same files, the same page"
    assert (docs / plot).read_text() == drawn


def test_two_runs_agree_within_so_much(docs: Path) -> None:
    runs = {"peers": about("peers", summary=summary(1000.0, 100.0))}
    runs["peers_again"] = about("peers", summary=summary(1030.0, 100.0))
    text = written(docs, **runs)
    assert (
        "| llama.cpp, mixed, 16 | 1000 and 100 | 10.00 | 1030 and 100 | 10.30 | `1.030` |" in text
    )
    assert "| PEFT, one by one, 16 | 1000 and 50 | 20.00 | 1030 and 50 | 20.60 | `1.030` |" in text
    assert "Every ratio agrees within 3.0%." in text
    for when, file in (("First", "peers"), ("Second", "peers_again")):
        assert re.search(
            rf"^{when}: A GPU; .* \[File\]\(benchmarks/{file}.json\)", text, re.MULTILINE
        )


def test_two_runs_with_measured_ratios_are_shown_with_their_intervals(docs: Path) -> None:
    """Those ratios count, not those of the speeds, which are medians over the whole run."""
    runs = {}
    for name, ratio in (("peers", 9.5), ("peers_again", 9.12)):
        measured = {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "turns": 9}
        ratios = {"llama.cpp, mixed, 16": measured, "PEFT, one by one, 16": {"turns": 0}}
        ratios["polyclinic, base, 16"] = measured | {"ratio": 0.93}
        speeds = summary(1000.0, 100.0) | {"polyclinic, base, 16": {"tokens_per_s": 1075.0}}
        runs[name] = about("peers", summary=speeds, ratios=ratios)
    text = written(docs, **runs)
    first, second = "9.5 [9.4, 9.6]", "9.12 [9.02, 9.22]"
    line = f"| llama.cpp, mixed, 16 | 1000 and 100 | {first} | 1000 and 100 | {second} | `0.960` |"
    assert line in text
    assert "| polyclinic, base, 16 | 1000 and 1075 | 0.93 [" in text
    assert "| PEFT, one by one, 16 |  | not measured |  | not measured |  |" in text
    assert "Every ratio that both have agrees within 4.0%." in text


def test_files_of_before_that_a_page_links_go_on_without_a_summary(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    argv = ["report", "--folder", str(tmp_path / "benchmarks"), "--out", str(tmp_path / "page.md")]
    assert benchmark.main(argv) == 0
    assert not (tmp_path / "benchmarks.md").exists()
