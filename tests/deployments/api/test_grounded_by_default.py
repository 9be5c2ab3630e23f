"""A server that quotes unless somebody is named, markers in streams, and lists of diseases."""

from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from deployments.live_settings import RouterLiveSettings
from references.quote import quote, quote_diseases
from tests.deployments.api.test_grounding import (
    INVENTED,
    NOTHING,
    QUESTION,
    Says,
    ask,
    chat,
    chunks_of,
    live,
    prompt_of,
    stream,
)
from tests.deployments.conftest import ADVICE
from tests.references.passages import ECZEMA, MARFAN

BARE = "Eczema is characterized by scaly lesions."
SIGNS = "Which disease has tall stature and recorded signs?"  # of MARFAN's text
LISTED = quote_diseases([MARFAN], "en", [["tall stature", "recorded signs"]])


@pytest.fixture
def backend() -> Says:
    says = Says()
    says.said = BARE
    says.limits = live(mode="quote", named="cite")
    return says


async def completion(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    reply = await client.post("/v1/completions", json={"prompt": QUESTION, **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def test_whoever_is_named_is_heard(client: httpx.AsyncClient, backend: Says) -> None:
    assert (await ask(client))["answer"] == quote([ECZEMA])
    assert (await chat(client)).json()["choices"][0]["message"]["content"] == quote([ECZEMA])
    assert (await completion(client))["choices"][0]["text"] == quote([ECZEMA])
    assert backend.calls == []
    for more in ({"specialty": "dermatology"}, {"consult": 1}):
        assert (await ask(client, **more))["answer"] == f"{BARE} [1]"
    for model in ("derm-1", "base"):
        reply = (await chat(client, model=model)).json()
        assert reply["choices"][0]["message"]["content"] == f"{BARE} [1]"
        assert (await completion(client, model=model))["choices"][0]["text"] == f"{BARE} [1]"
    assert len(backend.calls) == 6
    assert prompt_of(backend).startswith("Passages:\n[1] ")


async def test_a_request_decides_for_itself(client: httpx.AsyncClient, backend: Says) -> None:
    assert (await ask(client, grounding="cite"))["answer"] == f"{BARE} [1]"
    assert (await ask(client, grounding="off"))["answer"] == BARE
    named = {"specialty": "dermatology"}
    assert (await ask(client, **named, grounding="quote"))["answer"] == quote([ECZEMA])
    assert (await ask(client, **named, grounding="off"))["answer"] == BARE


@pytest.mark.parametrize("named", [None, "cite", "quote", "off", False])
def test_the_setting_named(named: object) -> None:
    settings = live(mode="quote", named=named).references
    assert settings.named == ("off" if named is False else named)


@pytest.mark.parametrize("named", ["on", True, "", 1, "CITE", ["cite"]])
def test_another_word_for_named_is_refused(named: object) -> None:
    with pytest.raises(ValueError, match="named"):
        RouterLiveSettings.model_validate({"references": {"named": named}})


async def test_markers_come_in_the_text_of_a_stream(
    client: httpx.AsyncClient, backend: Says
) -> None:
    backend.said = f"{BARE} Lemons help. {BARE} [2]"
    expected = f"{BARE} [1] Lemons help. {BARE} [1]"
    events = await stream(client, grounding="cite")
    assert [name for name, _ in events][:3] == ["route", "citations", "token"]
    assert "".join(data["text"] for name, data in events if name == "token") == expected
    support = dict(events)["answer"]["support"]
    said = [(expected[s["start"] : s["end"]], s["citation"]) for s in support]
    assert said == [(f"{BARE} [1]", 1), ("Lemons help.", None), (f"{BARE} [1]", 1)]
    assert (await ask(client, grounding="cite"))["support"] == support
    opening, *chunks = chunks_of((await chat(client, grounding="cite", stream=True)).text)
    assert [c["id"] for c in opening["polyclinic"]["citations"]] == ["T:2"]
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == expected
    notes = chunks[-1]["choices"][0]["delta"]["annotations"]
    places = [(n["url_citation"]["start_index"], n["url_citation"]["end_index"]) for n in notes]
    assert [expected[start:end] for start, end in places] == ["[1]", "[1]"]
    asked = {"prompt": QUESTION, "grounding": "cite", "stream": True}
    opening, *chunks = chunks_of((await client.post("/v1/completions", json=asked)).text)
    assert [c["id"] for c in opening["polyclinic"]["citations"]] == ["T:2"]
    assert opening["choices"][0]["text"] + "".join(c["choices"][0]["text"] for c in chunks) == (
        expected
    )
    assert chunks[-1]["polyclinic"]["support"] == support


async def test_an_answer_cut_short_is_checked_to_its_end(
    client: httpx.AsyncClient, backend: Says
) -> None:
    backend.said = f"{BARE} Eczema is characterized by scaly"
    body = await ask(client, grounding="cite")
    assert body["answer"] == f"{BARE} [1] Eczema is characterized by scaly [1]"
    assert body["finish_reason"] == "length"


async def test_signs_get_a_list_of_diseases(client: httpx.AsyncClient, backend: Says) -> None:
    for setting in ("quote", "cite"):
        backend.limits = live(mode=setting)
        body = await ask(client, question=SIGNS)
        assert body["answer"] == LISTED
        assert "not a diagnosis" in LISTED
        assert "[1] Marfan syndrome: tall stature; recorded signs (" in LISTED
        assert [c["id"] for c in body["citations"]] == ["D:1"]
        assert (body["notice"], body["support"]) == ("matching_signs", [])
    events = await stream(client, question=SIGNS)
    assert [name for name, _ in events] == ["route", "citations", "token", "answer", "done"]
    assert events[0][1]["notices"] == ["matching_signs"]
    assert events[2][1]["text"] == LISTED
    reply = (await chat(client, messages=[{"role": "user", "content": SIGNS}])).json()
    message = ChatCompletion.model_validate(reply).choices[0].message
    assert message.content == LISTED
    assert message.annotations
    assert message.annotations[0].url_citation.url == MARFAN.url
    assert (await completion(client, prompt=SIGNS))["choices"][0]["text"] == LISTED
    assert backend.calls == []
    assert "matching" not in (await ask(client, question=SIGNS, grounding="off"))["notices"]


async def test_signs_of_several_turns(client: httpx.AsyncClient, backend: Says) -> None:
    said = ["I have recorded signs", "Go on.", "and tall stature. Which disease could it be?"]
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), said, strict=True)
    ]
    reply = (await chat(client, messages=turns)).json()
    assert reply["polyclinic"]["notices"] == ["matching_signs"]
    assert [c["id"] for c in reply["polyclinic"]["citations"]] == ["D:1"]


async def test_a_french_list_and_advice_before_it(client: httpx.AsyncClient) -> None:
    asked = "Bonjour, quelle maladie donne tall stature et recorded signs ?"
    body = await ask(client, question=asked)
    assert body["answer"].startswith("Maladies dont les signes enregistrés correspondent")
    body = await ask(client, question=f"Her face droops. {SIGNS}")
    assert body["answer"] == ADVICE + LISTED
    assert body["notices"] == ["urgent", "matching_signs"]


async def test_one_sign_or_none_is_searched(client: httpx.AsyncClient, backend: Says) -> None:
    body = await ask(client, question="Which disease has tall stature?")
    assert (body["answer"], body["notices"]) == (NOTHING, ["no_source"])
    body = await ask(client, question="Which disease is eczema?")
    assert body["answer"] == quote([ECZEMA])


async def test_a_second_opinion_that_is_not_supported(
    client: httpx.AsyncClient, backend: Says
) -> None:
    backend.said = INVENTED
    body = await ask(client, consult=1)
    assert (body["answer"], body["notices"]) == (quote([ECZEMA]), ["ungrounded"])
    assert body["opinions"][0]["citations"] == body["citations"]
