"""Tell what a text says of itself from what it denies, remembers, supposes or asks about.

After NegEx (Chapman et al. 2001) and ConText (Harkema et al. 2009): trigger phrases with a scope
that ends at the clause, a conjunction, or a new subject. The phrases are in context.yaml.
"""

from collections.abc import Mapping, Sequence

from router.urgency.phrases import Span
from router.urgency.reading import Reading

# The names of the groups in context.yaml.
GROUPS = (
    "negation",
    "not_a_negation",
    "negation_after",
    "negation_around",
    "answer_no",
    "end_of_negation",
    "list_negation",
    "list_word",
    "history",
    "present",
    "past_verb",
    "present_verb",
    "education",
    "anchor",
    "hypothesis",
    "not_a_hypothesis",
    "elsewhere",
)
NEGATED_WORDS = 12  # the longest scope of a negation
AFTER_WORDS = 5  # how far after a sign its negation may follow ("chest pain: none")


class Context:
    """What holds for each word of one text.

    Args:
        found: the spans of the groups of context.yaml.
    """

    def __init__(self, reading: Reading, found: Mapping[str, Sequence[Span]]) -> None:
        self._reading = reading
        self._found = found
        self._is_elsewhere = bool(found.get("elsewhere"))
        self._of_sentence = {
            name: {reading.sentences[span.start] for span in found.get(name, ())}
            for name in ("anchor", "present", "past_verb", "present_verb", "education")
        }
        self._triggers = self._real_negations()
        self._negations = [(t.end, self._end_of_negation(t)) for t in self._triggers]
        self._answers = [s for s in found.get("answer_no", ()) if self._ends_a_clause(s)]
        self._suppositions = self._scopes_of_supposition()
        self._past = [s for s in found.get("history", ()) if not self._is_negated(s)]
        self._of_sentence["history"] = {reading.sentences[s.start] for s in self._past}
        self._remembered = self._remembered_sentences()

    def holds(self, span: Span) -> bool:
        """Whether the text says that this is so, here and now."""
        if self._is_elsewhere or self._is_negated(span) or self._is_history(span):
            return False
        return not any(start <= span.start < stop for start, stop in self._suppositions)

    def is_negated(self, span: Span) -> bool:
        return self._is_negated(span)

    def _end_of_sentence(self, at: int) -> int:
        sentences, end = self._reading.sentences, at
        while end < len(sentences) and sentences[end] == sentences[at]:
            end += 1
        return end

    def _real_negations(self) -> list[Span]:
        """Return the triggers that deny what follows: not "no relief", nor "chest pain: no"."""
        unreal = self._found.get("not_a_negation", ())
        return [
            trigger
            for trigger in self._found.get("negation", ())
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
        reading, start = self._reading, trigger.end
        stop = min(self._end_of_sentence(trigger.start), start + NEGATED_WORDS)
        ends = [s.start for s in self._found.get("end_of_negation", ()) if s.start >= start]
        stop = min([stop, *ends])
        is_list = any(start <= s.start < stop for s in self._found.get("list_word", ())) or any(
            s.start == trigger.start for s in self._found.get("list_negation", ())
        )
        clause = reading.clauses[trigger.end - 1]
        for at in range(start, stop):
            if reading.clauses[at] != clause and not is_list:
                return at
        return stop

    def _is_negated(self, span: Span) -> bool:
        if any(start <= span.start < stop for start, stop in self._negations):
            return True
        if any(trigger.start in span.skipped for trigger in self._triggers):
            return True
        for wrap in self._found.get("negation_around", ()):
            begins_inside = wrap.start < span.start or wrap.start in span.skipped
            if begins_inside and span.end < wrap.end:
                return True
        return any(
            self._comes_after(span, s) for s in self._found.get("negation_after", ())
        ) or any(self._comes_after(span, s) for s in self._answers)

    def _comes_after(self, span: Span, denial: Span) -> bool:
        reading = self._reading
        if not 0 <= denial.start - span.end <= AFTER_WORDS:
            return False
        if reading.sentences[denial.start] != reading.sentences[span.start]:
            return False
        ends = self._found.get("end_of_negation", ())
        return not any(span.end <= s.start < denial.start for s in ends)

    def _scopes_of_supposition(self) -> list[tuple[int, int]]:
        """Return where the text asks in general ("what are the signs of") or supposes ("if")."""
        scopes = []
        anchored = self._of_sentence["anchor"]
        for span in self._found.get("education", ()):
            sentence = self._reading.sentences[span.start]
            if sentence not in anchored:
                stop = self._end_of_sentence(span.start)
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
        return [(at, self._end_of_sentence(at))]

    def _end_of_hypothesis(self, span: Span) -> int:
        """The end of the sentence, or where a clause says something of someone."""
        stop, clauses = self._end_of_sentence(span.start), self._reading.clauses
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
        clauses = self._reading.clauses
        ends = self._found.get("end_of_negation", ())
        for past in self._past:
            if clauses[past.start] == clauses[span.start]:
                low, high = min(past.start, span.start), max(past.end, span.start)
                if not any(low < s.start <= high for s in ends):
                    return True
        return False
