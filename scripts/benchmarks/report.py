"""Write docs/measurements.md from the result files alone: tables, plots, hardware, commit, command.

    python -m scripts.benchmark report

Each file of docs/benchmarks becomes a section: where and how it was measured, every table that it
holds, and a plot of tokens a second where it has them for several numbers of streams or rows.
Nothing is left out because it is slow or missed its aim. Where benchmarks.md lies beside the page,
its sections on traffic and on repeated runs are written too, of the files that hold such figures.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.settings import PROJECT_ROOT
from scripts.pages.markdown import head, put_between, row
from scripts.pages.results import Report, about, is_spread, parts_of, save_svg, shown, words
from scripts.pages.traffic import BLOCKS

FOLDER = PROJECT_ROOT / "docs" / "benchmarks"
PAGE = PROJECT_ROOT / "docs" / "measurements.md"
PLOTS = FOLDER / "plots"
SUMMARY = "benchmarks.md"
HEAD = """# Every measurement

Written by `python -m scripts.benchmark report` from the files in [benchmarks/](benchmarks): do not
edit it here. [benchmarks.md](benchmarks.md) says what the figures mean. A list of values is shown
as median (least to most) of n; a group of times as median (p95 or p99; most) of n. What is the same
in every row of a table stands below it, and what is too long for a cell in the file alone.
"""
# How a report was made, which stands above its tables.
_ABOUT = frozenset(
    "what commit processor num_cores python packages command settings device load_average note "
    "torch_threads cpu_threads targets".split()
)
_ALONG = ("streams", "rows")  # a plot's horizontal axis
_CELL_CHARS = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the result files")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    files = sorted(args.folder.glob("*.json"))
    plots = args.folder / PLOTS.name
    plots.mkdir(exist_ok=True)
    reports = {file: json.loads(file.read_text(encoding="utf-8")) for file in files}
    page = args.out.parent
    parts = [HEAD, *(section(*read, plots, page) for read in reports.items())]
    args.out.write_text("\n".join(parts), encoding="utf-8")
    summary = page / SUMMARY
    for name, write in BLOCKS.items() if summary.is_file() else ():
        put_between(summary, name, write(reports, plots, page))
    print(json.dumps({"out": args.out.name, "files": len(files)}))
    return 0


def section(file: Path, report: Report, plots: Path, page: Path) -> str:
    """Return the section of one result file, and draw its plot: one, with the curves of all its
    parts."""
    lines = [f"## {file.stem.replace('_', ' ')}", "", f"[{file.name}](benchmarks/{file.name})"]
    if report.get("note"):
        lines[-1] += f". {report['note']}"
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, part in parts_of(report):
        lines += ["", *([f"### {name}", ""] if name else []), about(part, report), ""]
        lines += [*tables(part)]
        for key, points in curves_of(part):
            curves[f"{words(name)} {key}".strip()] = list(points)
    if curves:
        target = plots / f"{file.stem}.svg"
        draw(curves, target)
        lines += [f"![tokens a second]({target.relative_to(page).as_posix()})", ""]
    return "\n".join(lines)


def tables(part: Report) -> Iterator[str]:
    """Yield the lines of a table for each group of figures."""
    single = {}
    for name, value in part.items():
        if name in _ABOUT:
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from table(name, [("", item) for item in value])
        elif isinstance(value, dict) and not is_spread(value) and _holds_groups(value):
            yield from table(name, list(value.items()))
        elif isinstance(value, dict) and not is_spread(value):
            yield from table("", [(name, value)])
        elif not isinstance(value, dict) or is_spread(value):
            single[name] = value
    if single:
        yield from table("", list((key, {"value": value}) for key, value in single.items()))


def table(name: str, items: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    has_names = any(key for key, _ in items)
    columns = list(dict.fromkeys(key for _, item in items for key in item))
    cells = {
        column: [_cell(item[column]) if column in item else "" for _, item in items]
        for column in columns
    }
    same = [column for column in columns if len(items) > 2 and len(set(cells[column])) == 1]
    varied = [column for column in columns if column not in same] or columns
    yield head(*([name or "figure"] if has_names else []), *map(words, varied))
    for number, (key, _) in enumerate(items):
        values = (cells[column][number] for column in varied)
        yield row(*([words(key)] if has_names else []), *values)
    yield ""
    if same and varied != columns:
        yield f"In every row: {', '.join(f'{words(c)} {cells[c][0]}' for c in same)}."
        yield ""


def _cell(value: Any) -> str:
    cell = shown(value)
    return cell if len(cell) <= _CELL_CHARS else "see the file"


def curves_of(part: Report) -> Iterator[tuple[str, Iterator[tuple[float, float]]]]:
    """Yield name -> (streams or rows, tokens a second) of each list with at least three points."""
    for name, value in part.items():
        rows = value if isinstance(value, list) else []
        rows = [item for item in rows if isinstance(item, dict) and "tokens_per_s" in item]
        along = next((axis for axis in _ALONG if rows and axis in rows[0]), None)
        if along and len({item[along] for item in rows}) > 2 and "side" not in rows[0]:
            yield f"{name}: {along}", ((item[along], item["tokens_per_s"]) for item in rows)


def draw(curves: Mapping[str, Sequence[tuple[float, float]]], target: Path) -> None:
    """Write the curves as SVG: the same bytes for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 2.8))
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=".", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("at once")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_svg(figure, target)


def _holds_groups(value: Mapping[str, Any]) -> bool:
    return all(isinstance(item, dict) and not is_spread(item) for item in value.values())
