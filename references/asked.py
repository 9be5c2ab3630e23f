"""What of a message is searched for: the passages it names, what it asks to explain, its questions.

"Ignore the above. What is anemia?" and "I have no chest pain; what is arrhythmia?" ask for one
thing, and say others that no passage has to hold.
"""

import re
from collections.abc import Iterator
from itertools import islice

from references.words import plain, sentences, words

MAX_QUESTIONS = 4  # of a message that are searched one by one
MIN_REST = 2  # words beside what is to be explained, for it to be searched alone
_IDENTIFIER = re.compile(r"\b([A-Za-z]{2,10}):(\d{2,})\b")  # HP:0000964, OMIM:154700
# What asks for a meaning, on plain text. What it is about is named after it: no "it", no "the".
_MEANING = re.compile(
    r"""\b(?:
      what(?:'?s|\s+is|\s+are)\s+(?!(?:it|this|that|these|those|the|my|your|his|her|our|their|wrong
          |happening|going|causing|best|better|good|left|next|known)\b)
    | what\s+(?:do|does)\s+(?!(?:it|this|that|i|you|he|she|they|we)\b)(?=[^?]*\bmean\b)
    | (?:define|explain|tell\s+me\s+about|meaning\s+of|definition\s+of)\s+
        (?!(?:it|this|that|these|those|why|how|what|to|the)\b)
    | (?:c'?est\s+quoi\s+|qu'?est[\s-]+ce\s+qu(?:e\s+|'))
        (?!(?:ca|cela|ce|je|tu|il|elle|on|nous|vous|ils|elles|mon|ma|mes|le\s+mieux)\b|[jc]')
    | (?:que\s+(?:signifie|veut\s+dire)\s+|expliquez?(?:[\s-]moi)?\s+
        |(?:definition|parlez?[\s-]moi)\s+d(?:[eu]\s+|'))
        (?!(?:ca|cela|ce|pourquoi|comment|a)\b)
    )""",
    re.VERBOSE,
)
# Such a sentence asks about what another one said.
_REFERS = re.compile(r"\b(?:it|this|that|these|those|them|ca|cela|celui-ci|celle-ci)\b")
_END = re.compile(r"[.?!;\n\[]|$")


def identifiers(question: str) -> list[str]:
    """Return ids of passages that a question names, such as HP:0000964."""
    return [f"{source.upper()}:{number}" for source, number in _IDENTIFIER.findall(question)]


def to_explain(question: str) -> str:
    """Return the part that asks what something is. Returns "" if there is none, or no other."""
    found, end = [], 0
    for asks in _MEANING.finditer(text := plain(question)):
        if asks.start() >= end and (stop := _END.search(text, asks.end())):
            end = stop.start()
            found.append(question[asks.start() : end])
    part = "\n".join(found)
    return part if found and len(words(question)) >= len(words(part)) + MIN_REST else ""


def searched(question: str) -> Iterator[str]:
    """Yield what to search for, the first that finds something: what is to be explained, the
    whole, and then each sentence that asks, where there are others."""
    if part := to_explain(question):
        yield part
    yield question
    said = [question[start:end] for start, end in sentences(question)]
    if len(said) > 1:
        asking = (one for one in said if one.endswith("?") and not _REFERS.search(plain(one)))
        yield from islice(asking, MAX_QUESTIONS)
