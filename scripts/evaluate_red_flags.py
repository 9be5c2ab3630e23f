"""Count how many written emergencies the red flags find, and how many other questions they flag.

    python -m scripts.evaluate_red_flags
    python -m scripts.evaluate_red_flags --show

Reads router/data/red_flags.yaml.bz2 and writes a table in Markdown: recall and false alarms with
Wilson's 95 % intervals, by set and kind of question, and the time that one question takes. The last
line of stdout is one JSON object, without any text.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from router.urgency.red_flags import RedFlags, load_red_flags
from scripts.arguments import CommandParser
from scripts.datasets.yaml_file import read_yaml
from scripts.evaluation.bootstrap import wilson
from scripts.pages.markdown import head, row

DATA = Path(__file__).resolve().parent.parent / "router" / "data"
QUESTIONS = DATA / "red_flags.yaml.bz2"


@dataclass(frozen=True, slots=True)
class Case:
    """A question of the set `group` (first, second, ...)."""

    group: str
    is_urgent: bool
    language: str
    has_negation: bool
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("evaluate_red_flags", __doc__)
    parser.add_argument("--show", action="store_true", help="print what was judged wrongly")
    return parser.run(argv, tuple, _evaluate)


def _evaluate(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    rules = load_red_flags()
    questions = list(cases(QUESTIONS))
    verdicts = {case: bool(rules.find([case.text], case.language).flags) for case in questions}
    for line in table(verdicts):
        print(line)
    if args.show:
        for case, is_flagged in verdicts.items():
            if is_flagged != case.is_urgent:
                found = rules.find([case.text], case.language).flags
                print(f"{case.group}, urgent {case.is_urgent}, found {found}: {case.text}")
    milliseconds = _times_ms(rules, [case.text for case in questions])
    print(f"\nMilliseconds of one question on this machine: {milliseconds}")
    return {**figures(verdicts), "milliseconds": milliseconds}


def cases(path: Path) -> Iterator[Case]:
    """Yield the written questions."""
    for group, labels in read_yaml(path).items():
        for label, kinds in labels.items():
            for kind, texts in kinds.items():
                language, _, negation = kind.partition("_")
                for text in texts:
                    yield Case(group, label == "urgent", language, bool(negation), text)


def table(verdicts: Mapping[Case, bool]) -> Iterator[str]:
    """Yield the lines of a table: set by set, and the kinds of questions of all sets."""
    kinds: dict[str, Callable[[Case], bool]] = {
        **{
            f"set {name}": partial(_is_of, name)
            for name in dict.fromkeys(c.group for c in verdicts)
        },
        "all, English": lambda case: case.language == "en",
        "all, French": lambda case: case.language == "fr",
        "all, with a negation": lambda case: case.has_negation,
        "all": lambda case: True,
    }
    yield head("questions", "urgent: found", "not urgent: flagged")
    for name, belongs in kinds.items():
        chosen = {case: verdict for case, verdict in verdicts.items() if belongs(case)}
        yield row(name, _share(chosen, True), _share(chosen, False))


def _is_of(group: str, case: Case) -> bool:
    return case.group == group


def figures(verdicts: Mapping[Case, bool]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for group in {case.group: None for case in verdicts}:
        for is_urgent, name in ((True, "urgent"), (False, "not_urgent")):
            flagged = [
                v for c, v in verdicts.items() if c.group == group and c.is_urgent == is_urgent
            ]
            counts[f"{group}_{name}"] = {"n": len(flagged), "flagged": sum(flagged)}
    return counts


def _share(verdicts: Mapping[Case, bool], is_urgent: bool) -> str:
    flagged = [verdict for case, verdict in verdicts.items() if case.is_urgent == is_urgent]
    low, high = wilson(sum(flagged), len(flagged))
    share = sum(flagged) / len(flagged)
    return f"{sum(flagged)} of {len(flagged)}: {share:.1%} ({low:.1%} to {high:.1%})"


def _times_ms(rules: RedFlags, texts: Sequence[str]) -> dict[str, float]:
    """Return percentiles of the processor's time for one text."""
    taken = []
    for text in texts:
        started = time.thread_time()
        rules.find([text], "en")
        taken.append((time.thread_time() - started) * 1000)
    taken.sort()
    return {f"p{p}": round(taken[len(taken) * p // 100], 2) for p in (50, 95, 99)}


if __name__ == "__main__":
    raise SystemExit(main())
