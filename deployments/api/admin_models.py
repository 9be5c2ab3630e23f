"""Requests and replies of /v1/adapters (admin_api.py), for parsing and for /openapi.json."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adapters.versions import VERSION
from deployments.api.protocol import RequestModel
from deployments.api.reply_models import Count, Probability, ReplyModel

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, Field(pattern=VERSION)]


class AddAdapter(RequestModel):
    """POST /v1/adapters. `specialty`: needed for a new adapter; `pinned`: null leaves that be."""

    name: Name
    source: Annotated[str, Field(min_length=1, max_length=2048)]
    version: Version
    specialty: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")] = None
    state: Literal["active", "canary", "disabled"] = "active"
    canary_weight: Annotated[float | None, Field(gt=0, le=1)] = None
    pinned: bool | None = None
    expected_revision: Annotated[int | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _weighted(self) -> "AddAdapter":
        if (self.state == "canary") != (self.canary_weight is not None):
            raise ValueError("canary_weight goes with state: canary, and only with it")
        return self


class UpdateAdapter(RequestModel):
    """PATCH /v1/adapters/{name}: one of state, version, canary_weight, promote, pinned.

    `reason` goes with state: disabled.
    """

    state: Literal["active", "disabled"] | None = None
    reason: Annotated[str, Field(max_length=500)] = ""
    version: Version | None = None
    canary_version: Version | None = None
    canary_weight: Annotated[float | None, Field(ge=0, le=1)] = None
    promote: bool = False
    pinned: bool | None = None
    expected_revision: Annotated[int | None, Field(ge=0)] = None


class Revision(RequestModel):
    """The body of DELETE and of a roll-back; it may be left out."""

    expected_revision: Annotated[int | None, Field(ge=0)] = None


class CanaryReply(ReplyModel):
    version: str
    weight: Probability


class VersionReply(ReplyModel):
    version: str
    sha256: str
    source: str
    rank: int
    num_bytes: Count
    added_at: str | None


class HeldReply(ReplyModel):
    """A version on one replica."""

    tier: Literal["device", "host", "disk"]
    answers: Count
    load_s: Annotated[float | None, Field(description="seconds; null: not loaded yet")]
    error: Annotated[str | None, Field(description="why it is not served here, or null")]


class AdapterReply(ReplyModel):
    name: str
    specialty: str
    base_model: str
    state: str
    reason: str | None
    version: Annotated[str | None, Field(description="the one in force")]
    canary: CanaryReply | None
    pinned: Annotated[bool, Field(description="its versions in service stay on the device")]
    previous: list[str]
    versions: list[VersionReply]
    replicas: Annotated[
        dict[str, dict[str, HeldReply]], Field(description="replica -> version -> where it is")
    ]


class AdaptersReply(ReplyModel):
    revision: int
    state: Annotated[str, Field(description="where the live catalogue lies")]
    base_model: str
    replicas: list[str]
    unconfirmed: Annotated[dict[str, str], Field(description="replica -> why")]
    adapters: list[AdapterReply]


class ChangeReply(ReplyModel):
    """A change that was made."""

    revision: int
    confirmed: Annotated[bool, Field(description="every running replica has taken it over")]
    replicas: Count
    unconfirmed: Annotated[dict[str, str], Field(description="replica -> why")]
    adapter: AdapterReply | None
