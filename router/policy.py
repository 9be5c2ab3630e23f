"""Decide the route of a classified question. Every branch has a reason code, and a test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

NUM_ALTERNATIVES = 3
LANGUAGE_NOT_SUPPORTED = "language_not_supported"
URGENT = "urgent"
UNKNOWN_LANGUAGE = "und"  # ISO 639-2: undetermined
# In a conversation that is in scope, a last turn counts as out of scope only when its own score is
# below this share of the threshold.
BENEFIT_OF_THE_DOUBT = 0.5
# Two specialties that share at least this much between them are "these two", not "no idea".
PAIR_SHARE = 0.7


class Reason(StrEnum):
    """Why a route was taken."""

    EXPLICIT = "explicit"  # the client named the specialty or the adapter
    BASE_REQUESTED = "base_requested"  # the client asked for the base model
    CONFIDENT = "confident"
    KEPT = "kept"  # a follow-up: the conversation keeps its specialty
    NO_ADAPTER = "no_adapter"  # the specialty is clear, no adapter is in service for it
    AMBIGUOUS = "ambiguous"  # two specialties are about as likely: both are in `alternatives`
    LOW_CONFIDENCE = "low_confidence"
    OUT_OF_SCOPE = "out_of_scope"


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one view of a conversation."""

    probabilities: Mapping[str, float]  # by specialty, calibrated, sum 1
    in_scope: float  # calibrated probability that this is a question for a clinic
    has_signal: bool  # False where no word says what it is about ("and the treatment?")


@dataclass(frozen=True, slots=True)
class Classification:
    """What the classifier finds in a conversation."""

    last: Scores  # of the last user turn alone
    conversation: Scores  # of all user turns, the newest weighted most
    num_turns: int
    language: str  # ISO 639-1 code, or UNKNOWN_LANGUAGE
    evidence: tuple[str, ...]  # the user's phrases that spoke for the top specialty


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities that decide."""

    min_confidence: float  # with less, no specialist is named
    min_in_scope: float  # with less, the question is not one for a clinic
    min_margin: float = 0.0  # with less between the two top specialties, none is named


@dataclass(frozen=True, slots=True)
class Alternative:
    specialty: str
    probability: float


@dataclass(frozen=True, slots=True)
class Route:
    """Which adapter answers, and why.

    Attributes:
        adapter: None for the base model alone.
        specialists: the most likely specialties that have an adapter in service, whether or not
            the router is sure.
        red_flags: emergencies that the question may be (router/urgency), whatever the rest says.
        advice: what the answer begins with, for the red flags.
    """

    specialty: str | None
    adapter: str | None
    confidence: float | None
    reason: Reason
    in_scope: bool | None
    alternatives: tuple[Alternative, ...]
    evidence: tuple[str, ...]
    language: str
    notice: str | None
    specialists: tuple[Alternative, ...] = ()
    red_flags: tuple[str, ...] = ()
    advice: str = ""

    @property
    def notices(self) -> tuple[str, ...]:
        """Return what the client should tell the user, the most important first."""
        urgent = (URGENT,) if self.red_flags else ()
        return (*urgent, self.notice) if self.notice else urgent


def decide(
    classification: Classification,
    *,
    thresholds: Thresholds,
    adapters: Mapping[str, str],
    base_languages: Collection[str],
) -> Route:
    """Return the route of a classified conversation.

    A text without signal ("and the treatment?") is never sent to a specialist unless an earlier
    turn says which: the words that it has are in questions of every specialty.

    Args:
        adapters: specialty -> adapter in service.
        base_languages: ISO 639-1 codes of the languages that the base model writes.
    """
    scores, is_kept = _scores_to_judge(classification, thresholds)
    alternatives = _alternatives(scores.probabilities)
    top = alternatives[0]
    in_scope = _is_in_scope(classification, scores, thresholds)
    specialty: str | None = None
    if not in_scope:
        reason = Reason.OUT_OF_SCOPE
    elif not scores.has_signal:
        reason = Reason.LOW_CONFIDENCE
    elif not _is_sure(alternatives, thresholds):
        reason = Reason.AMBIGUOUS if _is_a_pair(alternatives) else Reason.LOW_CONFIDENCE
    else:
        specialty = top.specialty
        reason = Reason.KEPT if is_kept else Reason.CONFIDENT
        if specialty not in adapters:
            reason = Reason.NO_ADAPTER
    return Route(
        specialty=specialty,
        adapter=adapters.get(specialty) if specialty else None,
        confidence=top.probability,
        reason=reason,
        in_scope=in_scope,
        alternatives=alternatives,
        evidence=classification.evidence,
        language=classification.language,
        notice=_notice(classification.language, base_languages),
        specialists=_alternatives(
            {name: value for name, value in scores.probabilities.items() if name in adapters}
        ),
    )


def decide_explicit(
    specialty: str | None,
    language: str,
    *,
    adapters: Mapping[str, str],
    base_languages: Collection[str],
) -> Route:
    """Return the route when the client names the specialty, or None for the base model."""
    adapter = adapters.get(specialty) if specialty else None
    if specialty is None:
        reason = Reason.BASE_REQUESTED
    else:
        reason = Reason.EXPLICIT if adapter else Reason.NO_ADAPTER
    return Route(
        specialty=specialty,
        adapter=adapter,
        confidence=None,
        reason=reason,
        in_scope=None,
        alternatives=(),
        evidence=(),
        language=language,
        notice=_notice(language, base_languages),
    )


def _scores_to_judge(classification: Classification, thresholds: Thresholds) -> tuple[Scores, bool]:
    """Return the scores to judge, and whether they are the conversation's, not the last turn's."""
    last, conversation = classification.last, classification.conversation
    if classification.num_turns == 1:
        return last, False
    if not last.has_signal:
        return conversation, True
    if _top(last) < thresholds.min_confidence <= _top(conversation):
        return conversation, True
    return last, False


def _is_in_scope(classification: Classification, scores: Scores, thresholds: Thresholds) -> bool:
    last, conversation = classification.last, classification.conversation
    if classification.num_turns > 1 and last.has_signal:
        if conversation.in_scope >= thresholds.min_in_scope:
            return last.in_scope >= BENEFIT_OF_THE_DOUBT * thresholds.min_in_scope
        return last.in_scope >= thresholds.min_in_scope
    return scores.in_scope >= thresholds.min_in_scope


def _is_sure(alternatives: Sequence[Alternative], thresholds: Thresholds) -> bool:
    top = alternatives[0].probability
    second = alternatives[1].probability if len(alternatives) > 1 else 0.0
    return top >= thresholds.min_confidence and top - second >= thresholds.min_margin


def _is_a_pair(alternatives: Sequence[Alternative]) -> bool:
    """Return whether two specialties share most of the probability, neither twice the other."""
    if len(alternatives) < 2:
        return False
    top, second = alternatives[0].probability, alternatives[1].probability
    return top + second >= PAIR_SHARE and top <= 2 * second


def _top(scores: Scores) -> float:
    return max(scores.probabilities.values())


def _alternatives(probabilities: Mapping[str, float]) -> tuple[Alternative, ...]:
    ranked = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Alternative(name, value) for name, value in ranked[:NUM_ALTERNATIVES])


def _notice(language: str, base_languages: Collection[str]) -> str | None:
    """Return the notice; a text too short to tell its language gets none."""
    if language == UNKNOWN_LANGUAGE or language in base_languages:
        return None
    return LANGUAGE_NOT_SUPPORTED
