"""Every branch of the policy, without a trained artefact."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy import Classification, Reason, Route, Scores, Thresholds, decide, decide_explicit

THRESHOLDS = Thresholds(min_confidence=0.5, min_in_scope=0.4, min_margin=0.05)
ADAPTERS = {"dermatology": "derm-1", "neurology": "neuro-2"}
LABELS = ("cardiology", "dermatology", "neurology", "oncology")


def scores(
    top: str, confidence: float, *, in_scope: float = 0.9, has_signal: bool = True
) -> Scores:
    rest = (1 - confidence) / (len(LABELS) - 1)
    probabilities = {label: confidence if label == top else rest for label in LABELS}
    return Scores(probabilities, in_scope, has_signal)


def pair(top: float, second: float, *, in_scope: float = 0.9) -> Scores:
    """Dermatology, then neurology; the others share the rest."""
    rest = (1 - top - second) / 2
    probabilities = {
        "cardiology": rest,
        "dermatology": top,
        "neurology": second,
        "oncology": rest,
    }
    return Scores(probabilities, in_scope, has_signal=True)


def route(
    last: Scores,
    conversation: Scores | None = None,
    *,
    language: str = "en",
    thresholds: Thresholds = THRESHOLDS,
) -> Route:
    """Of one turn, or of two when the conversation's scores are given."""
    num_turns = 1 if conversation is None else 2
    classification = Classification(last, conversation or last, num_turns, language, ("rash",))
    return decide(classification, thresholds=thresholds, adapters=ADAPTERS, base_languages=("en",))


SURE = scores("dermatology", 0.8)
UNSURE = scores("dermatology", 0.49)
NO_ADAPTER = scores("oncology", 0.8)
STRANGE = scores("dermatology", 0.8, in_scope=0.39)
FOOTBALL = scores("dermatology", 0.3, in_scope=0.01)
MUTE = scores("cardiology", 0.6, has_signal=False)
MUTE_STRANGE = scores("cardiology", 0.6, in_scope=0.1, has_signal=False)
OTHER_TOPIC = scores("neurology", 0.7)
TORN = pair(0.45, 0.4)
BRANCHES = [
    pytest.param(SURE, None, Reason.CONFIDENT, "dermatology", "derm-1", id="sure"),
    pytest.param(NO_ADAPTER, None, Reason.NO_ADAPTER, "oncology", None, id="no-adapter"),
    pytest.param(UNSURE, None, Reason.LOW_CONFIDENCE, None, None, id="unsure"),
    pytest.param(STRANGE, None, Reason.OUT_OF_SCOPE, None, None, id="strange"),
    pytest.param(MUTE, None, Reason.LOW_CONFIDENCE, None, None, id="mute-alone"),
    pytest.param(MUTE_STRANGE, None, Reason.OUT_OF_SCOPE, None, None, id="mute-strange"),
    pytest.param(MUTE, SURE, Reason.KEPT, "dermatology", "derm-1", id="follow-up"),
    pytest.param(MUTE, NO_ADAPTER, Reason.NO_ADAPTER, "oncology", None, id="kept-no-adapter"),
    pytest.param(MUTE, UNSURE, Reason.LOW_CONFIDENCE, None, None, id="follow-up-unsure"),
    pytest.param(MUTE, FOOTBALL, Reason.OUT_OF_SCOPE, None, None, id="follow-up-strange"),
    pytest.param(MUTE, MUTE, Reason.LOW_CONFIDENCE, None, None, id="nobody-said-anything"),
    pytest.param(UNSURE, SURE, Reason.KEPT, "dermatology", "derm-1", id="helped"),
    pytest.param(UNSURE, UNSURE, Reason.LOW_CONFIDENCE, None, None, id="not-helped"),
    pytest.param(OTHER_TOPIC, SURE, Reason.CONFIDENT, "neurology", "neuro-2", id="switched"),
    pytest.param(FOOTBALL, SURE, Reason.OUT_OF_SCOPE, None, None, id="football-after-skin"),
    pytest.param(TORN, None, Reason.AMBIGUOUS, None, None, id="torn"),
    pytest.param(MUTE, TORN, Reason.AMBIGUOUS, None, None, id="follow-up-torn"),
    pytest.param(TORN, SURE, Reason.KEPT, "dermatology", "derm-1", id="torn-but-helped"),
    pytest.param(TORN, TORN, Reason.AMBIGUOUS, None, None, id="torn-twice"),
]


@pytest.mark.parametrize(("last", "conversation", "reason", "specialty", "adapter"), BRANCHES)
def test_reason(
    last: Scores,
    conversation: Scores | None,
    reason: Reason,
    specialty: str | None,
    adapter: str | None,
) -> None:
    found = route(last, conversation)
    assert (found.reason, found.specialty, found.adapter) == (reason, specialty, adapter)


SPANISH = [
    pytest.param(SURE, None, Reason.LANGUAGE_NOT_SUPPORTED, None, None, id="foreign"),
    pytest.param(FOOTBALL, None, Reason.LANGUAGE_NOT_SUPPORTED, None, None, id="foreign-strange"),
    pytest.param(MUTE, SURE, Reason.KEPT, "dermatology", "derm-1", id="foreign-follow-up"),
    pytest.param(OTHER_TOPIC, SURE, Reason.LANGUAGE_NOT_SUPPORTED, None, None, id="foreign-switch"),
]


@pytest.mark.parametrize(("last", "conversation", "reason", "specialty", "adapter"), SPANISH)
def test_reason_in_a_language_that_the_router_does_not_read(
    last: Scores,
    conversation: Scores | None,
    reason: Reason,
    specialty: str | None,
    adapter: str | None,
) -> None:
    found = route(last, conversation, language="es")
    assert (found.reason, found.specialty, found.adapter) == (reason, specialty, adapter)
    assert found.notice == "language_not_supported"


@pytest.mark.parametrize(
    ("has_topic", "is_request", "in_scope", "reason", "specialty"),
    [
        (True, True, 0.9, Reason.CONFIDENT, "neurology"),
        (False, True, 0.9, Reason.KEPT, "dermatology"),  # an answer, however sure it looks
        (False, False, 0.01, Reason.KEPT, "dermatology"),
        (True, False, 0.01, Reason.KEPT, "dermatology"),  # "I work in a bakery"
        (True, True, 0.01, Reason.OUT_OF_SCOPE, None),
    ],
)
def test_a_last_turn_overrules_only_with_a_topic_or_a_strange_request(
    has_topic: bool, is_request: bool, in_scope: float, reason: Reason, specialty: str | None
) -> None:
    last = scores("neurology", 0.97, in_scope=in_scope)
    found = decide(
        Classification(last, SURE, 2, "en", (), has_topic=has_topic, is_request=is_request),
        thresholds=THRESHOLDS,
        adapters=ADAPTERS,
        base_languages=("en",),
    )
    assert (found.reason, found.specialty) == (reason, specialty)


EXPLICIT = [
    ("dermatology", Reason.EXPLICIT, "derm-1"),
    ("oncology", Reason.NO_ADAPTER, None),
    ("astrology", Reason.NO_ADAPTER, None),
    (None, Reason.BASE_REQUESTED, None),
]


def test_every_reason_has_a_branch_above() -> None:
    assert {param.values[2] for param in BRANCHES + SPANISH} | {row[1] for row in EXPLICIT} == set(
        Reason
    )


@pytest.mark.parametrize(
    ("top", "second", "reason"),
    [
        (0.49, 0.45, Reason.AMBIGUOUS),  # below min_confidence, a pair
        (0.36, 0.34, Reason.AMBIGUOUS),  # the least that is a pair
        (0.36, 0.33, Reason.LOW_CONFIDENCE),  # less than 0.7 between them
        (0.49, 0.24, Reason.LOW_CONFIDENCE),  # the first is twice as likely
        (0.48, 0.24, Reason.AMBIGUOUS),
        (0.50, 0.47, Reason.AMBIGUOUS),  # above min_confidence, the margin too small
        (0.50, 0.44, Reason.CONFIDENT),  # the margin is enough
        (0.50, 0.49, Reason.AMBIGUOUS),
        (0.70, 0.25, Reason.CONFIDENT),
    ],
)
def test_two_close_specialties(top: float, second: float, reason: Reason) -> None:
    found = route(pair(top, second))
    assert found.reason is reason
    assert [a.specialty for a in found.alternatives[:2]] == ["dermatology", "neurology"]
    assert (found.specialty, found.adapter) == (
        ("dermatology", "derm-1") if reason is Reason.CONFIDENT else (None, None)
    )
    assert found.in_scope is True


def test_a_margin_of_nothing_keeps_every_confident_route() -> None:
    free = Thresholds(min_confidence=0.5, min_in_scope=0.4)
    assert route(pair(0.5, 0.49), thresholds=free).reason is Reason.CONFIDENT
    strict = Thresholds(min_confidence=0.5, min_in_scope=0.4, min_margin=0.9)
    assert route(SURE, thresholds=strict).reason is Reason.LOW_CONFIDENCE
    assert route(scores("dermatology", 0.96), thresholds=strict).reason is Reason.CONFIDENT


def test_two_close_specialties_out_of_scope_are_out_of_scope() -> None:
    assert route(pair(0.45, 0.4, in_scope=0.39)).reason is Reason.OUT_OF_SCOPE


def test_a_router_of_one_specialty() -> None:
    sure, unsure = Scores({"dermatology": 1.0}, 0.9, True), Scores({"dermatology": 0.4}, 0.9, True)
    assert route(sure).reason is Reason.CONFIDENT
    assert route(unsure).reason is Reason.LOW_CONFIDENCE


@pytest.mark.parametrize(("in_scope", "expected"), [(0.21, True), (0.19, False)])
def test_a_conversation_in_scope_lends_the_last_turn_half_the_threshold(
    in_scope: float, expected: bool
) -> None:
    last = scores("dermatology", 0.8, in_scope=in_scope)
    assert route(last, SURE).in_scope is expected
    assert route(last).in_scope is False


@pytest.mark.parametrize("at", [0.4, 0.5])
def test_a_score_at_its_threshold_passes(at: float) -> None:
    last = scores("dermatology", max(at, 0.5), in_scope=max(at, 0.4))
    assert route(last).reason is Reason.CONFIDENT


def test_alternatives_are_the_top_three_with_the_winner_first() -> None:
    last = Scores({"a": 0.1, "b": 0.6, "c": 0.1, "d": 0.2}, 0.9, True)
    found = route(last)
    assert [(a.specialty, a.probability) for a in found.alternatives] == [
        ("b", 0.6),
        ("d", 0.2),
        ("a", 0.1),  # a tie goes by name
    ]
    assert found.confidence == 0.6


def test_specialists_are_the_most_likely_with_an_adapter_sure_or_not() -> None:
    unsure = route(pair(0.3, 0.25))
    assert unsure.reason is Reason.LOW_CONFIDENCE
    likely = sorted(pair(0.3, 0.25).probabilities.items(), key=lambda item: (-item[1], item[0]))
    with_adapter = [(name, value) for name, value in likely if name in ADAPTERS]
    assert 0 < len(with_adapter) < len(likely)
    assert [(s.specialty, s.probability) for s in unsure.specialists] == with_adapter[:3]


def test_the_base_model_answers_with_alternatives_and_evidence_too() -> None:
    found = route(STRANGE)
    assert len(found.alternatives) == 3
    assert found.evidence == ("rash",)


@pytest.mark.parametrize(
    ("language", "notice"),
    [
        ("en", None),
        ("und", None),
        ("fr", "language_not_supported"),
        ("de", "language_not_supported"),
    ],
)
@pytest.mark.parametrize("last", [SURE, NO_ADAPTER, UNSURE, STRANGE, MUTE, TORN])
def test_the_notice_comes_on_every_branch(last: Scores, language: str, notice: str | None) -> None:
    assert route(last, language=language).notice == notice
    assert route(MUTE, last, language=language).notice == notice


@pytest.mark.parametrize(("specialty", "reason", "adapter"), EXPLICIT)
def test_explicit(specialty: str | None, reason: Reason, adapter: str | None) -> None:
    found = decide_explicit(specialty, "fr", adapters=ADAPTERS, base_languages=("en",))
    assert (found.reason, found.specialty, found.adapter) == (reason, specialty, adapter)
    assert (found.confidence, found.in_scope, found.alternatives) == (None, None, ())
    assert found.notice == "language_not_supported"


PROBABILITY = st.floats(0, 1)


@st.composite
def any_scores(draw: st.DrawFn) -> Scores:
    raw = [draw(st.floats(0.01, 1)) for _ in LABELS]
    shares = [value / math.fsum(raw) for value in raw]
    return Scores(dict(zip(LABELS, shares, strict=True)), draw(PROBABILITY), draw(st.booleans()))


@given(any_scores(), any_scores(), st.integers(1, 3))
def test_a_specialist_speaks_only_above_both_thresholds(
    last: Scores, conversation: Scores, num_turns: int
) -> None:
    classification = Classification(
        last, last if num_turns == 1 else conversation, num_turns, "en", ()
    )
    found = decide(classification, thresholds=THRESHOLDS, adapters=ADAPTERS, base_languages=("en",))
    named = found.specialty is not None
    assert named == (found.reason in (Reason.CONFIDENT, Reason.KEPT, Reason.NO_ADAPTER))
    assert (found.adapter is not None) == (found.reason in (Reason.CONFIDENT, Reason.KEPT))
    if named:
        assert found.confidence is not None
        assert found.confidence >= THRESHOLDS.min_confidence
        margin = found.confidence - found.alternatives[1].probability
        assert margin >= THRESHOLDS.min_margin
        assert found.in_scope
        assert last.has_signal or (num_turns > 1 and conversation.has_signal)
