"""English, French, another language, or too little to tell."""

from pathlib import Path

import pytest

from router.classifier import Classifier

MODEL = Path(__file__).resolve().parents[2] / "router" / "model"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(MODEL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eczema treatment", "en"),
        ("What is the treatment for psoriasis?", "en"),
        ("CHEST PAIN WHEN CLIMBING STAIRS", "en"),
        ("traitement eczéma", "fr"),
        ("traitement eczema", "fr"),
        ("douleur thoracique", "fr"),
        ("DOULEUR THORACIQUE", "fr"),
        ("j ai mal a la tete depuis trois jours", "fr"),
        ("Was hilft gegen Kopfschmerzen und Schwindel?", "de"),
        ("¿Cuál es el tratamiento del eczema?", "es"),
        ("Qual è il trattamento dell'eczema?", "it"),
        ("Qual é o tratamento do eczema?", "pt"),
        ("Wat is de behandeling van eczeem?", "nl"),
        ("ما هو علاج الأكزيما؟", "und"),
        ("湿疹怎么治疗", "und"),
        ("Как лечить экзему?", "und"),
        ("a", "und"),
        ("a a a a", "und"),
        ("", "und"),
        ("🤒 !!", "und"),
        ("\ud800", "und"),
    ],
)
def test_language(classifier: Classifier, text: str, expected: str) -> None:
    assert classifier.language(text) == expected
