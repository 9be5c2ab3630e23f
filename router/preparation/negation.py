"""Tell which words of a text are denied ("no chest pain", "ni fièvre", "fever: none").

After NegEx (Chapman et al. 2001): a trigger denies what follows, to the end of the clause or of the
list, a conjunction, or a new subject. The phrases are in negation.yaml.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from router.preparation.phrases import Span
from router.preparation.reading import Reading

NEGATED_WORDS = 12  # the longest scope of a negation
AFTER_WORDS = 5  # how far after a sign its negation may follow ("chest pain: none")


class Negations:
    """The negations of one text.

    Args:
        found: the spans of the groups of negation.yaml.
        triggers: the group of words that deny what follows them.

    Attributes:
        scopes: each trigger, and the word before which its denial ends.
        ends: the words at which a negation ends, in order.
    """

    def __init__(
        self, reading: Reading, found: Mapping[str, Sequence[Span]], triggers: str = "negation"
    ) -> None:
        self._reading = reading
        self._found = found
        self.ends = _starts(found.get("end_of_negation", ()))
        self._list_words = _starts(found.get("list_word", ()))
        self._lists = set(_starts(found.get("list_negation", ())))
        self._answers_at = set(_starts(found.get("answer_no", ())))
        self._triggers = self._real(found.get(triggers, ()))
        self.scopes = [(t, self._end_of_negation(t)) for t in self._triggers]
        # All by the place of a word: a text may have a thousand signs and as many denials.
        self._denied = {at for trigger, stop in self.scopes for at in range(trigger.end, stop)}
        self._triggers_at = set(_starts(self._triggers))
        answers = (s for s in found.get("answer_no", ()) if self._ends_a_clause(s))
        self._denials_at = set(_starts((*found.get("negation_after", ()), *answers)))
        wraps = sorted(found.get("negation_around", ()), key=lambda wrap: wrap.end)
        self._wrap_ends = [wrap.end for wrap in wraps]
        firsts = list(accumulate((wrap.start for wrap in reversed(wraps)), min))
        self._first_wraps = firsts[::-1]  # the first start of those that end there or later
        self._wrap_of = {wrap.start: wrap.end for wrap in wraps}  # the last end of each start

    def deny(self, span: Span) -> bool:
        """Return whether a sign is denied, by what stands before, around or after it."""
        if span.start in self._denied or not self._triggers_at.isdisjoint(span.skipped):
            return True
        longer = bisect_right(self._wrap_ends, span.end)
        if longer < len(self._first_wraps) and self._first_wraps[longer] < span.start:
            return True
        if any(self._wrap_of.get(at, 0) > span.end for at in span.skipped):
            return True
        after = range(span.end, span.end + AFTER_WORDS + 1)
        return any(at in self._denials_at and self._comes_after(span, at) for at in after)

    def _real(self, triggers: Sequence[Span]) -> list[Span]:
        """Return the triggers that deny what follows: not "no relief", nor "chest pain: no"."""
        unreal = self._found.get("not_a_negation", ())
        return [
            trigger
            for trigger in triggers
            if not self._is_an_answer(trigger)
            and not any(s.start <= trigger.start and trigger.end <= s.end for s in unreal)
        ]

    def _is_an_answer(self, trigger: Span) -> bool:
        return trigger.start in self._answers_at and self._ends_a_clause(trigger)

    def _ends_a_clause(self, span: Span) -> bool:
        clauses = self._reading.clauses
        return span.end == len(clauses) or clauses[span.end] != clauses[span.end - 1]

    def _end_of_negation(self, trigger: Span) -> int:
        """Return the end of the clause or, of "no fever, cough or chills", of the list."""
        clauses, start = self._reading.clauses, trigger.end
        stop = min(self._reading.end_of_sentence(trigger.start), start + NEGATED_WORDS)
        stop = min([stop, *self._ends_from(start)])
        if trigger.start in self._lists:
            return stop
        before = bisect_left(self._list_words, stop)
        last = max([trigger.end - 1, *self._list_words[max(0, before - 1) : before]])
        return next((at for at in range(last, stop) if clauses[at] != clauses[last]), stop)

    def _ends_from(self, start: int) -> list[int]:
        """Return the first word from `start` on that ends a negation, if any does."""
        first = bisect_left(self.ends, start)
        return self.ends[first : first + 1]

    def _comes_after(self, span: Span, denial: int) -> bool:
        """Return whether the denial that begins at this word is of a sign before it."""
        sentences = self._reading.sentences
        if sentences[denial] != sentences[span.start]:
            return False
        return not any(end < denial for end in self._ends_from(span.end))


def _starts(spans: Sequence[Span]) -> list[int]:
    return sorted({span.start for span in spans})
