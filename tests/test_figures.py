"""Every measured figure in README.md and docs/ is traced to a results file that its section links.

A figure is a number with decimals, or of three digits and more, in a table or in a paragraph with
such a link. It is one of the file's numbers, rounded as it is shown, in another unit (percent,
milliseconds, MB, MiB), or a ratio or difference of two figures of its own line.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import numbers_in

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    *(f"docs/{n}.md" for n in ("serving_path", "benchmarks", "engine", "adapters")),
)
LINK = re.compile(r"\]\(((?:docs/)?(?:benchmarks/[\w/]+|router)\.json)\)")
NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*\.?\d*(?!\w)")
NOT_FIGURES = re.compile(
    r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\b[0-9a-f]{7}\b|\d{4}-\d\d-\d\d|\d+\.\d+\.\d+"
)
AIMS = re.compile(r"\([\d,./ ]+%?\)")  # in tables whose head says so
# What a line or its table's head says -> what a file's number is multiplied with.
UNITS = {
    r"\bs\b": (1e-3,),
    r"\bms\b": (1000,),
    r"\bus\b": (1e6,),
    "%": (100,),
    r"\bMB\b": (1e-6, 1e-3),
    r"\bMiB\b": (1 / 2**20,),
    r"\bGiB\b": (1 / 2**30, 1 / 2**10),
}
COMPARES = re.compile("%|times|ratio|over|of the engine")
# Sections whose figures have no results file: measured before there were any, or by hand.
WITHOUT_FILE = {
    "The service on two CPU cores",
    "Adapters that come and go",  # the main figures of adapters.md, traced there
    "The budget, hop by hop",  # py-spy
    "What was tried",  # single kernels
    "Training",
    "Specialists",  # generated; test_results.py compares
}
# Beginnings of lines with figures from elsewhere, and where from.
BY_HAND = {
    "| tokens a second, one stream |": "serving_path: two commits, before there was a file",
    "| tokens a second, 16 streams |": "the same",
    "| first token, median, one stream and 16 |": "the same",
    "| together |": "sums of the rows above",
    "| HTTP, 64 streams | 21,837": "percent of another row",
    "200 clients that read": "clients times rounds",
    "Quality: the loss": "tokens of all adapters together",
    "With 40 training answers": "the same, and medians",
    "| one replica, ": "simulated, printed by `benchmark simulate`",
    "| two replicas, ": "the same",
    "| the same, classified |": "the same",
    "512 + 256 positions; commit": "GiB of the whole process, summed from the file's MiB",
    "GPU's keys and values lie in one piece": "planned, not measured",
    "Commit 3059ad4, SmolLM2-135M": "load average, before files held it",
}


def sections(page: str) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def figures(line: str) -> list[str]:
    found = (n.rstrip(".,").replace(",", "") for n in NUMBER.findall(NOT_FIGURES.sub("", line)))
    return list(found)


def is_measured(figure: str) -> bool:
    return "." in figure or int(figure) >= 100


def traced(figure: str, line: str, head: str, measured: list[float]) -> bool:
    """Whether a figure of a line, under this head of its table, is one of the measured numbers, or
    compares two figures of its line."""
    shown, decimals = float(figure), len(figure.partition(".")[2])
    room = 0.5 * 10**-decimals + 1e-9
    said = f"{head} {line}"
    units = [1, *(unit for word, found in UNITS.items() if re.search(word, said) for unit in found)]
    if any(abs(number * unit - shown) <= room for number in measured for unit in units):
        return True
    if not COMPARES.search(said):
        return False
    pairs = [(a, b) for a, b in itertools.permutations(map(float, figures(line)), 2) if b]
    ratios = [a / b for a, b in pairs]
    percent = [100 * ratio for ratio in ratios] + [100 * abs(ratio - 1) for ratio in ratios]
    compared = percent if "%" in said and shown > 3 else ratios
    return any(abs(value - shown) <= room for value in compared)


def untraced(page: str, body: str) -> list[str]:
    """The figures of a section that are in none of the files that it links."""
    files = {(ROOT / page).parent / link for link in LINK.findall(body)}
    measured = [n for file in files for n in numbers_in(json.loads(file.read_text()))]
    return [
        f"{figure} in {line[:90]!r}"
        for line, head in lines_of(body)
        if not line.startswith(tuple(BY_HAND))
        for figure in figures(line)
        if is_measured(figure) and not traced(figure, line, head, measured)
    ]


def lines_of(body: str) -> Iterator[tuple[str, str]]:
    """Yield each line of tables and of paragraphs with a link, with the head of its table."""
    for block in map(str.strip, body.split("\n\n")):
        if not (LINK.search(block) or block.startswith("|")):
            continue
        head = block.partition("\n")[0] if block.startswith("|") else ""
        for line in (AIMS.sub("", block) if "(aim)" in head else block).splitlines():
            yield line, head


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_files_beside_them(page: str) -> None:
    missing = [
        f"{title}: {figure}"
        for title, body in sections(page)
        if LINK.search(body) and title not in WITHOUT_FILE
        for figure in untraced(page, body)
    ]
    assert not missing, f"{page}: not in the linked files:\n" + "\n".join(missing)


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_figures_link_their_file(page: str) -> None:
    for title, body in sections(page):
        if LINK.search(body) or title in WITHOUT_FILE:
            continue
        rows = [line for line in body.splitlines() if line.startswith("|")]
        found = [f for line in rows for f in figures(line) if "." in f]
        assert not found, f"{page}, {title}: no results file is linked for {found[:5]}"


def test_a_changed_figure_is_noticed() -> None:
    page = "docs/benchmarks.md"
    body = next(body for title, body in sections(page) if title == "vLLM on the same machine")
    assert not untraced(page, body)
    for shown, other in (("29,850", "30,850"), ("0.076 s", "0.177 s"), ("4,518", "4,531")):
        assert shown in body
        assert len(untraced(page, body.replace(shown, other, 1))) >= 1


def test_a_section_without_a_file_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Any = [("New", "\n| a | b |\n| --- | --- |\n| speed | 12.5 |\n")]
    monkeypatch.setattr("tests.test_figures.sections", lambda page: table)
    with pytest.raises(AssertionError, match="no results file is linked for"):
        test_tables_of_figures_link_their_file("README.md")
