"""What the search and the diagnosis find, as shares with their intervals."""

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from references.ingest.hpo import Hpo
from references.passage import Passage
from references.ranking import Ranked
from references.shelf import Shelf
from references.words import fold, french, name_key, stems
from scripts.datasets.yaml_file import read_yaml
from scripts.evaluation.bootstrap import wilson
from scripts.references_evaluation.vignettes import SIZES, form, vignettes

FOLDER = Path(__file__).parent
# Questions in other words: what the glossary was written with, what it was widened with and the
# weights were tried on (the last in French only), and what was written before and after changes.
SETS = (
    *("paraphrases", "development", "development_2", "development_3"),
    *("held_out", "held_out_after"),
)
LIMIT = 3  # passages that a question gets
SYNONYMS, NAMES = 800, 300  # questions drawn


def questions() -> Mapping[str, Any]:
    """Return all that is asked, by set: rows with what is wanted, topics, signs in other words."""
    return read_yaml(FOLDER / "questions.yaml.bz2")


def share(right: Iterable[bool]) -> dict[str, Any]:
    """Return a share with its number of cases and Wilson's interval of 95 %."""
    values = list(right)
    low, high = wilson(sum(values), len(values))
    return {"value": sum(values) / len(values), "n": len(values), "low": low, "high": high}


class Search:
    """Questions on a shelf, and which passages would be right."""

    def __init__(self, shelf: Shelf, hpo: Hpo) -> None:
        self._shelf = shelf
        self.passages = {p.id: p for p in shelf.passages()}
        self._named: dict[str, set[str]] = {}
        for passage in self.passages.values():
            for name in (passage.title, *passage.synonyms):
                self._named.setdefault(fold(name), set()).add(passage.id)
        self._below: dict[str, set[str]] = {}
        for term in hpo.terms.values():
            for parent in term.parents:
                self._below.setdefault(parent, set()).add(term.id)

    def ask(self, question: str, language: str) -> list[Ranked]:
        return self._shelf.ranked(question, specialty=None, language=language, limit=LIMIT)

    def found_any(self, question: str, language: str) -> bool:
        return bool(self._shelf.search(question, language=language, limit=LIMIT))

    def paraphrases(self, name: str, language: str) -> dict[str, Any]:
        """Return recall@3.

        `strict`: of the wanted passages; `wide`: a term directly below them is right, too;
        `served`: and the search does not say that nothing was found; `plain`: by BM25.
        """
        strict, wide, served, plain = [], [], [], []
        for row in questions()[name]:
            missing = [title for title in row["want"] if fold(title) not in self._named]
            if missing:
                raise ValueError(f"{name}: no passage is called {', '.join(missing)}")
            want = set[str]().union(*(self._named[fold(title)] for title in row["want"]))
            below = set[str]().union(*(self._below.get(id_, set()) for id_ in want))
            got = {r.passage.id for r in self.ask(row[language], language)}
            strict.append(bool(got & want))
            wide.append(bool(got & (want | below)))
            served.append(wide[-1] and self.found_any(row[language], language))
            plain.append(bool(self.plain(row[language], language) & (want | below)))
        columns = {"strict": strict, "wide": wide, "served": served, "plain": plain}
        return {name: share(values) for name, values in columns.items()}

    def synonyms(self, seed: int) -> dict[str, Any]:
        """Return how often the term of a synonym is among the first three."""
        terms = [p for p in self.passages.values() if p.kind == "term" and p.synonyms]
        draw = random.Random(seed)
        right = []
        for passage in draw.sample(terms, SYNONYMS):
            got = self.ask(f"What is {draw.choice(passage.synonyms)}?", "en")
            right.append(any(r.passage.title == passage.title for r in got))
        return share(right)

    def names(self, seed: int) -> dict[str, Any]:
        """Return how often a disease that is named comes first, in one of its records."""
        diseases = [p for p in self.passages.values() if p.kind == "disease"]
        right = []
        for passage in random.Random(seed).sample(diseases, NAMES):
            got = self.ask(f"What are the signs of {passage.title}?", "en")
            right.append(bool(got) and name_key(got[0].passage.title) == name_key(passage.title))
        return share(right)

    def absent(self, rows: str) -> dict[str, Any]:
        """Return how often nothing is found on topics that the shelf does not hold."""
        language, listed = rows.partition("_")[0], questions()["absent"][rows]
        return share(not self.found_any(question, language) for question in listed)

    def plain(self, question: str, language: str = "en") -> set[str]:
        """Return the ids of the first three of a full-text query of the question's words."""
        connection = self._shelf.connection()
        return {
            id_
            for (number,) in full_text(connection, question, language)
            for (id_,) in connection.execute("select id from passages where number = ?", (number,))
        }


def full_text(
    connection: sqlite3.Connection, question: str, language: str = "en"
) -> list[tuple[int]]:
    """Return the first three by BM25 of any of a question's words: the baseline."""
    found = stems(question)
    if language == "fr":
        found += map(french, stems(question, "fr"))
    expression = " OR ".join(f'"{s}"' for s in found) or '"none"'
    query = "select rowid from words where words match ? order by bm25(words, 8, 5, 1) limit 3"
    return connection.execute(query, (expression,)).fetchall()


def diagnoses(
    shelf: Shelf, hpo: Hpo, ways: Mapping[str, Mapping[str, Sequence[str]]], count: int, seed: int
) -> dict[str, Any]:
    """Return, by way of speaking and number of signs, how often the first five hold the disease."""
    found: dict[str, Any] = {}
    for way, phrases in ways.items():
        found[way] = {}
        everything = []
        for size in SIZES:
            drawn = vignettes(hpo, phrases, size, count, seed=seed)
            right = [_among_first(shelf, hpo, v.disease, v.signs) for v in drawn]
            found[way][str(size)] = share(right)
            everything += right
        found[way]["all"] = share(everything)
    return found


def _among_first(shelf: Shelf, hpo: Hpo, disease: str, signs: Sequence[str]) -> bool:
    names = hpo.diseases
    wanted = form(names[disease].name)
    matches = shelf.diagnose(signs, limit=5)
    return any(m.disease == disease or form(names[m.disease].name) == wanted for m in matches)


def quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.quantile(times_ms, (0.5, 0.95))
    return {"p50": float(p50), "p95": float(p95), "n": len(times_ms)}


def alternated(
    questions: Sequence[str], ways: Mapping[str, Callable[[str], object]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Time ways to answer each question in turn, so that other work slows all alike.

    Returns, by way, milliseconds by the clock (`wall`) and of the processor (`cpu`).
    """
    times = {name: {"wall": list[float](), "cpu": list[float]()} for name in ways}
    for question in questions:
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.thread_time()
            way(question)
            times[name]["cpu"].append(1000 * (time.thread_time() - cpu))
            times[name]["wall"].append(1000 * (time.perf_counter() - wall))
    return {
        name: {clock: quantiles(values) for clock, values in kept.items()}
        for name, kept in times.items()
    }


def noisy(passages: Sequence[Passage], count: int, seed: int) -> Iterable[Passage]:
    """Yield `count` passages: the given ones over and over, with words exchanged and ids anew."""
    draw = random.Random(seed)
    vocabulary = [word for p in passages[::50] for word in p.text.split()]
    for number in range(count):
        passage = passages[number % len(passages)]
        if number >= len(passages):
            text = passage.text[:600].split()
            for _ in range(max(1, len(text) // 10)):
                text[draw.randrange(len(text))] = draw.choice(vocabulary)
            passage = replace(
                passage,
                id=f"{passage.id}/{number}",
                title=f"{passage.title} {draw.choice(vocabulary)}",
                text=" ".join(text),
            )
        yield passage
