"""The n-gram models, and which words their logits come from."""

import numpy as np
import pytest

from router.features import NgramModel, vectorise
from router.text import words_of
from router.training.examples import Recipe
from router.training.ngrams import build_vocabulary, matrix, train_ngrams
from tests.router.small_questions import LABELS, OUT_OF_SCOPE, small_questions


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return train_ngrams(small_questions(0), LABELS, Recipe())


def test_each_model_tells_what_it_is_for(model: NgramModel) -> None:
    questions = small_questions(1)
    scores = [model.score(words_of(q.text)) for q in questions]
    inside = [i for i, q in enumerate(questions) if q.specialty != OUT_OF_SCOPE]
    tops = [LABELS[int(scores[i].specialty.argmax())] for i in inside]
    assert (
        np.mean([top == questions[i].specialty for top, i in zip(tops, inside, strict=True)]) > 0.95
    )
    scopes = [
        (s.scope > 0) == (q.specialty != OUT_OF_SCOPE)
        for s, q in zip(scores, questions, strict=True)
    ]
    assert np.mean(scopes) > 0.95
    languages = [
        (s.french > 0) == (q.language == "fr") for s, q in zip(scores, questions, strict=True)
    ]
    assert np.mean(languages) > 0.95


def test_an_empty_text_has_the_biases(model: NgramModel) -> None:
    scores = model.score([])
    assert np.array_equal(scores.specialty, model.specialty_bias)
    assert (scores.scope, scores.french) == (model.scope_bias, model.french_bias)


def test_shares_of_the_words_add_up_to_the_logits(model: NgramModel) -> None:
    words = words_of("tell me about eczema rash please, and eczema")
    scores = model.score(words)
    direction = np.zeros(len(LABELS), dtype=np.float32)
    direction[LABELS.index("dermatology")] = 1
    shares = model.by_word(scores.vector, direction, len(words))
    assert shares.shape == (len(words),)
    total = scores.specialty[LABELS.index("dermatology")] - model.specialty_bias[1]
    assert shares.sum() == pytest.approx(total, abs=1e-4)
    assert words[int(shares.argmax())].normal in ("eczema", "rash")
    assert model.by_word(model.score([]).vector, direction, 0).shape == (0,)


def test_the_vocabulary_keeps_the_most_frequent() -> None:
    texts = ["rash eczema"] * 4 + ["rash"] * 4 + ["quokka"]
    everything = build_vocabulary(texts, 1, 10_000)
    frequent = build_vocabulary(texts, 3, 10_000)
    few = build_vocabulary(texts, 1, 5)
    assert len(everything.keys) > len(frequent.keys) > len(few.keys) == 5
    assert len(vectorise(words_of("quokka"), everything).rows) > 0
    assert len(vectorise(words_of("quokka"), frequent).rows) == 0
    for vocabulary in (everything, frequent, few):
        assert (np.diff(vocabulary.keys.astype(np.int64)) > 0).all()
        assert np.array_equal(vocabulary.idf, vocabulary.idf.astype(np.float16))
    [rash] = frequent.rows_of([everything.keys[everything.idf.argmin()]])
    assert frequent.idf[rash] == frequent.idf.min()  # in most texts: says least


def test_the_matrix_holds_what_serving_sees(model: NgramModel) -> None:
    texts = ["tell me about eczema rash please", "", "quokka"]
    found = matrix(texts, model.vocabulary)
    for row, text in enumerate(texts):
        vector = vectorise(words_of(text), model.vocabulary)
        dense = np.zeros(len(model.vocabulary.keys), dtype=np.float32)
        np.add.at(dense, vector.rows, vector.values)
        assert np.allclose(found[row].toarray()[0], dense)


def test_weights_are_as_the_artefact_holds_them(model: NgramModel) -> None:
    for array in (model.specialty, model.scope, model.french):
        assert np.array_equal(array, array.astype(np.float16))
