"""Requests and replies of /v1/adapters, /v1/operator and the probes."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adapters.prompting import PromptFormat
from adapters.versions import VERSION
from deployments.api.protocol.base import Count, Probability, ReplyModel, RequestModel

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, Field(pattern=VERSION)]


class AddAdapter(RequestModel):
    """POST /v1/adapters. `specialty`: needed for a new adapter; `pinned`: null changes nothing;
    `prompt_format`: null is what its files record, else the base model's."""

    name: Name
    source: str = Field(min_length=1, max_length=2048)
    version: Version
    specialty: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")
    prompt_format: PromptFormat | None = None
    state: Literal["active", "canary", "disabled"] = "active"
    canary_weight: float | None = Field(default=None, gt=0, le=1)
    pinned: bool | None = None
    expected_revision: int | None = Field(default=None, ge=0)

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
    reason: str = Field(default="", max_length=500)
    version: Version | None = None
    canary_version: Version | None = None
    canary_weight: float | None = Field(default=None, ge=0, le=1)
    promote: bool = False
    pinned: bool | None = None
    expected_revision: int | None = Field(default=None, ge=0)


class Revision(RequestModel):
    """The body of DELETE and of a roll-back; it may be left out."""

    expected_revision: int | None = Field(default=None, ge=0)


class CanaryReply(ReplyModel):
    version: str
    weight: Probability


class VersionReply(ReplyModel):
    version: str
    sha256: str
    source: str
    rank: int
    num_bytes: Count
    prompt_format: PromptFormat | None = Field(description="null: the base model's")
    added_at: str | None


class HeldReply(ReplyModel):
    """A version on one replica."""

    tier: Literal["device", "host", "disk"]
    answers: Count
    load_s: float | None = Field(description="seconds; null: not loaded yet")
    error: str | None = Field(description="why it is not served here, or null")


class AdapterReply(ReplyModel):
    name: str
    specialty: str
    base_model: str
    state: str
    reason: str | None
    version: str | None = Field(description="the one in service")
    canary: CanaryReply | None
    pinned: bool = Field(description="its versions in service stay on the device")
    previous: list[str]
    versions: list[VersionReply]
    replicas: dict[str, dict[str, HeldReply]] = Field(
        description="replica -> version -> where it is"
    )


class AdaptersReply(ReplyModel):
    revision: int
    state: str = Field(description="where the live catalogue is stored")
    base_model: str
    replicas: list[str]
    unconfirmed: dict[str, str] = Field(description="replica -> why")
    adapters: list[AdapterReply]


class ChangeReply(ReplyModel):
    """A change that was made."""

    revision: int
    confirmed: bool = Field(description="every running replica has confirmed it")
    replicas: Count
    unconfirmed: dict[str, str] = Field(description="replica -> why")
    adapter: AdapterReply | None


class HealthReply(ReplyModel):
    status: Literal["ok"]


class ReadyReply(ReplyModel, extra="allow"):
    """What is loaded, and the cause if it is not ready."""

    status: Literal["ready", "not_ready"]


class OperatorReply(ReplyModel, extra="allow"):
    """Replicas and traffic, as `deployments.ingress.operator.assemble` describes them."""

    generated_at: float = Field(default=0.0, description="Unix seconds")
    windows_s: dict[str, float] = Field(default={}, description="over how long figures are taken")
    models: list[dict[str, Any]]
    routers: list[dict[str, Any]]
