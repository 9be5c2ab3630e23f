"""Sections of `args:` that stand for themselves; settings.py puts them together."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.strict_model import StrictModel


class ReplicaSettings(StrictModel):
    """How many copies of the model run. Each holds every adapter and has one GPU to itself."""

    min: int = Field(default=1, ge=1, le=1024, description="replicas that are kept when idle")
    max: int = Field(default=1, ge=1, le=1024, description="most replicas")
    target: int | None = Field(
        default=None, ge=1, le=4096, description="requests at a time per replica; null: max_rows"
    )
    upscale_delay_s: float = Field(
        default=30, ge=0, le=86_400, description="seconds above target until a replica is added"
    )
    downscale_delay_s: float = Field(
        default=600, ge=0, le=86_400, description="seconds below target until a replica is removed"
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

    artefact: str | None = Field(
        default=None,
        min_length=1,
        description="trained router, or a folder of versions, which may be empty at first; "
        "null: `router` of the live state (state_dir); until it holds a version, the package's",
    )
    encoder: str | None = Field(
        default=None,
        min_length=1,
        description="Hugging Face encoder (id or folder) of an artefact that was trained on it",
    )
    threads: int = Field(
        default=1, ge=1, le=64, description="threads of the encoder, in each router replica"
    )
    replicas: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        default=1,
        description="router replicas; auto: one for every 8 cores of the cluster, 1 to 16. Limits "
        "of keys count in each",
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
