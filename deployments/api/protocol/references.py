"""Passages in replies: citations, what of an answer they support, and GET /v1/references/search."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deployments.api.protocol.base import Count, ReplyModel, RequestModel
from deployments.setting_sections import GroundingMode
from references.passage import LISTS, Passage
from references.shelf import Hit
from references.support import Support

Grounding = Annotated[
    GroundingMode | None,
    Field(
        description="quote: passages of the reference shelf instead of a generated answer; cite: "
        "the answer is made from passages and checked; off; null: as the server is set"
    ),
]


class CitationReply(ReplyModel):
    """A passage, word for word. HTML in it is text."""

    number: int = Field(ge=1, description="as in the answer's markers: 1 for [1]")
    id: str
    title: str
    source: str = Field(description="publisher, work and version")
    url: str | None
    licence: str
    language: str
    text: str

    @classmethod
    def of(cls, passage: Passage, number: int) -> "CitationReply":
        return cls(**_fields(passage, number))


def _fields(passage: Passage, number: int) -> dict[str, Any]:
    names = ("id", "title", "source", "licence", "language", "text")
    fields = {name: getattr(passage, name) for name in names}
    return {"number": number, **fields, "url": passage.url or None}


class SupportReply(ReplyModel):
    """One sentence of the answer: its characters (code points) from `start` to `end`."""

    start: Count
    end: Count
    citation: int | None = Field(description="number of the passage that supports it, or null")

    @classmethod
    def of(cls, found: Support) -> "SupportReply":
        return cls(start=found.start, end=found.end, citation=found.citation)


class FoundPassage(CitationReply):
    score: float = Field(description="the higher the better; of one search only")
    support: float = Field(description="0 to 1: how much of the question the passage answers to")

    @classmethod
    def found(cls, hit: Hit, number: int) -> "FoundPassage":
        fields = _fields(hit.passage, number)
        return cls(**fields, score=round(hit.score, 4), support=round(hit.support, 4))


class SearchQuery(RequestModel, strict=False):
    """The query of GET /v1/references/search."""

    q: str = Field(description="a question, or words; its length is limited by the server")
    limit: int = Field(default=3, ge=1, le=20, description="most passages")
    language: Literal["en", "fr"] | None = Field(
        default=None, description="of `q`; default: what its words look like"
    )


class PassageBody(RequestModel):
    """A passage to put on the shelf; `docs/references.md` says what each field is."""

    id: str
    title: str
    text: str
    source: str
    licence: str
    language: Literal["en", "fr"] = "en"
    synonyms: list[str] = Field(default=[], max_length=100)
    specialty: str | None = None
    url: str = ""
    identifiers: list[str] = Field(default=[], max_length=100)
    kind: Literal["term", "disease"] = "term"
    prominence: float = Field(default=0.0, ge=0, le=1)
    wordings_en: list[str] = Field(default=[], max_length=100)
    wordings_fr: list[str] = Field(default=[], max_length=100)

    def passage(self) -> Passage:
        return Passage(**dict(self) | {name: tuple(getattr(self, name)) for name in LISTS})


class AddPassages(RequestModel):
    """POST /v1/references/passages."""

    passages: list[PassageBody] = Field(min_length=1, max_length=1000)
    replace: bool = Field(default=False, description="a passage whose id is there is replaced")


class RemovePassages(RequestModel):
    """DELETE /v1/references/passages: by id, or all of a source."""

    ids: list[str] = Field(default=[], max_length=10_000)
    source: str | None = Field(default=None, description="as GET /v1/references/sources has it")

    @model_validator(mode="after")
    def _some(self) -> "RemovePassages":
        if not self.ids and self.source is None:
            raise ValueError("nothing is named: give ids or a source")
        return self


class ShelfReply(ReplyModel):
    version: str = Field(description="of the shelf, after a change the new one")


class SourceReply(ReplyModel):
    source: str
    licence: str
    specialty: str | None
    language: str
    passages: Count


class SourcesReply(ShelfReply):
    sources: list[SourceReply]


class SearchReply(ReplyModel):
    version: str = Field(description="of the shelf")
    passages: list[FoundPassage] = Field(description="the best first; []: nothing was found")
