"""Find the question in a text that also holds pasted context: a document, a record, a log.

It stands behind a label ("Question: ..."), outside of quoted or labelled text, or it is the short
first or last paragraph, or the last sentence, of a long text.
"""

import re
from dataclasses import dataclass
from functools import cache

from router.lexicon import alternatives, lexicon
from router.text import folded

LONG_WORDS = 25  # a text with more may be context and a question without a label
QUESTION_WORDS = 40  # at most, of a question without a label
MIN_CONTEXT_WORDS = 15  # quoted or labelled
_LABEL_END = r"\s*\[?\d*\]?\s*[*_]*\s*:+[*_]*\s*"
_PARAGRAPHS = re.compile(r"\n\s*\n|\n(?=[^\n]+\?\s*$)")
_LAST_SENTENCE = re.compile(r"(?<=[.!?:;])\s+(?=[^.!?]*\?\s*$)")


@dataclass(frozen=True, slots=True)
class _Patterns:
    asks: re.Pattern[str]
    question_label: re.Pattern[str]
    context_label: re.Pattern[str]
    end_label: re.Pattern[str]
    quoted: re.Pattern[str]
    person: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    word = {name: alternatives(content) for name, content in lexicon("preparation/pasted").items()}
    label = rf"(?:{word['owners']}\s+)?{word['questions']}"
    return _Patterns(
        asks=re.compile(rf"\?|^\W*{word['asks']}\b"),
        question_label=re.compile(
            rf"(?:^|\n|[.!?>]\s+)[\s#*>-]*{label}(?:\s+{word['askers']})?{_LABEL_END}"
            rf"|\n#+ *{label} *\n"
        ),
        context_label=re.compile(
            rf"(?:^|\n|[.!?]\s+)[\s#*>-]*(?:(?:the|le|la)\s+)?{word['contexts']}"
            rf"(?:\s+(?:below|above|ci-dessous|ci-dessus))?{_LABEL_END}"
        ),
        end_label=re.compile(rf"\n\s*[#*]*\s*{word['answers']}\s*[*_]*\s*:"),
        quoted=re.compile(
            r"```.*?```|\"\"\".*?\"\"\"|'''.*?'''|(?:^|\n)(?:>[^\n]*(?:\n|$))+|-{3,}\n.*?\n-{3,}"
            r"|\"[^\"]{80,}\"|\u00ab[^\u00bb]{80,}\u00bb|\u201c[^\u201d]{80,}\u201d"
            rf"|<(?P<tag>{word['tags']})s?\b[^>]*>.*?</(?P=tag)s?>",
            re.DOTALL,
        ),
        person=re.compile(rf"\b{word['persons']}\b"),
    )


@dataclass(frozen=True, slots=True)
class Question:
    """The characters `start` to `end` of a text are its question; with a label it surely is."""

    start: int
    end: int
    is_labelled: bool


def find_question(text: str) -> Question | None:
    """Return where the question is, or None where the text holds no context."""
    searched = folded(text)
    found = _labelled(searched) or _outside_quotes(searched) or _unlabelled(searched)
    if found is None or not text[found.start : found.end].strip():
        return None
    return found


def _labelled(text: str) -> Question | None:
    labels = list(_patterns().question_label.finditer(text))
    if labels:
        start = labels[-1].end()
        ends = [
            m.start()
            for p in (_patterns().context_label, _patterns().end_label)
            if (m := p.search(text, start))
        ]
        end = min(ends, default=len(text))
        context = text[: labels[-1].start()] + text[end:]
        return Question(start, end, True) if _num_words(context) else None
    context_label = _patterns().context_label.search(text)
    if context_label is None:
        return None
    before = text[: context_label.start() + 1]
    if (
        _patterns().asks.search(before)
        and _num_words(text[context_label.end() :]) >= MIN_CONTEXT_WORDS
    ):
        return Question(0, context_label.start() + 1, True)
    return _last_paragraph(text, context_label.end())


def _last_paragraph(text: str, start: int) -> Question | None:
    """Return the last paragraph behind `start` if it asks, of a text with labelled context."""
    breaks = list(_PARAGRAPHS.finditer(text.rstrip(), start))
    if not breaks or not _patterns().asks.search(text[breaks[-1].end() :]):
        return None
    return Question(breaks[-1].end(), len(text), True)


def _outside_quotes(text: str) -> Question | None:
    """Return what surrounds quoted text: the longer one of what stands before and behind it."""
    quoted = list(_patterns().quoted.finditer(text))
    if not quoted or sum(_num_words(m.group()) for m in quoted) < MIN_CONTEXT_WORDS:
        return None
    before, behind = (0, quoted[0].start()), (quoted[-1].end(), len(text))
    asking = [span for span in (behind, before) if _patterns().asks.search(text[slice(*span)])]
    return Question(*asking[0], True) if asking else None


def _unlabelled(text: str) -> Question | None:
    if len(text.split(None, LONG_WORDS)) <= LONG_WORDS:
        return None
    stripped = text.rstrip()
    breaks = list(_PARAGRAPHS.finditer(stripped))
    if breaks:
        spans = [(breaks[-1].end(), len(text)), (0, breaks[0].start())]
    elif _patterns().person.search(text):  # a case that ends in its question is one text
        return None
    else:
        sentences = list(_LAST_SENTENCE.finditer(stripped))
        spans = [(sentences[-1].end(), len(text))] if sentences else []
    for start, end in spans:
        if (
            _patterns().asks.search(text[start:end].strip())
            and 0 < _num_words(text[start:end]) <= QUESTION_WORDS
        ):
            return Question(start, end, False)
    return None


def _num_words(text: str) -> int:
    return len(text.split())
