"""GET /v1/references/search: the passages that the reference shelf has for a question."""

from collections import Counter

from starlette.requests import Request
from starlette.responses import Response

from deployments.api.errors import invalid
from deployments.api.grounding import no_shelf
from deployments.api.protocol.base import json_response
from deployments.api.protocol.references import FoundPassage, SearchQuery, SearchReply
from deployments.api.request_body import check_text, parse_request
from deployments.messages import Backend
from references.passage import ReferencesError


class ReferencesEndpoint:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

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
