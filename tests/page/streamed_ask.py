"""POST /ask with `stream` and `consult`, for an API that does not have them yet.

The contract that the page is written for. The stand-in clinic takes the API's own /ask as soon as
its request has a field `stream`.
"""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from deployments.calls import Backend, GenerationCall, Outcome, Turn
from deployments.engine.request import SamplingParams, TokenEvent
from deployments.http_io import engine_error
from deployments.input_checks import check_text
from deployments.replies import route_reply, timings_reply, usage_reply
from router.policy import Route

REQUEST_ID = "0affcf4a-0082"


def with_streamed_ask(app: Starlette, backend: Backend, adapters: Mapping[str, str]) -> None:
    """Puts the route in front of the API's own."""

    async def ask(request: Request) -> Response:
        asked = await request.json()
        question = asked["question"]
        check_text("question", question, max_chars=backend.limits.max_question_chars)
        if "specialty" in asked:
            route = backend.explicit(asked["specialty"], question)
        else:
            route = (await backend.classify([[question]]))[0]
        heads = _heads(route, asked.get("consult"), adapters)
        calls = [
            GenerationCall(
                REQUEST_ID, (Turn("user", question),), h["adapter"], SamplingParams(160), True
            )
            for h in heads
        ]
        answers = [backend.generate(call) for call in calls]
        firsts = [await anext(answer) for answer in answers]
        if firsts[0].error is not None:
            refusal = engine_error(firsts[0].error)
            return JSONResponse(refusal.body(), refusal.status, refusal.headers)
        body = _stream(backend, route, heads, answers, firsts)
        return StreamingResponse(body, media_type="text/event-stream")

    app.router.routes.insert(0, HttpRoute("/ask", ask, methods=["POST"]))


def _heads(route: Route, consult: int | None, adapters: Mapping[str, str]) -> list[dict[str, Any]]:
    chosen: list[tuple[str | None, float | None]] = [(route.specialty, route.confidence)]
    if consult:
        able = [a for a in route.alternatives if a.specialty in adapters]
        chosen = [(a.specialty, a.probability) for a in able[:consult]]
    return [
        {
            "opinion": number,
            "specialty": specialty,
            "probability": probability,
            "adapter": adapters.get(specialty) if specialty else None,
            "adapter_version": "2" if specialty in adapters else None,
        }
        for number, (specialty, probability) in enumerate(chosen)
    ]


async def _stream(
    backend: Backend,
    route: Route,
    heads: list[dict[str, Any]],
    answers: list[AsyncGenerator[TokenEvent, None]],
    firsts: list[TokenEvent],
) -> AsyncGenerator[str, None]:
    version = heads[0]["adapter_version"]
    reply = {**route_reply(route), "adapter_version": version, "opinions": heads}
    yield _event("route", {"id": REQUEST_ID, **reply})
    queue: asyncio.Queue[tuple[int, TokenEvent]] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            await queue.put((number, firsts[number]))
            async for event in answers[number]:
                await queue.put((number, event))
        finally:
            await answers[number].aclose()

    tasks = [asyncio.create_task(pump(number)) for number in range(len(answers))]
    try:
        num_open = len(tasks)
        errors: list[dict[str, Any]] = []
        while num_open:
            number, event = await queue.get()
            if event.finish_reason is None:
                yield _event("token", {"opinion": number, "text": event.text})
                continue
            num_open -= 1
            outcome = event.error.code if event.error else str(event.finish_reason)
            head = heads[number]
            backend.record(Outcome(head["specialty"], head["adapter"], outcome, route.confidence))
            if event.error is not None:
                errors.append(dataclasses.asdict(event.error) | {"request_id": REQUEST_ID})
                yield _event("answer", {"opinion": number, "error": errors[-1]})
                continue
            ended = {"finish_reason": event.finish_reason, "usage": usage_reply(event)}
            times = timings_reply(event, 0.0059)
            yield _event("answer", {"opinion": number, **ended, "timings_ms": times})
        if len(errors) == len(heads):
            yield _event("error", {"error": errors[0]})
            return
        yield _event("done", {"id": REQUEST_ID})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
