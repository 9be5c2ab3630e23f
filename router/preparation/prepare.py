"""Prepare a text for the classifier: one pure function, which training and serving share.

In this order: repaired (text.py); orders to the router left out; abbreviations written out;
clinical names put behind what people say instead; misspelt words corrected; denied symptoms left
out. A text in a language that the router does not read is only repaired.
"""

from dataclasses import dataclass

from router.preparation.abbreviations import expand
from router.preparation.denials import without_denials
from router.preparation.edited import EditedText
from router.preparation.expressions import name_expressions
from router.preparation.languages import foreign_language
from router.preparation.orders import without_orders
from router.preparation.spelling import correct
from router.text import clean, words_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared text.

    Attributes:
        edited: the text to classify, and what the user wrote where.
        foreign: code of a language that the router does not read, if the text is in one.
        only_denies: it tells what is not the case, and nothing else ("no fever").
    """

    edited: EditedText
    foreign: str | None
    only_denies: bool

    @property
    def text(self) -> str:
        return self.edited.text


def prepare(text: str) -> Prepared:
    """Prepare a text; the same text always gives the same result."""
    edited = EditedText.of(clean(text))
    foreign = foreign_language(words_of(edited.text), edited.text)
    if foreign is not None:
        return Prepared(edited, foreign, only_denies=False)
    edited = name_expressions(expand(without_orders(edited)))
    edited = name_expressions(correct(edited))  # again: "je veut mourrir"
    edited, only_denies = without_denials(edited)
    return Prepared(edited, None, only_denies)


def prepared_text(text: str) -> str:
    """Return the text that the classifier reads."""
    return prepare(text).text
