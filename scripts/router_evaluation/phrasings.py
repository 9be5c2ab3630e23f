"""Score conversations and phrasings that we wrote (conversations.yaml, phrasings.yaml).

Each has two halves: the rules were made with the half "tuning" in view, "held_out" is the measure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.classifier import Classifier
from router.policy import Reason
from router.training.examples import OUT_OF_SCOPE
from scripts.datasets.yaml_file import read_yaml
from scripts.evaluation.bootstrap import wilson
from scripts.pages import markdown
from scripts.router_evaluation.scoring import route_of

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "phrasings.md.j2"
HALVES = ("tuning", "held_out")
SECTIONS = ("conversations", "phrasings")  # of the figures
UNSUPPORTED = "unsupported"
LANGUAGES = ("en", "fr")
NUM_RESAMPLES = 10_000
Figures = Mapping[str, Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Turn:
    """A user turn with those before it, and what should happen.

    Attributes:
        kind: "opening", "keep", "switch" or "out of scope".
        expected: the specialty, or `out_of_scope`.
    """

    conversation: int
    half: str
    language: str
    kind: str
    turns: tuple[str, ...]
    expected: str


@dataclass(frozen=True, slots=True)
class Row:
    """How many of `n` went right, with a 95 % interval."""

    name: str
    half: str
    n: int
    right: int
    low: float
    high: float


def conversation_turns() -> Iterator[Turn]:
    """Yield every turn of conversations.yaml, in order."""
    entries: Any = read_yaml(FOLDER / "conversations.yaml")  # a list
    for number, entry in enumerate(entries):
        half, language, current = entry["half"], entry["lang"], entry["specialty"]
        said = [entry["opening"]]
        yield Turn(number, half, language, "opening", tuple(said), current)
        for turn in entry["turns"]:
            target = current if isinstance(turn, str) else turn["to"]
            said.append(turn if isinstance(turn, str) else turn["say"])
            kind = "keep" if isinstance(turn, str) else "switch"
            if target == OUT_OF_SCOPE:
                kind = "out of scope"
            else:
                current = target
            yield Turn(number, half, language, kind, tuple(said), target)


def outcomes(classifier: Classifier, conversations: Sequence[Sequence[str]]) -> list[str]:
    """Return who answers the last turn of each: a specialty, or why none does."""
    found = []
    for classified in classifier.classify(conversations):
        route = route_of(classified, classifier)
        unread = route.reason is Reason.LANGUAGE_NOT_SUPPORTED
        found.append(UNSUPPORTED if unread else route.specialty or str(route.reason))
    return found


def measure(model: Path) -> dict[str, Any]:
    """Return the figures of an artefact on both files, as JSON values."""
    classifier = Classifier.load(model)
    return {
        "version": classifier.version,
        "conversations": [asdict(row) for row in conversation_rows(classifier)],
        "phrasings": [asdict(row) for row in phrasing_rows(classifier)],
    }


def conversation_rows(classifier: Classifier) -> Iterator[Row]:
    """Yield the shares of right turns by kind; conversations are resampled, not turns.

    The rows "after a right turn" leave out a turn whose conversation had gone wrong before.
    """
    turns = list(conversation_turns())
    hits = np.array(
        [
            got == turn.expected
            for got, turn in zip(outcomes(classifier, [t.turns for t in turns]), turns, strict=True)
        ]
    )
    for half in HALVES:
        inside = np.array([turn.half == half for turn in turns])
        for kind in ("opening", "keep", "switch", "out of scope"):
            chosen = inside & np.array([turn.kind == kind for turn in turns])
            yield _clustered(kind, half, turns, hits, chosen)
            if kind == "keep":
                before = np.array([False, *hits[:-1].tolist()])
                yield _clustered("keep, after a right turn", half, turns, hits, chosen & before)
                for language in LANGUAGES:
                    spoken = np.array([turn.language == language for turn in turns])
                    name = f"keep, opened in {'English' if language == 'en' else 'French'}"
                    yield _clustered(name, half, turns, hits, chosen & spoken)


def _clustered(name: str, half: str, turns: Sequence[Turn], hits: Bools, chosen: Bools) -> Row:
    numbers = np.array([turn.conversation for turn in turns])[chosen]
    there = np.unique(numbers)
    right = np.array([hits[chosen][numbers == number].sum() for number in there])
    sizes = np.array([(numbers == number).sum() for number in there])
    drawn = np.random.default_rng(0).integers(len(there), size=(NUM_RESAMPLES, len(there)))
    shares = right[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Row(name, half, int(sizes.sum()), int(right.sum()), float(low), float(high))


def phrasing_rows(classifier: Classifier) -> Iterator[Row]:
    """Yield the share of right phrasings of each kind, with Wilson's interval (1927)."""
    for kind, halves in read_yaml(FOLDER / "phrasings.yaml").items():
        for half in HALVES:
            pairs = [(name, text) for name, texts in halves[half].items() for text in texts]
            found = outcomes(classifier, [[text] for _, text in pairs])
            right = sum(
                got == name or (name == OUT_OF_SCOPE and got not in classifier.specialties)
                for got, (name, _) in zip(found, pairs, strict=True)
            )
            name, interval = kind.replace("_", " "), wilson(right, len(pairs))
            yield Row(name, half, len(pairs), right, *interval)


def render(figures: Figures, before: Figures | None, made_by: str) -> str:
    """Return the report in Markdown, with the figures of a router before beside them."""
    rows = {
        section: [
            (row, _same(row, before[section]) if before else None) for row in figures[section]
        ]
        for section in SECTIONS
    }
    return markdown.render(
        TEMPLATE, made_by=made_by, version=figures["version"], rows=rows, told=told
    )


def _same(row: Figures, others: Sequence[Figures]) -> Figures | None:
    keys = ("name", "half")
    return next((other for other in others if all(other[k] == row[k] for k in keys)), None)


def told(row: Figures | None) -> str:
    """Return a row's share and interval."""
    if row is None:
        return "n/a"
    share = row["right"] / row["n"]
    return f"{share:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['right']} of {row['n']})"
