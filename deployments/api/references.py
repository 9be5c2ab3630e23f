"""The reference shelf over HTTP: search it, and, for operators, what is on it and changes.

A change is one step, and every router replica sees it with its next search. 422: passages are
refused, every problem is listed, and nothing was changed. 503: the shelf cannot be read or written.
"""

from collections import Counter
from collections.abc import Awaitable
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from deployments.api.errors import ApiError, Endpoint, invalid
from deployments.api.grounding import no_shelf
from deployments.api.protocol.base import json_response
from deployments.api.protocol.references import (
    AddPassages,
    FoundPassage,
    RemovePassages,
    SearchQuery,
    SearchReply,
    ShelfReply,
    SourceReply,
    SourcesReply,
)
from deployments.api.request_body import check_text, parse_request, read_request
from deployments.messages import Backend
from references.passage import PassagesRefused, ReferencesError

MAX_BODY_BYTES = 8 * 1024 * 1024  # read and checked on the event loop


class ReferencesEndpoint:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def admin(self) -> dict[str, Endpoint]:
        """Return the operator's endpoints by their name in operations.py."""
        return {
            "reference_sources": self.sources,
            "add_passages": self.add,
            "remove_passages": self.remove,
        }

    async def search(self, request: Request) -> Response:
        query = _query_of(request)
        check_text("q", query.q, max_chars=self._backend.limits.max_question_chars)
        shelf = self._backend.references
        try:
            hits = await shelf.search(query.q, language=query.language, limit=query.limit)
            version = await shelf.version()
        except ReferencesError as error:
            raise no_shelf(error) from None
        passages = [FoundPassage.found(hit, number) for number, hit in enumerate(hits, 1)]
        return json_response(SearchReply(version=version, passages=passages))

    async def sources(self, request: Request) -> Response:
        shelf = self._backend.references
        try:
            found, version = await shelf.sources(), await shelf.version()
        except ReferencesError as error:
            raise no_shelf(error) from None
        sources = [SourceReply(**asdict(source)) for source in found]
        return json_response(SourcesReply(version=version, sources=sources))

    async def add(self, request: Request) -> Response:
        asked = await read_request(request, AddPassages, MAX_BODY_BYTES)
        passages = [body.passage() for body in asked.passages]
        change = self._backend.references.add(passages, replace=asked.replace)
        return json_response(ShelfReply(version=await _changed(change)), 201)

    async def remove(self, request: Request) -> Response:
        asked = await read_request(request, RemovePassages, MAX_BODY_BYTES)
        change = self._backend.references.remove(asked.ids, source=asked.source)
        return json_response(ShelfReply(version=await _changed(change)))


async def _changed(change: Awaitable[str]) -> str:
    try:
        return await change
    except PassagesRefused as error:
        problems = list(error.problems)
        raise ApiError(
            422, "passages_refused", "; ".join(problems), detail={"problems": problems}
        ) from None
    except ReferencesError as error:
        raise ApiError(
            503, "references_unavailable", str(error), headers={"retry-after": "60"}
        ) from None


def _query_of(request: Request) -> SearchQuery:
    """Read the query.

    Raises:
        ApiError: 400, naming every field that is unknown, repeated or wrong.
    """
    pairs = request.query_params.multi_items()
    repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if repeated:
        raise invalid(ascii(repeated[0][:60])[1:-1], "is given more than once: send it once")
    return parse_request(SearchQuery, dict(pairs))
