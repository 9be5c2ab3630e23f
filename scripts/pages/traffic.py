"""Write docs/benchmarks.md's sections on traffic and on repeated runs, from result files alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.pages.markdown import head, row
from scripts.pages.results import Report, about, parts_of, save_svg, words

Reports = Mapping[Path, Report]
_OURS, _BASE = "polyclinic", "base"
_AGAIN = "_again"  # at the end of the name of a second run's file
_PLOT = "latency_by_rate.svg"


def adapters(reports: Reports, plots: Path, page: Path) -> str:
    """Return the section on runs that differ in how many adapters are asked for."""
    names = ("adapters", "asked for", "tokens a second", *_TIMES)
    lines = []
    for file, whole, part in _parts(reports, "load"):
        runs = [run for run in part["runs"] if "popularity" in run]
        if len({run["adapters"] for run in runs}) > 1:
            rows = [row(run["adapters"], _asked(run), _rate_of(run), *_times(run)) for run in runs]
            lines += [_measured(file, whole, part), "", head(*names), *rows, ""]
    return _section("How many adapters are asked for", lines)


def rates(reports: Reports, plots: Path, page: Path) -> str:
    """Return the section on requests at random times, and draw its plot."""
    names = ("adapters", "requests a second", "answers a second", "failed", *_TIMES, "holds")
    lines: list[str] = []
    curves: dict[str, list[Report]] = {}
    for file, whole, part in [*_parts(reports, "load"), *_parts(reports, "serve")]:
        if not part.get("rates"):
            continue
        rows = [
            row(
                _whom(one, part),
                f"{one['rate_per_s']:g}",
                one.get("answers_per_s", 0),
                f"{one['failed']} of {one['requests']}",
                *_times(one),
                "yes" if one["holds"] else "**no**",
            )
            for one in part["rates"]
        ]
        lines += [_measured(file, whole, part), ""]
        lines += [*(f"- {_whom(one, part)}: {_limit(one)}" for one in _limits(part)), ""]
        lines += [head(*names), *rows, ""]
        for one in part["rates"]:
            if "time_per_token_ms" in one:
                curves.setdefault(f"{_side(part)}, {_whom(one, part)}", []).append(one)
    if curves:
        _draw(curves, plots / _PLOT)
        link = (plots / _PLOT).relative_to(page).as_posix()
        lines += [f"![seconds to the first token, and milliseconds a token, by rate]({link})", ""]
    return _section("Requests at random times", lines)


def continuous_batching(reports: Reports, plots: Path, page: Path) -> str:
    """Return the section on transformers' own batching beside ours."""
    lines = []
    for file, whole, part in _parts(reports, "engine"):
        if "attention" not in part:
            continue
        rows = [
            row(words(name), _rate_of(side), side.get("first_token_p50_s", ""))
            for name, side in part["sides"].items()
        ]
        attention = ", ".join(sorted({str(name) for name in part["attention"].values()}))
        weights = f"its weights are {part['dtype']}, ours {part['weights'].partition(':')[0]}"
        about_it = f"Its attention there is {attention}; {weights}."
        lines += [_measured(file, whole, part), "", about_it, ""]
        lines += [head("side", "tokens a second", "first token, median (s)"), *rows, ""]
        ratios = {name: ratio for name, ratio in part["ratios"].items() if "transformers" in name}
        lines += [head(*ratios), row(*ratios.values()), ""]
    return _section("transformers' continuous batching", lines)


def repeats(reports: Reports, plots: Path, page: Path) -> str:
    """Return the section on files whose run was made twice: ours over each peer, and our mixed
    adapters over our base alone, in both."""
    names = (
        "peer, adapters, streams",
        "first run",
        "ratio [95 % interval]",
        "second run",
        "ratio [95 % interval]",
        "second / first",
    )
    lines = []
    for file, first in reports.items():
        second = file.with_stem(file.stem + _AGAIN)
        if second not in reports:
            continue
        runs = [_ratios(first), _ratios(reports[second])]
        rows, differences = [], []
        for peer in sorted(runs[0].keys() | runs[1].keys()):
            before, again = (run.get(peer, _NOT_MEASURED) for run in runs)
            change = again.ratio / before.ratio
            differences.append(abs(change - 1))
            cells = before.speeds, before.shown, again.speeds, again.shown
            rows.append(row(peer, *cells, f"`{change:.3f}`" if not math.isnan(change) else ""))
        if rows:
            for when, path in (("First", file), ("Second", second)):
                lines += [f"{when}: {about(reports[path], {})} {_link(path, 'File')}.", ""]
            lines += [head(*names), *rows, ""]
            known = [each for each in differences if not math.isnan(each)]
            which = "Every ratio" if known == differences else "Every ratio that both have"
            lines += [f"{which} agrees within {max(known):.1%}." if known else "", ""]
    return _section("The same run twice", lines)


BLOCKS = {
    "adapters": adapters,
    "rates": rates,
    "continuous batching": continuous_batching,
    "repeats": repeats,
}
"""What is between `<!-- name -->` and `<!-- /name -->`: empty while no file has such figures."""

_TIMES = (
    "first token, median and p95 (s)",
    "each further token, median and p95 (ms)",
    "longest wait in an answer, p95 (s)",
)


def _parts(reports: Reports, what: str) -> Iterator[tuple[Path, Report, Report]]:
    """Yield file, whole report and part of each benchmark of this name."""
    for file, whole in reports.items():
        for _, part in parts_of(whole):
            if part.get("what") == what:
                yield file, whole, part


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]).rstrip() if lines else ""


def _link(file: Path, text: str) -> str:
    return f"[{text}](benchmarks/{file.name})"


def _side(part: Report) -> str:
    where = "over HTTP" if part["what"] == "serve" else "in process"
    return f"{part['settings']['model']}, {where}"


def _measured(file: Path, whole: Report, part: Report) -> str:
    return f"**{_side(part)}**: {about(part, whole)} {_link(file, 'File')}."


def _asked(run: Report) -> str:
    return "itself" if run["adapters"] == 1 else str(run["popularity"])


def _whom(one: Report, part: Report) -> str:
    """Return how many adapters are asked for, and how popular they are."""
    about = part["settings"] | one
    return f"{about['adapters']} {about['popularity']}"


def _rate_of(run: Report) -> str:
    samples = run["tokens_per_s_samples"]
    return f"{run['tokens_per_s']:,.0f} ({min(samples):,.0f} to {max(samples):,.0f})"


def _times(run: Report) -> Iterator[str]:
    for name in ("first_token_s", "time_per_token_ms"):
        found = run.get(name)
        yield f"{found['median']:.4g}, {found['p95']:.4g}" if found else ""
    yield f"{run['longest_gap_s']['p95']:.4g}" if "longest_gap_s" in run else ""


def _limits(part: Report) -> list[Report]:
    return part["limits"] if isinstance(part["limits"], list) else [part["limits"]]


def _limit(found: Report) -> str:
    limit, held = found["first_token_p95_limit_s"], found["holds_up_to_per_s"]
    broken = found["breaks_at_per_s"]
    until = f"up to {held:g} requests a second" if held else "at none of these rates"
    then = f", not at {broken:g}" if broken and held else ""
    return f"no request fails and the p95 of the first token is at most {limit:g} s {until}{then}."


class _Ratio(NamedTuple):
    """Of ours over a peer; not a number if it was not measured."""

    speeds: str
    ratio: float
    shown: str


_NOT_MEASURED = _Ratio("", math.nan, "not measured")


def _ratios(report: Report) -> dict[str, _Ratio]:
    """Return "peer, adapters, streams" -> ours over the peer; one by one is compared with our mixed
    adapters, as our base alone is.

    A report of before ratios were measured has the speeds' instead, without an interval.
    """
    summary = report.get("summary", {})
    measured: Report = report.get("ratios", {})
    found = {name: _NOT_MEASURED for name, each in measured.items() if "ratio" not in each}
    for name, theirs in summary.items():
        peer, kind, streams = name.split(", ")
        against = _BASE if kind == _BASE and peer != _OURS else "mixed"
        ours = summary.get(f"{_OURS}, {against}, {streams}")
        if ours is None or (ours is theirs or (peer == _OURS and name not in measured)):
            continue
        both = f"{ours['tokens_per_s']:g} and {theirs['tokens_per_s']:g}"
        if name not in measured:
            ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
            found[name] = _Ratio(both, ratio, f"{ratio:.2f}")
        elif "ratio" in measured[name]:
            ratio, low, high = (measured[name][key] for key in ("ratio", "low", "high"))
            found[name] = _Ratio(both, ratio, f"{ratio:.3g} [{low:.3g}, {high:.3g}]")
    return found


def _draw(curves: Mapping[str, Sequence[Report]], target: Path) -> None:
    """Draw the first token's p95, and the time of each further token, over the rate."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for name, found in curves.items():
        along = [one["rate_per_s"] for one in found]
        for axes, of in zip(panels, ("first_token_s", "time_per_token_ms"), strict=True):
            axes.plot(along, [one[of]["p95"] for one in found], marker=".", label=name)
    panels[0].set(xlabel="requests a second", ylabel="first token, p95 (s)", yscale="log")
    panels[1].set(xlabel="requests a second", ylabel="further token, p95 (ms)", ylim=(0, None))
    panels[0].minorticks_off()
    panels[1].legend(frameon=False, fontsize="small")
    save_svg(figure, target)
