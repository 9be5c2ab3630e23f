"""What each perturbation costs in accuracy."""

import random

from router.classifier import Classifier
from scripts.router_evaluation import metrics
from scripts.router_evaluation.figures import Perturbed
from scripts.router_evaluation.groups import LANGUAGES
from scripts.router_evaluation.perturbations import PERTURBATIONS, perturbed
from scripts.router_evaluation.scoring import score
from scripts.router_evaluation.sets import Sets

NUM_PERTURBED = 300  # validation questions of each language


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
