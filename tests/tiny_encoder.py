"""A random one-layer encoder with the pieces of small question sets, and an artefact on top.

Its states are hardly more than random word vectors, which is enough to tell the small questions
apart, and it runs through the same ONNX file and operators as the shipped one. As that one does, it
reads prepared texts.
"""

from pathlib import Path

import torch

from router.encoder import OnnxEncoder
from router.preparation.prepare import prepared_text
from router.training.examples import LabelledText, Recipe
from router.training.train import train
from router.training.trained import Trained, save
from scripts.router.encoder_export import export
from scripts.router.encoder_init import SPECIAL, tokenizer_of
from scripts.router.encoder_model import Encoder
from tests.router.added_questions import ADDED, added_questions
from tests.router.small_questions import small_questions

HIDDEN = 64
SEED = 12  # with it no added label of the tests is near what the others may lose
LETTERS = "abcdefghijklmnopqrstuvwxyzàâçéèêëîïôöùûü0123456789?!.,:;'’-()«»/"


def make_tiny_encoder(folder: Path) -> Path:
    """encoder.onnx and tokenizer.json in `folder`; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [q.text for q in small_questions(0)]
    texts += [text for label in ADDED for text in added_questions(label)]
    words = sorted({word for text in texts for word in prepared_text(text).lower().split()})
    pieces = [*SPECIAL, "▁", *LETTERS, *(f"▁{word}" for word in words)]
    scores = [*[0.0] * len(SPECIAL), -8.0, *[-9.0] * len(LETTERS), *[-5.0] * len(words)]
    tokenizer_of(pieces, scores).save(str(folder / "tokenizer.json"))
    torch.manual_seed(SEED)
    encoder = Encoder(len(pieces), 2, hidden=HIDDEN, num_heads=4, num_layers=1).eval()
    encoder.set_quantised(True)
    export(encoder, folder / "encoder.onnx")
    return folder


def tiny_trained(
    encoder_dir: Path,
    *,
    encoder_set: list[LabelledText] | None = None,
    head_set: list[LabelledText] | None = None,
    recipe: Recipe | None = None,
) -> Trained:
    """Its head is hardly regularised: so few questions of so few words need no more."""
    return train(
        encoder_set or small_questions(0),
        head_set or small_questions(1),
        small_questions(2),
        encoder=OnnxEncoder(encoder_dir, "built-in"),
        encoder_dir=encoder_dir,
        recipe=recipe or Recipe(num_components=HIDDEN, head_c=1.0),
    )


def tiny_artefact(folder: Path) -> Path:
    """A trained artefact over the labels of specialties.yaml."""
    encoder_dir = make_tiny_encoder(folder / "encoder")
    artefact = folder / "model"
    save(tiny_trained(encoder_dir), artefact, date="2026-01-02", provenance={"command": "none"})
    return artefact
