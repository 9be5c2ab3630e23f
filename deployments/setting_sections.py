"""Sections of `args:` that stand for themselves; settings.py puts them together."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deployments.origins import PathText
from deployments.strict_model import StrictModel

GroundingMode = Literal["off", "quote", "cite"]


class ReplicaSettings(StrictModel):
    """How many copies of the model run. Each holds every adapter and has one GPU to itself."""

    min: int = Field(
        default=1,
        ge=0,
        le=1024,
        description="replicas that are kept when idle; 0: none, and the first question waits until "
        "one has started",
    )
    max: int = Field(default=1, ge=1, le=1024, description="most replicas")
    target: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="rows in use and requests waiting, for each replica; null: max_rows",
    )
    upscale_delay_s: float = Field(
        default=5, ge=0, le=86_400, description="seconds above target until a replica is added"
    )
    downscale_delay_s: float = Field(
        default=600, ge=0, le=86_400, description="seconds below target until a replica is removed"
    )
    placement: Literal["adapter", "load"] = Field(
        default="adapter",
        description="adapter: a question goes to a replica that holds its adapter, unless others "
        "are idler; load: to the idler of two",
    )
    surge: bool | None = Field(
        default=None,
        description="a new version starts beside the old one, which needs room for one replica "
        "more; null: where there is room",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max}): raise max, or lower min")
        return self


class RouterSettings(StrictModel):
    """The router deployment: HTTP ingress, classifier and policy."""

    artefact: PathText | None = Field(
        default=None,
        description="trained router, or a folder of versions, which may be empty at first; "
        "null: `router` of the live state (state_dir); until it holds a version, the package's",
    )
    encoder: PathText | None = Field(
        default=None,
        description="Hugging Face encoder (id or folder) of an artefact that was trained on it",
    )
    threads: int = Field(
        default=1, ge=1, le=64, description="threads of the encoder, in each router replica"
    )
    replicas: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        default=1,
        description="router replicas; auto: one for every 8 cores of the cluster, 1 to 16. Limits "
        "of keys hold over all of them",
    )


class SourceSettings(StrictModel):
    """Where an operator may fetch new adapters from."""

    schemes: list[Literal["file", "hf", "s3", "gs", "abfs", "https", "http"]] = Field(
        default=["file", "hf", "s3", "gs", "abfs", "https", "http"],
        min_length=1,
        description="of a source; file: folders of the server, hf: the Hugging Face hub",
    )
    hosts: list[str] = Field(
        default=[],
        max_length=64,
        description="hosts for http and https whose addresses are not public",
    )


class ReferencesSettings(StrictModel):
    """The shelf of passages that answers quote and cite."""

    path: PathText | None = Field(
        default=None,
        description="the shelf's file; null: the default shelf, in the cache folder",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^postgres(ql)?://\S+$",
        max_length=4096,
        description="postgresql://user@host:5432/database instead of a file, with the extension "
        "pgvector; a password is better placed in PGPASSWORD or ~/.pgpass",
    )

    @model_validator(mode="after")
    def _one_place(self) -> "ReferencesSettings":
        if self.path is not None and self.url is not None:
            raise ValueError("path and url are both given: the shelf is a file or on a server")
        return self


def _off(mode: Any) -> Any:
    return "off" if mode is False else mode  # YAML reads a plain off as false


class GroundingSettings(StrictModel):
    """How answers use the reference shelf; a request's `grounding` replaces `mode`."""

    mode: Annotated[GroundingMode, BeforeValidator(_off)] = Field(
        default="off",
        description="quote: passages instead of a generated answer; cite: passages in the prompt, "
        "and the answer is checked against them; off: neither",
    )
    named: Annotated[GroundingMode | None, BeforeValidator(_off)] = Field(
        default=None,
        description="in place of mode where the request says who answers: a specialty, several "
        "opinions, or OpenAI's model other than auto; null: mode",
    )
    limit: int = Field(default=3, ge=1, le=10, description="passages for one answer")
    max_unsupported: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of an answer that no passage supports; above it the passages are "
        "quoted instead, with notice: ungrounded; 1: never",
    )

    @property
    def is_used(self) -> bool:
        """Return whether answers stand on the shelf without being asked to."""
        return self.mode != "off" or self.named not in (None, "off")
