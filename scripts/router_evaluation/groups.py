"""The named groups of questions that the report has rows for."""

import numpy as np

from scripts.datasets.attributions import origin
from scripts.router_evaluation.scoring import Scored

EXAM = "CasiMedicos"  # exam vignettes: a group apart
LENGTHS = (5, 15, 40, 100)  # words; the last bucket is open
LANGUAGES = {"en": "English", "fr": "French"}
OURS = {"far": "far", "near_miss": "near misses"}  # kinds of our own out-of-scope questions
Groups = list[tuple[str, Scored]]


def validation_groups(validation: Scored) -> Groups:
    """Return the in-scope questions in English, in French, and the exam vignettes apart."""
    exam = validation.inside.filter(lambda question: origin(question.source) == EXAM)
    rest = validation.inside.filter(lambda question: origin(question.source) != EXAM)
    return _not_empty(
        [
            ("English", rest.where(lang="en")),
            ("French (HPO)", rest.where(lang="fr")),
            ("exam vignettes, English", exam.where(lang="en")),
            ("exam vignettes, French", exam.where(lang="fr")),
        ]
    )


def written_groups(scored: Scored) -> Groups:
    """Return the in-scope plain questions and vignettes, each by language."""
    return _not_empty(
        [
            (f"{kind}, {name}", scored.inside.where(kind=kind, lang=lang))
            for kind in ("plain", "vignette")
            for lang, name in LANGUAGES.items()
        ]
    )


def by_source(scored: Scored) -> Groups:
    inside = scored.inside
    sources = sorted({question.source for question in inside.questions})
    return [(source, inside.where(source=source)) for source in sources]


def by_length(scored: Scored) -> Groups:
    """Return the in-scope questions in buckets of words (runs without a blank)."""
    inside, found = scored.inside, []
    counts = np.array([len(question.text.split()) for question in inside.questions])
    for low, high in zip((0, *LENGTHS), (*LENGTHS, np.inf), strict=True):
        name = f"{low + 1}-{high} words" if high in LENGTHS else f"over {low} words"
        found.append((name, inside.pick((low < counts) & (counts <= high))))
    return _not_empty(found)


def out_of_scope_groups(name: str, scored: Scored) -> Groups:
    """Return the out-of-scope questions by kind: ours far and near misses, others by data set."""
    outside = scored.outside
    names = [OURS.get(q.kind, origin(q.source)) for q in outside.questions]
    kinds = np.array(names, dtype=np.str_)
    return [
        (f"{kind} ({name})", outside.pick(kinds == kind)) for kind in sorted(set(kinds.tolist()))
    ]


def by_language(groups: Groups) -> Groups:
    """Return each group, followed by its English and French questions where it has both."""
    found = []
    for name, scored in groups:
        found.append((name, scored))
        parts = [(f"{name}, {lang}", scored.where(lang=lang)) for lang in LANGUAGES]
        if all(part.questions for _, part in parts):
            found += parts
    return found


def _not_empty(groups: Groups) -> Groups:
    return [(name, scored) for name, scored in groups if scored.questions]
