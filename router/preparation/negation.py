"""Tell which words of a text are denied ("no chest pain", "ni fièvre", "fever: none").

After NegEx (Chapman et al. 2001): a trigger denies what follows, to the end of the clause or of the
list, a conjunction, or a new subject. The phrases are in negation.yaml.
"""

from collections.abc import Mapping, Sequence

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
    """

    def __init__(
        self, reading: Reading, found: Mapping[str, Sequence[Span]], triggers: str = "negation"
    ) -> None:
        self._reading = reading
        self._found = found
        self._triggers = self._real(found.get(triggers, ()))
        self.scopes = [(t, self._end_of_negation(t)) for t in self._triggers]
        self._answers = [s for s in found.get("answer_no", ()) if self._ends_a_clause(s)]

    def deny(self, span: Span) -> bool:
        """Return whether a sign is denied, by what stands before, around or after it."""
        if any(trigger.end <= span.start < stop for trigger, stop in self.scopes):
            return True
        if any(trigger.start in span.skipped for trigger in self._triggers):
            return True
        for wrap in self._found.get("negation_around", ()):
            begins_inside = wrap.start < span.start or wrap.start in span.skipped
            if begins_inside and span.end < wrap.end:
                return True
        return any(
            self._comes_after(span, denial)
            for denial in (*self._found.get("negation_after", ()), *self._answers)
        )

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
        answers = self._found.get("answer_no", ())
        is_one = any(s.start == trigger.start for s in answers)
        return is_one and self._ends_a_clause(trigger)

    def _ends_a_clause(self, span: Span) -> bool:
        clauses = self._reading.clauses
        return span.end == len(clauses) or clauses[span.end] != clauses[span.end - 1]

    def _end_of_negation(self, trigger: Span) -> int:
        """Return the end of the clause or, of "no fever, cough or chills", of the list."""
        clauses, start = self._reading.clauses, trigger.end
        stop = min(self._reading.end_of_sentence(trigger.start), start + NEGATED_WORDS)
        ends = [s.start for s in self._found.get("end_of_negation", ()) if s.start >= start]
        stop = min([stop, *ends])
        if any(s.start == trigger.start for s in self._found.get("list_negation", ())):
            return stop
        listed = [s.start for s in self._found.get("list_word", ()) if start <= s.start < stop]
        last = max([trigger.end - 1, *listed])
        return next((at for at in range(last, stop) if clauses[at] != clauses[last]), stop)

    def _comes_after(self, span: Span, denial: Span) -> bool:
        reading = self._reading
        if not 0 <= denial.start - span.end <= AFTER_WORDS:
            return False
        if reading.sentences[denial.start] != reading.sentences[span.start]:
            return False
        ends = self._found.get("end_of_negation", ())
        return not any(span.end <= s.start < denial.start for s in ends)
