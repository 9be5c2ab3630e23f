"""What eight changes cost in accuracy that leave a question's meaning as it is.

Accents, punctuation and slips change as in training (scripts/router/augmentation.py), at other
places; the courtesies and the page around a question are sentences that training does not have
(phrases.yaml).
"""

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from router.classifier import Classifier
from scripts.datasets.yaml_file import read_yaml
from scripts.router.augmentation import with_typos, without_accents, without_punctuation
from scripts.router_evaluation import metrics
from scripts.router_evaluation.figures import Perturbed
from scripts.router_evaluation.groups import LANGUAGES
from scripts.router_evaluation.scoring import score
from scripts.router_evaluation.sets import Sets

PHRASES = Path(__file__).with_name("phrases.yaml")
NUM_PERTURBED = 300  # validation questions of each language
PAGE_CHARS = 2000  # of neutral sentences around a question
Perturbation = Callable[[str, str, random.Random], str]  # (text, language, generator)


def phrases(kind: str) -> Mapping[str, Sequence[Any]]:
    """Return phrases of a kind by language: "polite" or "neutral"."""
    found: Mapping[str, Sequence[Any]] = read_yaml(PHRASES)[kind]
    return found


def polite(text: str, lang: str, generator: random.Random) -> str:
    """Put the text between the first and last words of a polite chat."""
    before, after = generator.choice(phrases("polite")[_written(lang)])
    return f"{before} {text} {after}"


def within_a_page(text: str, lang: str, generator: random.Random) -> str:
    """Put the text somewhere among about PAGE_CHARS of neutral sentences."""
    sentences = list(phrases("neutral")[_written(lang)])
    generator.shuffle(sentences)
    kept: list[str] = []
    while sum(len(sentence) + 1 for sentence in kept) < PAGE_CHARS and sentences:
        kept.append(sentences.pop())
    kept.insert(generator.randint(0, len(kept)), text)
    return " ".join(kept)


def as_cp1252(text: str) -> str:
    """Read the text's UTF-8 as Windows-1252; bytes that it leaves undefined pass as C1 controls."""
    # Latin-1 has the C1 controls where Windows-1252 is undefined.
    found = (bytes([byte]) for byte in text.encode("utf-8"))
    return "".join(b.decode("cp1252", "ignore") or b.decode("latin-1") for b in found)


def decomposed(text: str) -> str:
    """Write each accent as a separate character (NFD), as some systems do."""
    return unicodedata.normalize("NFD", text)


def _written(lang: str) -> str:
    """Return a language that has phrases."""
    return lang if lang in phrases("neutral") else "en"


PERTURBATIONS: dict[str, Perturbation] = {
    "no accents": lambda text, lang, generator: without_accents(text),
    "upper case": lambda text, lang, generator: text.upper(),
    "typos (one slip in 25 letters)": lambda text, lang, generator: with_typos(text, generator),
    "punctuation removed": lambda text, lang, generator: without_punctuation(text),
    "wrapped in polite chat": polite,
    "within a page of text": within_a_page,
    "UTF-8 read as cp1252": lambda text, lang, generator: as_cp1252(text),
    "decomposed accents": lambda text, lang, generator: decomposed(text),
}


def perturbed(text: str, lang: str, id_: str, name: str, seed: int) -> str:
    """Apply one perturbation: the same id and seed give the same text."""
    return PERTURBATIONS[name](text, lang, random.Random(f"{seed}/{name}/{id_}"))


def perturbed_figures(classifier: Classifier, sets: Sets, seed: int) -> list[Perturbed]:
    """Score validation and test, each by language, under every perturbation."""
    generator = random.Random(seed)
    found = []
    for name, scored in (("validation", sets.validation), ("test", sets.test)):
        for lang, title in LANGUAGES.items():
            questions = list(scored.inside.where(lang=lang).questions)
            if name == "validation" and len(questions) > NUM_PERTURBED:
                questions = generator.sample(questions, k=NUM_PERTURBED)
            if not questions:
                continue
            group = f"{name}, {title}"
            before = score(classifier, questions, group)
            for change in PERTURBATIONS:
                texts = [perturbed(q.text, lang, q.id, change, seed) for q in questions]
                after = score(classifier, questions, f"{group}, {change}", texts=texts)
                changed = sum(text != q.text for text, q in zip(texts, questions, strict=True))
                accuracy = metrics.share(after.correct, seed=seed)
                lost = metrics.difference(before.correct, after.correct, seed=seed)
                found.append(Perturbed(group, change, changed, accuracy, lost))
    return found
