"""Answers from the reference shelf, quoted or cited and checked: every path, whole and streamed."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.live_settings import RouterLiveSettings
from deployments.messages import GenerateRequest
from references.quote import quote
from references.shelf import Hit
from router.policy import Alternative, Route
from tests.deployments.api.ask.conftest import events_of
from tests.deployments.conftest import ADVICE, SmallBackend, error_of
from tests.references.passages import ECZEMA, HAIR, STONES

QUESTION = "What is eczema?"
SUPPORTED = "Eczema is characterized by scaly lesions [1]. "
INVENTED = "It is cured by eating forty lemons at midnight. "
NOTHING = "No source was found for this question."


class Says(SmallBackend):
    """Answers with `said`, word by word."""

    said = SUPPORTED

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        try:
            if self.error:
                yield self._event(call, "", 0, FinishReason.ERROR, self.error)
                return
            words = self.said.strip().split(" ")
            for count, word in enumerate(words, 1):
                end = FinishReason.LENGTH if count == len(words) else None
                yield self._event(call, word if count == 1 else f" {word}", count, end)
        finally:
            self.num_closed += 1


@pytest.fixture
def backend() -> Says:
    return Says()


def live(**references: Any) -> RouterLiveSettings:
    return RouterLiveSettings.model_validate({"references": references})


async def ask(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    reply = await client.post("/ask", json={"question": QUESTION, **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def stream(client: httpx.AsyncClient, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"question": QUESTION, "stream": True, **more}
    return events_of((await client.post("/ask", json=body)).text)


async def chat(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": QUESTION}], **more}
    return await client.post("/v1/chat/completions", json=body)


def chunks_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def prompt_of(backend: SmallBackend) -> str:
    return backend.calls[-1].turns[-1].content


async def test_off_changes_nothing_and_asks_no_shelf(
    client: httpx.AsyncClient, backend: Says
) -> None:
    body = await ask(client)
    assert not {"citations", "support"} & set(body)
    assert prompt_of(backend) == QUESTION
    assert [name for name, _ in await stream(client)][1] == "token"
    reply = (await chat(client)).json()
    assert "annotations" not in reply["choices"][0]["message"]
    assert not {"citations", "support"} & set(reply["polyclinic"])
    backend.limits = live(mode="cite")
    assert "citations" not in await ask(client, grounding="off")
    assert backend.references.asked == []


async def test_cite_puts_the_passages_into_the_prompt(
    client: httpx.AsyncClient, backend: Says
) -> None:
    body = await ask(client, question="eczema or beaded hair?", grounding="cite")
    prompt = prompt_of(backend)
    assert prompt.endswith("\n\neczema or beaded hair?")
    assert prompt.index(f"[1] {ECZEMA.title}: {ECZEMA.text}") < prompt.index(f"[2] {HAIR.title}")
    assert body["answer"] == SUPPORTED.strip()
    assert [c["number"] for c in body["citations"]] == [1, 2]
    assert body["support"] == [{"start": 0, "end": len(SUPPORTED.strip()), "citation": 1}]
    assert (body["finish_reason"], body["notices"]) == ("length", [])
    assert backend.references.shares == [0.0]


async def test_a_sentence_without_support_is_marked(
    client: httpx.AsyncClient, backend: Says
) -> None:
    backend.said = SUPPORTED + "Lemons help."
    body = await ask(client, grounding="cite")
    assert body["answer"] == backend.said
    marked = {body["answer"][s["start"] : s["end"]]: s["citation"] for s in body["support"]}
    assert marked == {SUPPORTED.strip(): 1, "Lemons help.": None}
    events = await stream(client, grounding="cite")
    assert events[-2][1]["support"] == body["support"]


async def test_an_ungrounded_answer_is_replaced(client: httpx.AsyncClient, backend: Says) -> None:
    backend.said = INVENTED + SUPPORTED
    body = await ask(client, grounding="cite")
    assert body["answer"] == quote([ECZEMA])
    assert (body["notice"], body["notices"]) == ("ungrounded", ["ungrounded"])
    assert (body["support"], body["finish_reason"]) == ([], "stop")
    assert body["usage"]["completion_tokens"] > 0
    assert 0.5 < backend.references.shares[0] < 0.6
    events = await stream(client, grounding="cite")
    sent = "".join(data["text"] for name, data in events if name == "token")
    assert sent == backend.said.strip()
    answer = dict(events)["answer"]
    assert answer["answer"] == quote([ECZEMA])
    assert (answer["notices"], answer["support"]) == (["ungrounded"], [])
    assert answer["finish_reason"] == "stop"
    assert dict(events)["route"]["notices"] == []
    backend.limits = live(max_unsupported=0.6)
    assert (await ask(client, grounding="cite"))["answer"] == backend.said.strip()


async def test_cite_on_openais_paths(client: httpx.AsyncClient, backend: Says) -> None:
    reply = (await chat(client, grounding="cite")).json()
    message = reply["choices"][0]["message"]
    (note,) = message["annotations"]
    cited = note["url_citation"]
    assert message["content"][cited["start_index"] : cited["end_index"]] == "[1]"
    assert reply["polyclinic"]["support"][0]["citation"] == 1
    opening, *rest = chunks_of((await chat(client, grounding="cite", stream=True)).text)
    assert [c["id"] for c in opening["polyclinic"]["citations"]] == ["T:2"]
    assert rest[-1]["polyclinic"]["support"] == reply["polyclinic"]["support"]
    assert rest[-1]["choices"][0]["delta"]["annotations"] == [note]
    parsed = ChatCompletion.model_validate(reply).choices[0].message.annotations
    assert parsed
    assert parsed[0].url_citation.url == ECZEMA.url
    backend.said = INVENTED
    reply = (await chat(client, grounding="cite")).json()
    assert reply["choices"][0]["message"]["content"] == quote([ECZEMA])
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["polyclinic"]["notices"] == ["ungrounded"]
    closing = chunks_of((await chat(client, grounding="cite", stream=True)).text)[-1]
    assert closing["polyclinic"]["answer"] == quote([ECZEMA])
    assert closing["polyclinic"]["notices"] == ["ungrounded"]


@pytest.mark.parametrize("problem", [None, "there is no shelf at shelf.db: build it"])
async def test_nothing_found_is_said_first(
    client: httpx.AsyncClient, backend: Says, problem: str | None
) -> None:
    """Also where there is no shelf, if that is the operator's setting. A marker cites nothing."""
    backend.limits, backend.references.problem = live(mode="cite"), problem
    body = await ask(client, question="a red rash")
    said_then = SUPPORTED.replace(" [1]", "").strip()
    assert body["answer"] == f"{NOTHING}\n\n{said_then}"
    assert (body["notices"], body["citations"]) == (["no_source"], [])
    (found,) = body["support"]
    said = body["answer"][found["start"] : found["end"]]
    assert (said, found["citation"]) == (said_then, None)
    assert prompt_of(backend) == "a red rash"
    events = await stream(client, question="a red rash")
    assert events[0][1]["notices"] == ["no_source"]
    assert events[1] == ("citations", {"opinion": 0, "citations": []})
    assert "".join(d["text"] for n, d in events if n == "token") == body["answer"]
    assert backend.references.shares == []


@pytest.mark.parametrize("mode", ["quote", "cite"])
async def test_a_request_for_passages_without_a_shelf_is_refused(
    client: httpx.AsyncClient, backend: Says, mode: str
) -> None:
    backend.references.problem = "there is no shelf at shelf.db: build it"
    requests = [
        client.post("/ask", json={"question": QUESTION, "grounding": mode}),
        client.post("/ask", json={"question": QUESTION, "grounding": mode, "stream": True}),
        chat(client, grounding=mode),
        client.post("/v1/completions", json={"prompt": QUESTION, "grounding": mode}),
    ]
    for request in requests:
        reply = await request
        assert reply.status_code == 503
        error = error_of(reply)
        assert (error["code"], error["param"]) == ("no_reference_shelf", "grounding")
        assert "there is no shelf at shelf.db" in error["message"]
    assert backend.calls == []


async def test_other_words_are_refused(client: httpx.AsyncClient) -> None:
    for path, body in (("/ask", {"question": QUESTION}), ("/v1/completions", {"prompt": "eczema"})):
        for given in ("on", "CITE", False, "", 1, ["cite"]):
            reply = await client.post(path, json={**body, "grounding": given})
            assert reply.status_code == 400, given
            assert error_of(reply)["param"] == "grounding"
        assert (await client.post(path, json={**body, "grounding": None})).status_code == 200


async def test_advice_comes_first_and_moves_the_support(
    client: httpx.AsyncClient, backend: Says
) -> None:
    asked = {"question": "his face droops: eczema?", "grounding": "cite"}
    body = await ask(client, **asked)
    assert body["answer"] == ADVICE + SUPPORTED.strip()
    (found,) = body["support"]
    assert body["answer"][found["start"] : found["end"]] == SUPPORTED.strip()
    assert dict(await stream(client, **asked))["answer"]["support"] == [found]
    messages = [{"role": "user", "content": asked["question"]}]
    reply = (await chat(client, messages=messages, grounding="cite")).json()
    text, note = reply["choices"][0]["message"]["content"], reply["choices"][0]["message"]
    cited = note["annotations"][0]["url_citation"]
    assert text[cited["start_index"] : cited["end_index"]] == "[1]"
    backend.said = INVENTED
    for text in (
        (await ask(client, **asked))["answer"],
        dict(await stream(client, **asked))["answer"]["answer"],
        (await ask(client, question=asked["question"], grounding="quote"))["answer"],
    ):
        assert text == ADVICE + quote([ECZEMA])
    body = await ask(client, question="his face droops", grounding="cite")
    assert body["answer"].startswith(ADVICE + NOTHING)
    assert body["notices"] == ["urgent", "no_source"]


async def test_a_follow_up_is_searched_with_what_was_said(
    client: httpx.AsyncClient, backend: Says
) -> None:
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Kidney stones."},
        {"role": "user", "content": "And the treatment?"},
    ]
    reply = (await chat(client, messages=turns, grounding="cite")).json()
    assert [c["id"] for c in reply["polyclinic"]["citations"]] == ["T:2"]
    assert backend.references.asked == [f"{QUESTION}\nAnd the treatment?"]
    assert [turn.content for turn in backend.calls[-1].turns[:2]] == [QUESTION, "Kidney stones."]


async def test_a_new_topic_after_a_long_talk(client: httpx.AsyncClient, backend: Says) -> None:
    """Three turns are searched together, and the last one alone if they find nothing."""
    said = ["kidney stones", "hello", "a red rash", QUESTION]
    turns = [{"role": "user", "content": text} for text in said]
    search = backend.references.search

    async def only_alone(question: str, **more: Any) -> list[Hit]:
        hits = await search(question, **more)
        return [] if "\n" in question else hits

    backend.references.search = only_alone  # type: ignore[method-assign]
    reply = (await chat(client, messages=turns, grounding="quote")).json()
    assert reply["choices"][0]["message"]["content"] == quote([ECZEMA])
    assert backend.references.asked == [f"hello\na red rash\n{QUESTION}", QUESTION]


async def test_the_part_that_asks_is_searched_alone(
    client: httpx.AsyncClient, backend: Says
) -> None:
    """Kidney stones are denied, and not quoted; what finds nothing is searched as a whole."""
    body = await ask(client, question="I have no kidney stones. What is eczema?", grounding="quote")
    assert body["answer"] == quote([ECZEMA])
    assert backend.references.asked == ["What is eczema"]
    await ask(client, question="About kidney stones: what is a zorb?", grounding="quote")
    assert backend.references.asked[1:] == [
        "what is a zorb",
        "About kidney stones: what is a zorb?",
    ]


async def test_each_opinion_has_its_own_citations(
    client: httpx.AsyncClient, backend: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of passages that fit alike, those of the opinion's own specialty come first."""
    classify = backend.classify

    async def two(*asked: Any) -> list[Route]:
        both = (Alternative("dermatology", 0.9), Alternative("nephrology_urology", 0.1))
        return [dataclasses.replace(route, specialists=both) for route in await classify(*asked)]

    monkeypatch.setattr(backend, "classify", two)
    backend.limits = live(limit=1)
    asked = {"question": "eczema and kidney stones", "consult": 2, "grounding": "cite"}
    body = await ask(client, **asked)
    first, second = body["opinions"]
    assert [c["id"] for c in first["citations"]] == ["T:2"]
    assert [c["id"] for c in second["citations"]] == ["T:3"]
    assert (first["notices"], second["notices"]) == ([], ["ungrounded"])
    assert (first["answer"], second["answer"]) == (SUPPORTED.strip(), quote([STONES]))
    assert (body["citations"], body["notices"]) == (first["citations"], [])
    events = await stream(client, **asked)
    shown = [(d["opinion"], d["citations"][0]["id"]) for n, d in events if n == "citations"]
    assert shown == [(0, "T:2"), (1, "T:3")]
    ends = {d["opinion"]: d.get("answer") for n, d in events if n == "answer"}
    assert ends == {0: None, 1: quote([STONES])}


@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions"])
async def test_the_search_runs_beside_classification(
    client: httpx.AsyncClient, backend: Says, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Each waits for the other to have begun."""
    both = asyncio.Barrier(2)
    classify, search = backend.classify, backend.references.search

    async def classified(*asked: Any) -> list[Route]:
        await asyncio.wait_for(both.wait(), 5)
        return await classify(*asked)

    async def searched(*asked: Any, **more: Any) -> list[Hit]:
        await asyncio.wait_for(both.wait(), 5)
        return await search(*asked, **more)

    monkeypatch.setattr(backend, "classify", classified)
    monkeypatch.setattr(backend.references, "search", searched)
    talk = {"messages": [{"role": "user", "content": QUESTION}]}
    body = {"question": QUESTION} if path == "/ask" else talk
    assert (await client.post(path, json={**body, "grounding": "cite"})).status_code == 200


async def test_a_failure_is_the_models_and_not_opened(
    client: httpx.AsyncClient, backend: Says
) -> None:
    backend.error = ErrorInfo("queue_full", "busy", retry_after_s=1)
    asked = {"question": "a red rash", "grounding": "cite"}
    assert (await client.post("/ask", json=asked)).status_code == 503
    assert (await client.post("/ask", json={**asked, "stream": True})).status_code == 503


async def test_search(client: httpx.AsyncClient, backend: Says) -> None:
    reply = await client.get("/v1/references/search", params={"q": QUESTION, "limit": "2"})
    body = reply.json()
    assert reply.status_code == 200
    assert (body["version"], [p["id"] for p in body["passages"]]) == ("1-0123456789ab", ["T:2"])
    assert body["passages"][0]["text"] == ECZEMA.text
    nothing = await client.get("/v1/references/search", params={"q": "rash", "language": "fr"})
    assert nothing.json()["passages"] == []
    backend.references.problem = "there is no shelf at shelf.db: build it"
    refused = await client.get("/v1/references/search", params={"q": QUESTION})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "no_reference_shelf")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "q"),
        ("q=", "q"),
        ("q=%20", "q"),
        ("q=42", "q"),
        ("q=a%00b", "q"),
        (f"q={'a' * 9000}"[:8100], "q"),
        ("q=a&q=b", "q"),
        ("q=a&limit=0", "limit"),
        ("q=a&limit=21", "limit"),
        ("q=a&limit=x", "limit"),
        ("q=a&language=de", "language"),
        ("q=a&lang=en", "lang"),
    ],
)
async def test_a_bad_search_names_the_field(
    client: httpx.AsyncClient, query: str, param: str
) -> None:
    reply = await client.get(f"/v1/references/search?{query}")
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
