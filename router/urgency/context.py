"""Tell what a text says of itself from what it denies, remembers, supposes or asks about.

After ConText (Harkema et al. 2009): trigger phrases with a scope that ends at the clause, a
conjunction, or a new subject. The phrases are in context.yaml; denials are negation.py's.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from router.preparation.negation import Negations
from router.preparation.phrases import Span
from router.preparation.reading import Reading

# The names of the groups in context.yaml.
GROUPS = (
    "history",
    "present",
    "leave",
    "past_verb",
    "present_verb",
    "education",
    "anchor",
    "hypothesis",
    "not_a_hypothesis",
    "elsewhere",
    "not_elsewhere",
)


class Context:
    """What holds for each word of one text.

    Args:
        found: the spans of the groups of context.yaml and negation.yaml.

    Attributes:
        is_elsewhere: the text is about an animal, a story or an exam.
    """

    def __init__(self, reading: Reading, found: Mapping[str, Sequence[Span]]) -> None:
        self._reading = reading
        self._found = found
        here = found.get("not_elsewhere", ())
        self.is_elsewhere = any(
            not any(s.start < span.end and span.start < s.end for s in here)
            for span in found.get("elsewhere", ())
        )
        self._of_sentence = {
            name: {reading.sentences[span.start] for span in found.get(name, ())}
            for name in ("anchor", "past_verb", "present_verb", "education")
        }
        self._of_sentence["present"] = {
            reading.sentences[span.start]
            for span in found.get("present", ())
            if not any(s.start <= span.start < s.end for s in found.get("leave", ()))
        }
        self._negations = Negations(reading, found)
        self._suppositions = self._scopes_of_supposition()
        self._past = [s for s in found.get("history", ()) if not self.is_negated(s)]
        self._of_sentence["history"] = {reading.sentences[s.start] for s in self._past}
        # Of each stretch of a clause that no end of a negation cuts: where its first word of the
        # past before a sign begins, and its last one behind it.
        self._first_past: dict[tuple[int, int], int] = {}
        self._last_past: dict[tuple[int, int], int] = {}
        for past in self._past:
            key = self._stretch(past.start)
            end = (reading.clauses[past.start], self._ends_to(past.end))
            if key == end:
                self._first_past[key] = min(past.start, self._first_past.get(key, past.start))
            self._last_past[end] = max(past.start, self._last_past.get(end, past.start))
        self._remembered = self._remembered_sentences()

    def holds(self, span: Span) -> bool:
        """Whether the text says that this is so, here and now."""
        if self.is_elsewhere or self.is_negated(span) or self._is_history(span):
            return False
        return not any(start <= span.start < stop for start, stop in self._suppositions)

    def is_negated(self, span: Span) -> bool:
        return self._negations.deny(span)

    def _scopes_of_supposition(self) -> list[tuple[int, int]]:
        """Return where the text asks in general ("what are the signs of") or supposes ("if")."""
        scopes = []
        anchored = self._of_sentence["anchor"]
        for span in self._found.get("education", ()):
            sentence = self._reading.sentences[span.start]
            if sentence not in anchored:
                stop = self._reading.end_of_sentence(span.start)
                scopes.append((span.start, stop))
                scopes += self._continued(stop)
        real = self._found.get("not_a_hypothesis", ())
        for span in self._found.get("hypothesis", ()):
            if not any(s.start <= span.start < s.end for s in real):
                scopes.append((span.start, self._end_of_hypothesis(span)))
        return scopes

    def _continued(self, at: int) -> list[tuple[int, int]]:
        """A general question goes on in the next sentence if that is a question about no one."""
        reading = self._reading
        if at >= len(reading.words):
            return []
        sentence = reading.sentences[at]
        if sentence not in reading.questions or sentence in self._of_sentence["anchor"]:
            return []
        return [(at, self._reading.end_of_sentence(at))]

    def _end_of_hypothesis(self, span: Span) -> int:
        """The end of the sentence, or where a clause says something of someone."""
        stop, clauses = self._reading.end_of_sentence(span.start), self._reading.clauses
        for anchor in self._found.get("anchor", ()):
            if span.end <= anchor.start < stop and clauses[anchor.start] != clauses[span.start]:
                return anchor.start
        return stop

    def _remembered_sentences(self) -> frozenset[int]:
        """Return the sentences about the past: with a date, or going on in the past tense."""
        of = self._of_sentence
        remembered: set[int] = set()
        for sentence in range((self._reading.sentences or [0])[-1] + 1):
            goes_on = (
                sentence - 1 in remembered
                and sentence in of["past_verb"]
                and sentence not in of["present_verb"]
            )
            if sentence not in of["present"] and (sentence in of["history"] or goes_on):
                remembered.add(sentence)
        return frozenset(remembered)

    def _is_history(self, span: Span) -> bool:
        if self._reading.sentences[span.start] in self._remembered:
            return True
        key = self._stretch(span.start)
        if self._first_past.get(key, span.start + 1) <= span.start:
            return True
        return self._last_past.get(key, span.start) > span.start

    def _stretch(self, at: int) -> tuple[int, int]:
        """Return the clause of a word, and how many ends of a negation the text has up to it."""
        return self._reading.clauses[at], self._ends_to(at)

    def _ends_to(self, at: int) -> int:
        return bisect_right(self._negations.ends, at)
