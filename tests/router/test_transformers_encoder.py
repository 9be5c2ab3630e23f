"""Any Hugging Face encoder: a random BERT of one layer, trained on, served, and refused."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from router.artefact import ArtefactError, load_artefact
from router.classifier import Classifier
from router.transformers_encoder import TransformersEncoder
from scripts.train_router import main
from tests.router.small_questions import OUT_OF_SCOPE, small_questions
from tests.router_data_folder import make_data_folder

MAX_POSITIONS = 40


def make_tiny_bert(folder: Path, *, hidden: int = 32, seed: int = 0) -> Path:
    words = sorted({word for q in small_questions(0) for word in q.text.lower().split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *(f"##{c}" for c in "aeiou"), *"aeiou"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")


@pytest.fixture(scope="module")
def encoder(bert: Path) -> TransformersEncoder:
    return TransformersEncoder(str(bert), threads=1)


@pytest.fixture(scope="module")
def artefact(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained-on-bert")
    data = make_data_folder(folder / "data")
    given = ["--data", str(data), "--encoder", str(bert), "--out", str(folder / "model")]
    assert main([*given, "--threads", "1"]) == 0
    return folder / "model"


TEXTS = ["tell me about eczema rash please", "kidney", "", "🤒 湿疹", "rash " * 500]


def test_a_batch_equals_single_texts_in_order(encoder: TransformersEncoder) -> None:
    for found, text in zip(encoder.encode(TEXTS * 30), TEXTS * 30, strict=True):
        [single] = encoder.encode([text])
        assert found.states.shape == single.states.shape == (len(found.weights), 32)
        assert np.allclose(found.pooled, single.pooled, atol=1e-4)
        assert found.weights.sum() == pytest.approx(1, abs=1e-5)
        assert (found.spans == single.spans).all()
    assert encoder.encode([]) == []


def test_pooling_is_the_mean_over_real_tokens(bert: Path, encoder: TransformersEncoder) -> None:
    [found, _] = encoder.encode([TEXTS[0], TEXTS[4]])  # padded to a long one
    model = BertModel.from_pretrained(bert).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert)
    with torch.inference_mode():
        states = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    assert np.allclose(found.pooled, states.mean(0).numpy(), atol=1e-5)


def test_spans_point_at_the_characters(encoder: TransformersEncoder) -> None:
    [found] = encoder.encode([TEXTS[0]])
    pieces = [TEXTS[0][start:end] for start, end in found.spans.tolist() if end > start]
    assert pieces == TEXTS[0].split()


def test_of_a_long_text_the_first_tokens_are_read(encoder: TransformersEncoder) -> None:
    [found] = encoder.encode(["rash " * 500])
    assert len(found.weights) == MAX_POSITIONS - 2


def test_threads_share_one_encoder(bert: Path) -> None:
    fresh = TransformersEncoder(str(bert), threads=1)  # its first call is among theirs
    results: list[list[np.ndarray]] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                results.append([found.pooled for found in fresh.encode(TEXTS)])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for result in results[1:]:
        for found, wanted in zip(result, results[0], strict=True):
            assert np.allclose(found, wanted, atol=1e-5)


def test_an_artefact_trained_on_it_serves_with_it(bert: Path, artefact: Path) -> None:
    assert {p.name for p in artefact.iterdir()} == {"manifest.json", "weights.npz", "features.npz"}
    classifier = Classifier.load(artefact, encoder=str(bert))
    assert classifier.encoder_name == str(bert)
    questions = small_questions(3)
    found = classifier.classify([[q.text] for q in questions])
    tops = [max(f.last.probabilities, key=f.last.probabilities.get) for f in found]
    hits = [
        top == question.specialty
        for top, question in zip(tops, questions, strict=True)
        if question.specialty != OUT_OF_SCOPE
    ]
    assert sum(hits) / len(hits) > 0.9
    [evidence] = [f.evidence for f in classifier.classify([["tell me about eczema rash please"]])]
    assert "eczema rash" in " ".join(evidence)


def test_a_folder_of_the_same_name_elsewhere_will_do(
    bert: Path, artefact: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(bert, tmp_path / bert.name)
    assert load_artefact(artefact, encoder=str(elsewhere)).encoder.name == str(elsewhere)
    with pytest.raises(ArtefactError, match=r"fitted on the encoder '.*tiny-bert', and router"):
        load_artefact(artefact, encoder="ORG/other")


def test_another_width_is_refused(bert: Path, artefact: Path, tmp_path: Path) -> None:
    wide = make_tiny_bert(tmp_path / bert.name, hidden=64)
    with pytest.raises(ArtefactError, match="expects vectors of 32 numbers, .* gives 64"):
        load_artefact(artefact, encoder=str(wide))


def test_an_encoder_that_is_not_there_is_refused(artefact: Path, tmp_path: Path) -> None:
    manifest = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["encoder"]["name"].endswith("tiny-bert")
    missing = tmp_path / "nowhere" / "tiny-bert"
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_artefact(artefact, encoder=str(missing))
