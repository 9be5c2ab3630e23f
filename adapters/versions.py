"""An adapter of the catalogue and its versions: immutable records, no I/O."""

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adapters.prompting import PromptFormat

MAX_VERSIONS = 50  # kept for each adapter; the oldest that does not serve goes first
SEED_SOURCE = "seed"
SEED_PATH = "seed:"  # starts the path of a version whose files lie below the seed's folder
VERSION = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED_NAMES = ("auto", "base")  # have their own meaning as OpenAI's `model`


class Record(BaseModel):
    """Refuses unknown keys, other types, NaN and infinity; cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def checked_adapter_name(name: str) -> str:
    """Return `name`. Raises ValueError: it cannot name an adapter; says what can."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "use 1 to 64 of a-z, 0-9, '_', '-', starting with a letter or digit as adapter name"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"the adapter name '{name}' is reserved: choose another")
    return name


def _checked_path(path: str) -> str:
    if not path.startswith(SEED_PATH):
        return path
    below = path.removeprefix(SEED_PATH)
    parts = PurePosixPath(below).parts
    if not parts or below.startswith("/") or ".." in parts or "\\" in below:
        raise ValueError("give a folder below the catalogue's, without a leading '/' or '..'")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterVersion(Record):
    """One version: its files never change once it is listed."""

    version: Annotated[str, Field(pattern=VERSION)]
    sha256: Annotated[Sha256, Field(description="of adapter_model.safetensors")]
    config_sha256: Annotated[Sha256, Field(description="of adapter_config.json")]
    path: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_checked_path)]
    source: Annotated[str, Field(min_length=1, max_length=2048, description="where it came from")]
    rank: Annotated[int, Field(ge=1, le=1024)]
    num_bytes: Annotated[int, Field(ge=0, description="of both files")]
    added_at: Annotated[str, Field(max_length=40, description="ISO 8601, UTC")] = ""
    languages: Annotated[list[str], Field(min_length=1, description="of the training data")] = [
        "en"
    ]
    prompt_format: Annotated[
        PromptFormat | None, Field(description="that it was trained with; null: the base model's")
    ] = None
    evaluation: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Name the content of both files."""
        return bundle_digest(self.config_sha256, self.sha256)


class Canary(Record):
    """A version on trial, and the share of its specialty's sessions that it answers."""

    version: Annotated[str, Field(pattern=VERSION)]
    weight: Annotated[float, Field(gt=0, le=1)]


class RegisteredAdapter(Record):
    """An adapter and its versions."""

    name: Annotated[str, AfterValidator(checked_adapter_name)]
    specialty: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
    base_model: Annotated[str, Field(min_length=1, max_length=4096)]
    state: Literal["active", "canary", "disabled"]
    version: Annotated[str, Field(pattern=VERSION, description="the one that serves")]
    canary: Canary | None = None
    previous: list[str] = []  # versions that served before, oldest first
    reason: Annotated[str, Field(max_length=10_000, description="why it is disabled")] = ""
    pinned: bool = False  # its serving versions always stay on the device
    versions: Annotated[list[AdapterVersion], Field(min_length=1, max_length=MAX_VERSIONS)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [v.version for v in self.versions]
        if len(set(names)) < len(names):
            raise ValueError(f"a version is listed twice: {names}")
        wanted = [self.version, *self.previous, *([self.canary.version] if self.canary else [])]
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise ValueError(f"versions {missing} are named but not listed (listed: {names})")
        if (self.state == "canary") != (self.canary is not None):
            raise ValueError(f"state is {self.state}, and canary is {self.canary}")
        if self.canary and self.canary.version == self.version:
            raise ValueError(f"version {self.version} serves and is on trial at the same time")
        return self

    @property
    def stable(self) -> AdapterVersion:
        return self.find(self.version)

    @property
    def served(self) -> tuple[AdapterVersion, ...]:
        """Return the versions that answer questions now: none, one, or two with a canary."""
        if self.state == "disabled":
            return ()
        return (self.stable, self.find(self.canary.version)) if self.canary else (self.stable,)

    def find(self, version: str) -> AdapterVersion:
        """Return the version of this name. Raises KeyError: it is not listed."""
        for found in self.versions:
            if found.version == version:
                return found
        raise KeyError(version)


def bundle_digest(config_sha256: str, weights_sha256: str) -> str:
    return hashlib.sha256(f"{config_sha256}\n{weights_sha256}\n".encode()).hexdigest()
