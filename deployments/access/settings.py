"""Settings of the front door: `args.auth`, and the live limits of a router replica."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.strict_model import StrictModel

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")


class AuthSettings(StrictModel):
    """API keys. The modes are not called on and off: YAML reads these as true and false."""

    mode: Annotated[
        Literal["open", "keys"],
        Field(description="keys: every question needs an API key of state_dir; open: none does"),
    ] = "open"
    allow_open: Annotated[
        bool, Field(description="lets mode: open start on a host that is not loopback")
    ] = False
    open_admin: Annotated[
        bool, Field(description="with mode: open, admin paths need no admin key either")
    ] = False

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.mode == "keys" and (self.allow_open or self.open_admin):
            given = "allow_open" if self.allow_open else "open_admin"
            raise ValueError(f"{given}: true belongs to mode: open, and mode is keys: drop one")
        return self


class AccessLimits(StrictModel):
    """Limits of one router replica; those of a key hold where it has none of its own."""

    body_timeout_s: Annotated[
        float, Field(gt=0, le=600, description="for the whole body to arrive; then 408")
    ] = 15.0
    max_concurrent: Annotated[
        int, Field(ge=1, le=1024, description="requests in progress; then 503")
    ] = 1000
    max_concurrent_per_key: Annotated[
        int | None, Field(ge=1, le=1024, description="of these, one key's; then 429")
    ] = 128
    requests_per_minute: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="one key's; then 429; null: no limit")
    ] = None
    tokens_per_minute: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="one key's, prompt and answer together; then 429; null: no limit",
        ),
    ] = None


def check_origins(origins: list[str]) -> list[str]:
    """`cors_origins`, or a ValueError that names the one that is none."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"'{origin}' is not an origin: https://host or https://host:port is expected, "
                "without a path; * is not accepted"
            )
    return origins
