"""Read result files of benchmarks: their parts, where each was measured, values as cells, plots."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]

# What matplotlib writes and nobody sees.
_UNSEEN = (
    (re.compile(r"^<\?xml.*?>\n<!DOCTYPE.*?>\n", re.DOTALL), ""),
    (re.compile(r"<metadata>.*?</metadata>\n", re.DOTALL), ""),
    (re.compile(r"<!--.*?-->\n?"), ""),
    (re.compile(r"^ +| +$", re.MULTILINE), ""),
    (re.compile(r'<g id="[^"]*"'), "<g"),
    (re.compile(r'(<use .*) style="stroke: #000000; stroke-width: 0.8"'), r"\1"),  # as its path's
    (re.compile(r'; font-family: [^;"]*'), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile("</style>"), "text{font-family: 'DejaVu Sans', sans-serif}</style>"),
    (re.compile(r"(\.\d\d)\d+"), r"\1"),
)


def parts_of(report: Report) -> Iterator[tuple[str, Report]]:
    """Yield the reports in a file by name: itself (""), or those that it puts together."""
    inside = {k: v for k, v in report.items() if isinstance(v, dict) and "commit" in v}
    if "command" in report or not inside:
        yield "", report
    yield from inside.items()


def about(part: Report, whole: Report) -> str:
    device = part.get("device", whole.get("device", "cpu"))
    where = f"{part.get('processor', 'processor not noted')}, {part.get('num_cores', '?')} cores"
    facts = [where if device == "cpu" else f"{device}; {where}", f"commit {part['commit']}"]
    loads = part.get("load_average")
    if loads:
        facts.append(f"load average {loads['before'][0]:.1f} before, {loads['after'][0]:.1f} after")
    if "command" in part:
        facts.append(f"`{part['command']}`")
    return ". ".join(facts) + "."


def shown(value: Any) -> str:
    """Return a value as a cell."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, dict) and is_spread(value):
        tail = "; ".join(shown(value[key]) for key in value if key not in ("n", "median"))
        return f"{shown(value['median'])} ({tail}), n={value['n']}"
    if isinstance(value, dict):
        return ", ".join(f"{words(key)} {shown(item)}" for key, item in value.items())
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        least, most = min(value), max(value)
        return (
            f"{shown(statistics.median(value))} ({shown(least)} to {shown(most)}), n={len(value)}"
        )
    if isinstance(value, list) and len(value) > 2 and isinstance(value[0], list):
        return f"{json.dumps(value[0])} to {json.dumps(value[-1])}, n={len(value)}"
    text = json.dumps(value) if isinstance(value, list) else str(value)
    return text.replace("\n", " ")


def is_spread(value: Mapping[str, Any]) -> bool:
    return "n" in value and "median" in value


def words(name: str) -> str:
    return name.replace("_", " ")


def save_svg(figure: Any, target: Path) -> None:
    """Write a figure of matplotlib, and close it: the same bytes for the same figure."""
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "polyclinic", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    text = target.read_text(encoding="utf-8")
    for pattern, short in _UNSEEN:
        text = pattern.sub(short, text)
    target.write_text(text, encoding="utf-8")
