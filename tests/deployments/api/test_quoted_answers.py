"""Answers that quote the reference shelf, without the model: every path, whole and streamed."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.engine.request import ErrorInfo
from references.quote import quote
from references.shelf import Hit
from tests.deployments.api.test_grounding import NOTHING, QUESTION, Says, ask, chat, live, stream
from tests.deployments.conftest import UNCACHED
from tests.references.passages import ECZEMA, STONES


@pytest.fixture
def backend() -> Says:
    return Says()


async def test_quote_answers_without_the_model(client: httpx.AsyncClient, backend: Says) -> None:
    for setting, more in (("off", {"grounding": "quote"}), ("quote", {})):
        backend.limits = live(mode=setting)
        body = await ask(client, **more)
        assert body["answer"] == quote([ECZEMA])
        assert ECZEMA.text in body["answer"]
        assert (body["finish_reason"], body["notices"], body["support"]) == ("stop", [], [])
        assert body["usage"] == {
            "prompt_tokens": 0,
            **UNCACHED,
            "completion_tokens": 0,
            "total_tokens": 0,
        }
        assert body["citations"] == [
            {
                "number": 1,
                "id": "T:2",
                "title": ECZEMA.title,
                "source": "Test source",
                "licence": "CC0",
                "language": "en",
                "text": ECZEMA.text,
                "url": "https://example.org/1",
            }
        ]
    assert backend.calls == []
    assert [outcome.outcome for outcome in backend.outcomes] == ["stop"] * 2


async def test_quote_needs_no_model(
    client: httpx.AsyncClient, backend: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the queue is full, or no model replica is there, passages are still quoted."""
    busy = ErrorInfo("queue_full", "busy", retry_after_s=1)
    monkeypatch.setattr(backend, "refusal", lambda timeout_s: busy)
    asked = {"question": QUESTION, "grounding": "cite"}
    assert (await client.post("/ask", json=asked)).status_code == 503
    assert (await chat(client, grounding="cite")).status_code == 503
    assert (await ask(client, grounding="quote"))["answer"] == quote([ECZEMA])
    assert (await chat(client, grounding="quote")).status_code == 200


async def test_quote_streams(client: httpx.AsyncClient, backend: Says) -> None:
    events = await stream(client, grounding="quote")
    assert [name for name, _ in events] == ["route", "citations", "token", "answer", "done"]
    assert events[1][1]["opinion"] == 0
    assert [c["id"] for c in events[1][1]["citations"]] == ["T:2"]
    assert events[2][1]["text"] == quote([ECZEMA])
    assert (events[3][1]["finish_reason"], events[3][1]["support"]) == ("stop", [])
    assert "answer" not in events[3][1]
    assert backend.calls == []


async def test_quote_in_the_questions_language(client: httpx.AsyncClient) -> None:
    body = await ask(client, question="Bonjour, eczema ?", grounding="quote")
    assert body["answer"].startswith("Ce que disent les références :")
    body = await ask(client, question="Bonjour, une inconnue ?", grounding="quote")
    assert body["answer"] == "Aucune source n'a été trouvée pour cette question."
    assert body["notices"] == ["language_not_supported", "no_source"]


async def test_quote_on_openais_paths(client: httpx.AsyncClient, backend: Says) -> None:
    reply = (await chat(client, grounding="quote")).json()
    text = reply["choices"][0]["message"]["content"]
    assert text == quote([ECZEMA])
    assert reply["usage"]["total_tokens"] == 0
    start = text.index("[1]")
    assert reply["choices"][0]["message"]["annotations"] == [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": start + 3,
                "title": ECZEMA.title,
                "url": ECZEMA.url,
            },
        }
    ]
    assert [c["id"] for c in reply["polyclinic"]["citations"]] == ["T:2"]
    prompts = [QUESTION, "kidney stones", "nothing of the kind"]
    asked = {"prompt": prompts, "grounding": "quote"}
    choices = (await client.post("/v1/completions", json=asked)).json()["choices"]
    expected = [quote([ECZEMA]), quote([STONES]), NOTHING]
    assert [choice["text"] for choice in choices] == expected
    ids = [[c["id"] for c in choice["polyclinic"]["citations"]] for choice in choices]
    assert ids == [["T:2"], ["T:3"], []]
    assert [c["polyclinic"]["notice"] for c in choices] == [None, None, "no_source"]
    assert backend.calls == []


@pytest.mark.parametrize(
    ("question", "support", "is_quoted"),
    [
        ("football: what is eczema?", 0.58, False),
        ("football: what is eczema?", 0.8, True),
        ("what is eczema?", 0.58, True),
        ("football: her face droops, eczema?", 0.58, True),  # urgent: whoever it is, it is medicine
    ],
)
async def test_what_is_no_medicine_needs_a_passage_that_fits_well(
    client: httpx.AsyncClient, backend: Says, question: str, support: float, is_quoted: bool
) -> None:
    search = backend.references.search

    async def supported(question: str, **more: Any) -> list[Hit]:
        return [replace(hit, support=support) for hit in await search(question, **more)]

    backend.references.search = supported  # type: ignore[method-assign]
    body = await ask(client, question=question, grounding="quote")
    assert (quote([ECZEMA]) in body["answer"], "no_source" in body["notices"]) == (
        is_quoted,
        not is_quoted,
    )
