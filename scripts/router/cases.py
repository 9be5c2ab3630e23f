"""Compose vignettes, exam questions, letters and abstracts from the findings of diseases.

A file of cases has one disease a line, under a line "# specialty":

    name|nom|finding; finding|signe; signe|test; treatment|examen; traitement

The frames are in case_frames.yaml. Terms of a glossary may stand for findings (`from_terms`). Texts
are drawn with a seed, so the same file gives the same texts.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, open_packed
from scripts.datasets.yaml_file import read_yaml
from scripts.router.augmentation import phrases

FRAMES = Path(__file__).with_name("case_frames.yaml")
STYLES = ("vignette", "exam", "letter", "abstract")
LANGUAGES = ("en", "fr")
NUM_FINDINGS = 4  # that a frame names at most
CHILD_SHARE = 0.15  # of the persons


@dataclass(frozen=True, slots=True)
class Case:
    """A disease in one language."""

    specialty: str
    lang: str
    group: str  # the same in both languages
    name: str
    findings: tuple[str, ...]
    management: tuple[str, ...]


def read_cases(path: Path) -> list[Case]:
    """Read a file of cases: two for each line, English and French. `.gz` and `.bz2` are unpacked.

    Raises:
        DataError: names the line, and what is expected.
    """
    cases: list[Case] = []
    specialty = ""
    with open_packed(path) as file:
        lines = file.read().decode("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("# "):
            specialty = line[2:].strip()
            continue
        parts = line.split("|")
        lists = [tuple(p.strip() for p in part.split(";") if p.strip()) for part in parts]
        if len(parts) != 6 or not specialty or not all(lists):
            raise DataError(
                f"{path.name}, line {number}: expected six parts between | (name, nom, findings, "
                "signes, management, prise en charge) below a line '# specialty'"
            )
        for at, lang in enumerate(LANGUAGES):
            group = f"case {parts[0].lower()}"
            name = parts[at].strip()
            cases.append(Case(specialty, lang, group, name, lists[2 + at], lists[4 + at]))
    return cases


def compose(case: Case, style: str, others: Sequence[str], generator: random.Random) -> str:
    """Return a text of a style (one of STYLES) about the case.

    Args:
        others: management of other diseases, for the wrong choices of an exam question.
    """
    lang = case.lang
    findings = _drawn(case.findings, NUM_FINDINGS, generator)
    management = _drawn(case.management, 2, generator)
    pads = generator.sample(phrases("padding")[lang], 2)
    slots = {
        **{f"s{i}": finding for i, finding in enumerate(findings, start=1)},
        **{f"m{i}": item for i, item in enumerate(management, start=1)},
        **{name: generator.choice(_frames()[name][lang]) for name in ("past", "time", "relative")},
        "who": _person(lang, generator),
        "age": generator.randint(18, 90),
        "name": case.name,
        "Name": case.name[:1].upper() + case.name[1:],
        "d1": generator.choice(others),
        "vitals": generator.choice(_frames()["vitals"][lang]),
        "ask": generator.choice(_frames()["ask"][lang]),
        "pad": pads[0],
        "pad2": generator.choice(("", pads[1])),
        "n": generator.randint(12, 900),
        "n2": generator.randint(2, 24),
        "p": generator.randint(10, 60),
        "p2": generator.randint(5, 50),
    }
    text: str = generator.choice(_frames()[style][lang]).format(**slots)
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def from_cases(
    cases: Sequence[Case], per_style: Mapping[str, int], seed: int
) -> Iterator[tuple[Case, str, str]]:
    """Yield (case, style, text), `per_style` texts of each style for each case, all different."""
    generator = random.Random(seed)
    others = {
        lang: [m for c in cases if c.lang == lang for m in c.management] for lang in LANGUAGES
    }
    for case in cases:
        for style, count in per_style.items():
            texts = {compose(case, style, others[case.lang], generator) for _ in range(count)}
            yield from ((case, style, text) for text in sorted(texts))


def from_terms(
    terms: Mapping[tuple[str, str], Sequence[str]], count: int, seed: int
) -> Iterator[tuple[Case, str, str]]:
    """Yield texts whose findings are `NUM_FINDINGS` terms of one specialty.

    Args:
        terms: (specialty, language) -> its terms.
        count: texts of each specialty and language.
    """
    generator = random.Random(seed)
    for (specialty, lang), known in sorted(terms.items()):
        for number in range(count if len(known) > NUM_FINDINGS + 3 else 0):
            drawn = [_lowered(t) for t in generator.sample(list(known), NUM_FINDINGS + 3)]
            group = f"terms {specialty} {lang} {number}"
            case = Case(specialty, lang, group, drawn[-1], tuple(drawn[:4]), tuple(drawn[4:6]))
            style = generator.choice(STYLES)
            yield case, style, compose(case, style, drawn, generator)


def _lowered(term: str) -> str:
    return term if term[1:2].isupper() else term[:1].lower() + term[1:]


def _drawn(items: Sequence[str], count: int, generator: random.Random) -> list[str]:
    """Return `count` items in random order; a short list repeats."""
    drawn = generator.sample(list(items), min(count, len(items)))
    return [drawn[i % len(drawn)] for i in range(count)]


def _person(lang: str, generator: random.Random) -> str:
    kind = "child" if generator.random() < CHILD_SHARE else "who"
    frame: str = generator.choice(_frames()[kind][lang])
    return frame.format(
        age=generator.randint(18, 90),
        months=generator.randint(2, 23),
        years=generator.randint(2, 16),
    )


@cache
def _frames() -> dict[str, Any]:
    return read_yaml(FRAMES)
