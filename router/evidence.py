"""The user's phrases that spoke for a specialty: exact, since the head is linear."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from router.features import Floats, NgramModel
from router.head import Projection, View
from router.preparation.edited import EditedText
from router.text import Word

NUM_EVIDENCE = 3
MAX_PHRASE_WORDS = 4
MAX_EVIDENCE_CHARS = 120  # of one phrase: a "word" may be a page of base64
EVIDENCE_FLOOR = 0.2  # of the strongest word's share; weaker words are not evidence


def evidence_of(
    view: View,
    written: EditedText,
    direction: Floats,
    projection: Projection,
    ngrams: NgramModel,
    carries_signal: Callable[[Word], bool],
) -> tuple[str, ...]:
    """Return the phrases whose words add most along `direction`, strongest first.

    Args:
        written: the text that `view` is a part of: phrases are as the user wrote them.
        direction: (D + S0 + 1,) in the space of the head's features.
        carries_signal: False for a word that is never evidence.
    """
    num_components = projection.components.shape[1]
    by_token = view.encoded.weights * (
        (view.encoded.states - projection.mean)
        @ (projection.components @ direction[:num_components])
    )
    ngram_direction = direction[num_components:-1] * projection.ngram_scale
    by_word = ngrams.by_word(view.ngrams.vector, ngram_direction, len(view.words))
    by_word += _of_words(by_token, view.encoded.spans, view.words)
    for position, word in enumerate(view.words):
        if not carries_signal(word):
            by_word[position] = 0.0
    return _phrases(written, view, by_word)


def _of_words(
    by_token: npt.NDArray[Any], spans: npt.NDArray[np.int64], words: Sequence[Word]
) -> npt.NDArray[np.float64]:
    """Sum the shares of tokens (T,) over the words that they begin in, (W,)."""
    starts = np.array([word.start for word in words])
    middle = (spans[:, 0] + spans[:, 1]) / 2  # a token may begin with the blank before its word
    owners = np.searchsorted(starts, middle, side="right") - 1
    is_text = (spans[:, 1] > spans[:, 0]) & (owners >= 0)
    found = np.bincount(owners[is_text], by_token[is_text], minlength=len(words))
    return found.astype(np.float64)


def _phrases(written: EditedText, view: View, of_word: npt.NDArray[Any]) -> tuple[str, ...]:
    """Return runs of neighbouring words above the floor, strongest first, each phrase once."""
    words, start = view.words, view.start
    floor = EVIDENCE_FLOOR * float(of_word.max(initial=0.0))
    runs: list[list[int]] = []
    for position in range(len(words)):
        if of_word[position] <= floor:
            continue
        if runs and runs[-1][-1] == position - 1 and len(runs[-1]) < MAX_PHRASE_WORDS:
            runs[-1].append(position)
        else:
            runs.append([position])
    runs.sort(key=lambda run: -float(of_word[run].sum()))
    phrases = [
        written.original(start + words[run[0]].start, start + words[run[-1]].end) for run in runs
    ]
    return tuple(dict.fromkeys(p[:MAX_EVIDENCE_CHARS] for p in phrases))[:NUM_EVIDENCE]
