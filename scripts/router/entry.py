"""One labelled text on its way from a source to the router's training set."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One text with its label.

    Attributes:
        group: entries of one group never stand in two splits (a disease, a sign, a text).
        names: normal names of what the text is about; a term that a held-out question is about
            is left out of training.
        kind: "question", "term" (a name, to be put into a question) or "passage".
        split: "train", "validation", or "" where the source has none.
    """

    id: str
    text: str
    specialty: str
    lang: str
    source: str
    group: str
    kind: str
    names: tuple[str, ...] = ()
    split: str = ""
