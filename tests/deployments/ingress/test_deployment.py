"""The router's replica without Ray: single questions share a run, and each gets its own route.

Serve's batching works in any event loop, once it is told how many requests its replica takes; the
metrics, which Ray would collect, stay unsent. HTTP and the handle to the model are driven by the
end-to-end tests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from ray.exceptions import ActorDiedError

from adapters.storage.last_good import last_good_folder
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.ingress import deployment, references_source
from deployments.ingress.deployment import RouterReplica
from deployments.ingress.references_source import ReferencesSource
from deployments.settings import Settings
from references.default_shelf import open_shelf
from router.classifier import Classifier
from router.policy import Classification, Reason
from tests.deployments.ingress.test_model_watch import GONE, Replicas
from tests.references.passages import ALL
from tests.router.small_questions import OUT_OF_SCOPE, small_questions

# Serve keeps the queue of a batched method with the class, and the queue belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Spy:
    """A classifier that counts its runs."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def classify(self, conversations: Sequence[Sequence[str]]) -> list[Classification]:
        self.sizes.append(len(conversations))
        return self._classifier.classify(conversations)


class NoModel:
    """A handle outside of a cluster."""

    def broadcast(self, method: str, *args: Any) -> Any:
        raise RuntimeError("no cluster")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "catalog.yaml").write_text(
        "revision: 0\nbase_models:\n  - {name: tiny, prompt_format: plain, languages: [en], "
        "loop_words: 5, repetition_penalty: 1.1}\n"
    )
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def replica(
    tiny_router_dir: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RouterReplica]:
    config = SimpleNamespace(max_ongoing_requests=300)
    context = SimpleNamespace(_deployment_config=config)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    settings = Settings.model_validate(
        {
            "base_model": "tiny",
            "adapters": str(catalog),
            "state_dir": str(catalog / "state"),
            "router": {"artefact": str(tiny_router_dir)},
        }
    )
    found = RouterReplica(settings, NoModel())  # type: ignore[arg-type]
    yield found
    found._followed.stop()
    found._watch.stop()
    found._router._thread.join(timeout=10)
    assert not found._router._thread.is_alive()


async def test_single_questions_share_a_run_and_keep_their_routes(replica: RouterReplica) -> None:
    spy = Spy(replica._router.current)
    replica._router.current = spy  # type: ignore[assignment]
    questions = [q for q in small_questions(2) if q.specialty != OUT_OF_SCOPE][:96]
    routes = await asyncio.gather(*(replica.classify([[q.text]]) for q in questions))
    assert all(len(found) == 1 for found in routes)
    hits = [found[0].specialty == q.specialty for found, q in zip(routes, questions, strict=True)]
    assert sum(hits) / len(hits) > 0.95
    assert {found[0].reason for found in routes} <= {Reason.NO_ADAPTER, Reason.LOW_CONFIDENCE}
    assert sum(spy.sizes) == 96
    assert len(spy.sizes) < 20
    assert max(spy.sizes) <= 32
    single = [(await replica.classify([[q.text]]))[0] for q in questions[:8]]
    for alone, found in zip(single, routes, strict=False):
        assert alone.specialty == found[0].specialty
        assert alone.confidence == pytest.approx(found[0].confidence, abs=1e-3)


async def test_several_questions_of_one_call_run_as_they_are(replica: RouterReplica) -> None:
    spy = Spy(replica._router.current)
    replica._router.current = spy  # type: ignore[assignment]
    conversations = [["tell me about eczema rash please"], ["is kidney urine worrying"]] * 20
    routes = await replica.classify(conversations)
    assert [r.specialty for r in routes] == ["dermatology", "nephrology_urology"] * 20
    assert spy.sizes == [40]


async def test_the_event_loop_goes_on(replica: RouterReplica) -> None:
    """Classification runs in a thread: a timer ticks meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await replica.classify([["rash " * 2000]] * 32)
    ticking.cancel()
    assert ticks >= 3


async def test_live_settings_move_the_thresholds(replica: RouterReplica) -> None:
    classifier = replica._router.current
    assert replica._thresholds(classifier) == classifier.thresholds
    replica.reconfigure({"min_confidence": 0.9, "min_margin": 0.8})
    moved = replica._thresholds(classifier)
    assert (moved.min_confidence, moved.min_margin) == (0.9, 0.8)
    assert moved.min_in_scope == classifier.thresholds.min_in_scope
    replica.reconfigure({"min_confidence": 7})  # refused: what was in force stays
    assert replica._thresholds(classifier) == moved
    replica.reconfigure({"reload_check_s": 0.0})
    assert replica._router._period_s() == 0
    assert replica._thresholds(classifier) == classifier.thresholds


async def test_a_request_may_have_its_own_threshold(replica: RouterReplica) -> None:
    """Also in a run that it shares with others."""
    replica.reconfigure({"min_confidence": 0.0, "min_margin": 0.0, "min_in_scope": 0.0})
    question = ["eczema rash or kidney urine or dent merci"]
    [usual] = await replica.classify([question])
    assert usual.specialty is not None
    assert usual.confidence is not None
    assert usual.confidence < 1, "no threshold is above it: nothing is tested"
    routes = await asyncio.gather(
        replica.classify([question], 0.0),
        replica.classify([question], 1.0),
        replica.classify([question]),
    )
    assert [found[0].specialty for found in routes] == [usual.specialty, None, usual.specialty]
    assert routes[1][0].reason is Reason.LOW_CONFIDENCE


async def test_the_thresholds_in_force_decide(replica: RouterReplica) -> None:
    question = [["football recipe guitar weather"]]
    assert (await replica.classify(question))[0].reason is Reason.OUT_OF_SCOPE
    replica.reconfigure({"min_in_scope": 0.0})
    assert (await replica.classify(question))[0].reason is not Reason.OUT_OF_SCOPE


async def test_a_named_specialty_needs_no_classification(replica: RouterReplica) -> None:
    found = replica.explicit("dentistry", ["what can I do about my tooth"])
    assert (found.reason, found.specialty) == (Reason.NO_ADAPTER, "dentistry")
    french = replica.explicit(None, ["parlez moi de dent merci"])
    assert french.reason is Reason.BASE_REQUESTED
    assert (french.language, french.notice) == ("fr", "language_not_supported")
    assert replica.answer_language(french) == "English"
    assert "dermatology" in replica.clinic.specialties


async def test_the_base_models_defaults_come_from_the_catalogue(replica: RouterReplica) -> None:
    sampling = replica.clinic.sampling(8)
    found = (sampling.loop_words, sampling.repetition_penalty, sampling.no_repeat_ngram_size)
    assert found == (5, 1.1, 0)


async def test_readiness_answers_from_what_is_known(replica: RouterReplica) -> None:
    replica._watch.stop()
    model = {"config": replica._config, "replica": "m1", "adapters": [], "base_model": "tiny"}
    replicas = Replicas(model)
    replica._watch._replicas = replicas
    replica._watch.look()
    is_ready, report = await replica.readiness()
    assert is_ready
    assert (report["base_model"], report["degraded"]) == ("tiny", [])
    assert report["router"]["catalog_revision"] == 0
    assert replica.refusal(10.0) is None
    for gone in (GONE, [ActorDiedError()]):
        replicas.answers = gone
        replica._watch.look()
        is_ready, report = await replica.readiness()
        assert (is_ready, report["cause"]) == (False, "no model replica is running")
        refused = replica.refusal(10.0)
        assert refused is not None
        assert (refused.code, refused.retry_after_s) == ("no_model_replica", 10)
    replicas.answers = [TimeoutError()]  # it may only be busy: what was heard counts for a while
    replica._watch.look()
    assert (await replica.readiness())[0]
    assert replica.refusal(10.0) is None


async def test_red_flags_are_found_beside_the_router_and_can_be_switched_off(
    replica: RouterReplica,
) -> None:
    emergency = "his face droops and he cannot speak"
    (unsure,) = await replica.classify([[emergency]])
    named = replica.explicit("dentistry", ["my baby has a fever", "he is six weeks old"])
    assert (unsure.red_flags, named.red_flags) == (("stroke",), ("infant_fever",))
    assert unsure.notices[0] == "urgent"
    assert unsure.advice.startswith("This may be an emergency.")
    french = replica.explicit(None, ["je ne peux plus respirer"])
    assert french.notices == ("urgent", "language_not_supported")
    assert french.advice.startswith("Il peut s'agir d'une urgence.")
    assert replica.answer_language(french) == "English"
    replica.reconfigure({"red_flags": False})
    assert (await replica.classify([[emergency]]))[0].notices == ()
    replica.reconfigure({})
    assert (await replica.classify([[emergency]]))[0].red_flags == ("stroke",)


async def test_a_question_that_would_wait_too_long_is_refused_at_once(
    replica: RouterReplica,
) -> None:
    replica._watch.stop()
    ended = TokenEvent("r", "", 5, 5, Timings(0.0, 0.5, 4.0), FinishReason.STOP)
    replica._wait.saw(ended)
    rows = replica._settings.engine.max_rows
    replica._admission.num_running = 3 * rows  # two rounds of four seconds before it
    assert replica.refusal(9.0) is None
    refused = replica.refusal(5.0)
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == ("queue_full", 3)
    assert "in about 8 s" in refused.message
    replica.reconfigure({"max_wait_s": 6.0})
    assert replica.refusal(9.0) is not None
    replica._wait = type(replica._wait)()
    replica._admission.num_running = 2 * rows + replica._settings.engine.max_waiting + 1
    full = replica.refusal(9.0)
    assert full is not None
    limit = replica._settings.engine.max_waiting
    assert full.message.startswith(f"{limit + 1} requests are waiting (limit {limit})")


async def test_a_draining_replica_says_so_and_counts_what_runs(replica: RouterReplica) -> None:
    replica._watch.stop()
    assert replica.in_progress()["num_running"] == 0
    replica._admission.num_running = 3
    assert replica.drain()["num_running"] == 3
    is_ready, report = await replica.readiness()
    assert (is_ready, report["cause"]) == (False, "draining: the server is stopping")


async def test_where_the_state_and_its_copies_lie_is_not_shown(
    replica: RouterReplica, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = catalog / "state"
    replica._catalog._problem = f"{state}/catalog.yaml: cannot be read (I/O error)"
    _, report = await replica.readiness()
    assert report["degraded"] == ["<state_dir>/catalog.yaml: cannot be read (I/O error)"]
    assert str(catalog) not in json.dumps(report)
    replica._catalog._problem = None
    copy = f"/home/other/.local/state/{last_good_folder(str(state)).name}"
    theirs = {"degraded": [f"to begin again, remove {copy}", f"remove {copy}/keys.json on it"]}
    monkeypatch.setattr(replica._watch, "readiness", lambda: (theirs, None))
    assert (await replica.readiness())[1]["degraded"] == [
        "to begin again, remove <last_good>",
        "remove <last_good>/keys.json on it",
    ]


async def test_readiness_tells_of_settings_that_were_refused(
    replica: RouterReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve deploy` says that all is well, and a new replica would begin with the defaults."""
    theirs = "user_config of Model was refused, and the one before is in force: see the log"
    report = {"degraded": [theirs]}
    monkeypatch.setattr(replica._watch, "readiness", lambda: (report, None))
    replica.reconfigure({"drain_s": 7.0})
    assert (await replica.readiness())[1]["degraded"] == [theirs]
    replica.reconfigure({"drain_s": -1.0})
    is_ready, found = await replica.readiness()
    ours = theirs.replace("Model", "Router")
    assert (is_ready, found["degraded"]) == (True, [ours, theirs])
    assert replica.limits.drain_s == 7.0
    replica.reconfigure({"drain_s": 8.0})
    assert (await replica.readiness())[1]["degraded"] == [theirs]


async def test_readiness_tells_of_the_shelf(
    replica: RouterReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every mode, also while the model does not answer."""
    path = tmp_path / "shelf.db"
    monkeypatch.setattr(references_source, "LOOK_S", 20.0)
    monkeypatch.setattr(replica, "references", ReferencesSource(path))
    monkeypatch.setattr(deployment, "replica_id", lambda: "router-1")

    async def told(mode: Any) -> dict[str, Any]:
        replica.reconfigure({"references": {"mode": mode}})
        is_ready, report = await replica.readiness()
        assert not is_ready
        problem = report["references"]["problem"]
        assert (f"references: {problem}" in report["degraded"]) == bool(problem)
        assert (await replica.traffic())["references"] == report["references"]
        return dict(report["references"])

    nothing = {"version": None, "passages": None, "problem": None}
    assert await told("off") == await told(False) == {"mode": "off", **nothing}
    missing = await told("cite")
    assert (missing["mode"], missing["passages"]) == ("cite", None)
    assert "there is no shelf" in missing["problem"]
    version = open_shelf(path).add(ALL)
    found = {"version": version, "passages": len(ALL), "problem": None}
    assert await told("quote") == {"mode": "quote", **found}
    replica.reconfigure({"references": {"mode": "sometimes"}})
    assert replica.limits.references.mode == "quote", "a bad setting changes nothing"
    replica.reconfigure({})
