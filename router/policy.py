"""Decide the route of a classified question. Every branch has a reason code, and a test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

NUM_ALTERNATIVES = 3
LANGUAGE_NOT_SUPPORTED = "language_not_supported"
ROUTER_LANGUAGES = ("en", "fr")
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
    LANGUAGE_NOT_SUPPORTED = "language_not_supported"  # the router does not read the language


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
    conversation: Scores  # of the turns that say what it is about, the newest weighted most
    num_turns: int
    language: str  # ISO 639-1 code, or UNKNOWN_LANGUAGE
    evidence: tuple[str, ...]  # the user's phrases that spoke for the top specialty
    has_topic: bool = True  # the last turn may change what the conversation is about
    is_request: bool = True  # the last turn asks, or wants something done


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The probabilities that decide a route."""

    min_confidence: float  # with less, no specialist is named
    min_in_scope: float  # with less, the question is not one for a clinic
    min_margin: float = 0.0  # with less between the two top specialties, none is named
    by_label: Mapping[str, float] = field(default_factory=dict)  # instead of min_confidence

    def confidence_of(self, specialty: str) -> float:
        """Return the least probability with which a specialty is named."""
        return self.by_label.get(specialty, self.min_confidence)

    def overruled(self, min_confidence: float | None) -> "Thresholds":
        """Return these with one confidence for every label; as they are if it is None."""
        if min_confidence is None:
            return self
        return replace(self, min_confidence=min_confidence, by_label={})


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
    in_scope = scores.in_scope >= (
        thresholds.min_in_scope if is_kept else _min_in_scope(classification, thresholds)
    )
    specialty: str | None = None
    if not is_kept and not _is_read(classification.language):
        reason = Reason.LANGUAGE_NOT_SUPPORTED
    elif not in_scope:
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
    """Return the scores to judge, and whether they are the conversation's, not the last turn's.

    The last turn overrules the conversation where it names a topic for sure, and where it asks for
    something that is certainly not for a clinic.
    """
    last, conversation = classification.last, classification.conversation
    if classification.num_turns == 1:
        return last, False
    has_topic = classification.has_topic and last.has_signal
    is_strange = last.in_scope < _min_in_scope(classification, thresholds)
    if has_topic and not is_strange and names(last, thresholds):
        return last, False
    if classification.is_request and last.has_signal and is_strange:
        return last, False
    if not has_topic:
        return conversation, True
    if conversation.in_scope >= thresholds.min_in_scope and names(conversation, thresholds):
        return conversation, True
    return last, False


def _min_in_scope(classification: Classification, thresholds: Thresholds) -> float:
    """Return the score from which the last turn is in scope: less in a conversation that is."""
    is_in_conversation = classification.num_turns > 1 and (
        classification.conversation.in_scope >= thresholds.min_in_scope
    )
    return thresholds.min_in_scope * (BENEFIT_OF_THE_DOUBT if is_in_conversation else 1)


def names(scores: Scores, thresholds: Thresholds) -> bool:
    """Return whether the scores name a specialist."""
    return _is_sure(_alternatives(scores.probabilities), thresholds)


def _is_sure(alternatives: Sequence[Alternative], thresholds: Thresholds) -> bool:
    top = alternatives[0]
    second = alternatives[1].probability if len(alternatives) > 1 else 0.0
    is_clear = top.probability - second >= thresholds.min_margin
    return is_clear and top.probability >= thresholds.confidence_of(top.specialty)


def _is_a_pair(alternatives: Sequence[Alternative]) -> bool:
    """Return whether two specialties share most of the probability, neither twice the other."""
    if len(alternatives) < 2:
        return False
    top, second = alternatives[0].probability, alternatives[1].probability
    return top + second >= PAIR_SHARE and top <= 2 * second


def _is_read(language: str) -> bool:
    return language in (*ROUTER_LANGUAGES, UNKNOWN_LANGUAGE)


def _alternatives(probabilities: Mapping[str, float]) -> tuple[Alternative, ...]:
    ranked = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Alternative(name, value) for name, value in ranked[:NUM_ALTERNATIVES])


def _notice(language: str, base_languages: Collection[str]) -> str | None:
    """Return the notice; a text too short to tell its language gets none."""
    if language == UNKNOWN_LANGUAGE or language in base_languages:
        return None
    return LANGUAGE_NOT_SUPPORTED
