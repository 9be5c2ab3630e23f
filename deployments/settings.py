"""The `args:` of serve_config.yaml, and the `user_config` of each deployment, as strict models.

Ray drops unknown keys without a word; here they are errors. Neither ray nor torch is imported, so
that a bad file is refused within a second.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import Field, field_validator, model_validator

from deployments.strict_model import StrictModel, parse_strict

PROJECT_ROOT = Path(__file__).resolve().parent.parent
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class AuthSettings(StrictModel):
    """API keys. (YAML reads on and off as true and false, so the modes have other names.)"""

    mode: Annotated[
        Literal["open", "keys"],
        Field(description="keys: every question needs an API key of state_dir; open: none does"),
    ] = "open"
    allow_open: Annotated[
        bool, Field(description="allow mode: open on a host that is not loopback")
    ] = False
    open_admin: Annotated[
        bool, Field(description="with mode: open, admin paths need no admin key")
    ] = False

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.mode == "keys" and (self.allow_open or self.open_admin):
            given = "allow_open" if self.allow_open else "open_admin"
            raise ValueError(f"{given}: true belongs to mode: open, and mode is keys: drop one")
        return self


class AccessLimits(StrictModel):
    """Limits of one router replica. Those of a key apply to keys that were made without limits."""

    body_timeout_s: Annotated[
        float, Field(gt=0, le=600, description="seconds for the whole body to arrive; then 408")
    ] = 15.0
    max_concurrent: Annotated[
        int, Field(ge=1, le=1024, description="requests in progress; then 503")
    ] = 1000
    max_concurrent_per_key: Annotated[
        int | None,
        Field(ge=1, le=1024, description="of these, of one key; then 429; null: no limit"),
    ] = 128
    requests_per_minute: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="of one key; then 429; null: no limit")
    ] = None
    tokens_per_minute: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="tokens of one key, of prompts and answers; then 429; null: no limit",
        ),
    ] = None


def check_origins(origins: list[str]) -> list[str]:
    """Return `cors_origins`.

    Raises:
        ValueError: one of them is not an origin.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"'{origin}' is not an origin: https://host or https://host:port is expected, "
                "without a path; * is not accepted"
            )
    return origins


class ReplicaSettings(StrictModel):
    """How many copies of the model run. Each holds every adapter and has one GPU to itself."""

    min: Annotated[int, Field(ge=1, le=1024, description="replicas that are kept when idle")] = 1
    max: Annotated[int, Field(ge=1, le=1024, description="most replicas")] = 1
    target: Annotated[
        int | None,
        Field(ge=1, le=4096, description="requests in progress per replica; null: engine.max_rows"),
    ] = None
    upscale_delay_s: Annotated[
        float, Field(ge=0, le=86_400, description="seconds above target until a replica is added")
    ] = 30
    downscale_delay_s: Annotated[
        float, Field(ge=0, le=86_400, description="seconds below target until a replica is removed")
    ] = 600

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max}): raise max, or lower min")
        return self


class RouterSettings(StrictModel):
    """The router deployment: HTTP ingress, classifier and policy."""

    artefact: Annotated[
        str | None,
        Field(
            min_length=1,
            description="a trained router, or a folder of versions; null: the package's own",
        ),
    ] = None
    encoder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Hugging Face encoder (id or folder) of an artefact that was trained on it",
        ),
    ] = None
    threads: Annotated[
        int, Field(ge=1, le=64, description="threads of the encoder, in each router replica")
    ] = 1
    replicas: Annotated[int, Field(ge=1, le=256, description="router replicas")] = 1


class EngineSettings(StrictModel):
    """Generation on one replica. Lengths are in tokens."""

    decoder: Annotated[
        Literal["auto", "fast", "reference"],
        Field(
            description="fast: adapters share a batch; reference: PEFT set_adapter + generate, "
            "for any model; auto: fast where it can serve the base and its adapters"
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="auto: bfloat16 where the processor or GPU is fast at it"),
    ] = "auto"
    max_rows: Annotated[int, Field(ge=1, le=512, description="answers decoded together")] = 16
    max_waiting: Annotated[
        int, Field(ge=1, le=100_000, description="requests waiting at one router replica; then 503")
    ] = 256
    max_input_tokens: Annotated[int, Field(ge=16, le=131_072, description="prompt length")] = 1536
    max_output_tokens: Annotated[
        int, Field(ge=1, le=131_072, description="highest max_tokens that a client may ask for")
    ] = 512
    default_output_tokens: Annotated[
        int, Field(ge=1, le=131_072, description="max_tokens when the client gives none")
    ] = 160
    prefill_tokens_per_step: Annotated[
        int | None,
        Field(
            ge=16,
            le=131_072,
            description="prompt tokens between two decode steps; null: 256 on a CPU, 4096 on a GPU",
        ),
    ] = None
    kv_memory_mib: Annotated[
        int | None,
        Field(
            ge=1, le=4_194_304, description="for keys and values of all rows; null: what they need"
        ),
    ] = None
    max_adapters: Annotated[
        int, Field(ge=1, le=65_536, description="adapters on the device of one replica")
    ] = 32
    max_adapter_rank: Annotated[
        int, Field(ge=1, le=1024, description="highest LoRA rank that may be added")
    ] = 256
    adapter_memory_mib: Annotated[
        int,
        Field(
            ge=0,
            le=4_194_304,
            description="main memory for adapters that were read, on the device or not; 0: none",
        ),
    ] = 1024
    cpu_threads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="threads of a CPU replica; null: all cores it may use"),
    ] = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_output_tokens > self.max_output_tokens:
            raise ValueError(
                f"default_output_tokens ({self.default_output_tokens}) is above "
                f"max_output_tokens ({self.max_output_tokens})"
            )
        return self


class Settings(StrictModel):
    """Everything under `args:`. A change restarts the application's deployments."""

    base_model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="a directory, a Hugging Face id (org/name), or smollm2-135m-instruct",
        ),
    ] = "smollm2-135m-instruct"
    quantization: Annotated[
        Literal["none", "int8", "nf4"],
        Field(description="weights of the base model, through bitsandbytes; needs a GPU"),
    ] = "none"
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        Field(description="auto: one GPU a replica where the cluster has GPUs, else the CPU"),
    ] = "auto"
    model_replicas: ReplicaSettings = ReplicaSettings()
    adapters: Annotated[
        str | None,
        Field(min_length=1, description="catalogue folder; null: the package's adapters/"),
    ] = None
    state_dir: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="absolute path or URL of the live state (adapters; keys need a path) that "
            "every node can reach; null: the user's data folder",
        ),
    ] = None
    auth: AuthSettings = AuthSettings()
    cors_origins: Annotated[
        list[str],
        Field(max_length=64, description="web pages of these origins may call the API; []: none"),
    ] = []
    router: RouterSettings = RouterSettings()
    engine: EngineSettings = EngineSettings()

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and "://" not in path and not Path(path).expanduser().is_absolute():
            raise ValueError("an absolute path is expected: every node resolves it on its own")
        return path

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        return check_origins(origins)

    @property
    def state_path(self) -> Path:
        """Where this node keeps the live state."""
        if self.state_dir is None or "://" in self.state_dir:
            return platformdirs.user_data_path("polyclinic")
        return Path(self.state_dir).expanduser()

    @property
    def adapter_state(self) -> str:
        """Where the live catalogue is. In the user's data folder each seed has its own, so that the
        applications of one machine do not mix."""
        if self.state_dir is not None:
            return self.state_dir if "://" in self.state_dir else str(self.state_path)
        seed = hashlib.sha256(str(self.catalog_dir.resolve()).encode()).hexdigest()[:12]
        return str(self.state_path / "clinics" / seed)

    @property
    def catalog_dir(self) -> Path:
        return project_path(self.adapters) if self.adapters else PROJECT_ROOT / "adapters"

    @property
    def router_dir(self) -> Path:
        if self.router.artefact:
            return project_path(self.router.artefact)
        return PROJECT_ROOT / "router" / "model"

    @property
    def router_encoder(self) -> str | None:
        """`router.encoder`; an absolute path where it is a folder of the project."""
        if self.router.encoder is None:
            return None
        candidate = project_path(self.router.encoder)
        return str(candidate) if candidate.is_dir() else self.router.encoder

    @property
    def base_model_or_dir(self) -> str:
        """`base_model`; an absolute path where it is a folder of the project."""
        candidate = project_path(self.base_model)
        return str(candidate) if candidate.is_dir() else self.base_model


class RouterLiveSettings(AccessLimits):
    """`user_config` of the Router deployment: changes without a restart."""

    min_confidence: Annotated[
        float | None,
        Field(ge=0, le=1, description="below it the base model answers; null: as trained"),
    ] = None
    min_in_scope: Annotated[
        float | None,
        Field(ge=0, le=1, description="below it a question is out of scope; null: as trained"),
    ] = None
    min_margin: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="of two specialties; below it the base answers; null: as trained",
        ),
    ] = None
    reload_check_s: Annotated[
        float, Field(ge=0, le=3600, description="between looks for a new router version; 0: never")
    ] = 5.0
    max_question_chars: Annotated[
        int, Field(ge=1, le=1_000_000, description="longest question; all turns count")
    ] = 8000
    max_body_bytes: Annotated[
        int, Field(ge=256, le=64 * 2**20, description="largest HTTP body; then 413")
    ] = 256 * 1024
    max_questions: Annotated[
        int, Field(ge=1, le=256, description="most questions in one POST /route")
    ] = 256
    max_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="longest timeout_s, and the deadline of an answer without one; less than "
            "http_options.request_timeout_s",
        ),
    ] = 280.0
    log_level: Annotated[LogLevel, Field(description="of the router deployment")] = "INFO"


class ModelLiveSettings(StrictModel):
    """`user_config` of the Model deployment: changes without a restart."""

    adapter_check_s: Annotated[
        float,
        Field(
            ge=0, le=3600, description="between looks for adapter changes; 0: only after a request"
        ),
    ] = 5.0
    log_level: Annotated[LogLevel, Field(description="of the model deployment")] = "INFO"


def project_path(path: str) -> Path:
    """Resolve a relative path against the project, whatever the working folder is."""
    expanded = Path(path).expanduser()
    return expanded if expanded.is_absolute() else PROJECT_ROOT / expanded


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Read `args:` of serve_config.yaml.

    Raises:
        SettingsError: names every problem.
    """
    return parse_strict(Settings, args, "args of serve_config.yaml")
