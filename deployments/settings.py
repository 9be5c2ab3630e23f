"""The `args:` of serve_config.yaml as strict models.

Ray drops unknown keys without a word; here they are errors. Neither ray nor torch is imported, so
that a bad file is refused within a second.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import platformdirs
from pydantic import Field, field_validator, model_validator

from deployments.origins import PathText, check_hosts, check_origins
from deployments.setting_sections import ReferencesSettings, RouterSettings, SourceSettings
from deployments.setting_sections import ReplicaSettings as ReplicaSettings
from deployments.strict_model import StrictModel, parse_strict

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class AuthSettings(StrictModel):
    """API keys. (YAML reads on and off as true and false, so the modes have other names.)"""

    mode: Literal["open", "keys"] = Field(
        default="open",
        description="keys: every question needs an API key of state_dir; open: none does",
    )
    allow_open: bool = Field(
        default=False, description="allow mode: open on a host that is not loopback"
    )
    open_admin: bool = Field(
        default=False, description="with mode: open, admin paths need no admin key"
    )

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.mode == "keys" and (self.allow_open or self.open_admin):
            given = "allow_open" if self.allow_open else "open_admin"
            raise ValueError(f"{given}: true belongs to mode: open, and mode is keys: drop one")
        return self


class EngineSettings(StrictModel):
    """Generation on one replica. Lengths are in tokens."""

    decoder: Literal["auto", "fast", "reference"] = Field(
        default="auto",
        description="fast: adapters share a batch; reference: PEFT set_adapter + generate, "
        "for any model; auto: fast where it can serve the base and its adapters",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor or GPU is fast at it"
    )
    batch_invariant: bool | Literal["auto"] = Field(
        default="auto",
        description="whether an answer may not depend on what is computed beside it: true does "
        "that or refuses the start, auto where it costs at most 5 %",
    )
    max_rows: int = Field(default=16, ge=1, le=512, description="answers decoded together")
    max_waiting: int = Field(
        default=256, ge=1, le=100_000, description="requests that wait at one router; then 503"
    )
    max_input_tokens: int = Field(default=1536, ge=16, le=131_072, description="prompt length")
    max_output_tokens: int = Field(
        default=512, ge=1, le=131_072, description="highest max_tokens that a client may ask for"
    )
    default_output_tokens: int = Field(
        default=160, ge=1, le=131_072, description="max_tokens when the client gives none"
    )
    prefill_tokens_per_step: int | None = Field(
        default=None,
        ge=16,
        le=131_072,
        description="prompt tokens between two decode steps; null: 256 on a CPU, 4096 on a GPU",
    )
    long_prompt_slowdown: float | None = Field(
        default=None,
        ge=1.05,
        le=1000.0,
        description="while prompts with more than 4,096 tokens to read are read piece by piece, "
        "other answers' time per token is at most so many times what it is without; null: 1.3 on "
        "a GPU, no bound on a CPU",
    )
    prompt_lookup: bool = Field(
        default=True,
        description="while few answers run (two on a CPU, four on a GPU): guess tokens from the "
        "prompt, which makes answers that quote it faster, and none different",
    )
    prefix_cache: bool = Field(
        default=True,
        description="rows that no answer needs keep the keys and values of what they read, for "
        "prompts that begin alike",
    )
    kv_memory_mib: int | None = Field(
        default=None,
        ge=1,
        le=4_194_304,
        description="of keys and values; null: what max_rows needs; on a GPU at most what is left, "
        "on a CPU at most half of what is free",
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        default="auto",
        description="of keys and values. auto: as the activations; int8: nearly twice as many "
        "positions in the same memory, on a GPU, by the fast decoder",
    )
    max_adapters: int = Field(
        default=32, ge=1, le=65_536, description="adapters on the device of one replica"
    )
    max_adapter_rank: int = Field(
        default=256, ge=1, le=1024, description="highest LoRA rank that may be added"
    )
    adapter_memory_mib: int = Field(
        default=1024,
        ge=0,
        le=4_194_304,
        description="main memory for adapters that were read; 0: none",
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, le=1024, description="threads of a CPU replica; null: all its cores"
    )
    step_timeout_s: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="seconds after which a step counts as stuck, and the replica is replaced; "
        "null: 30 on a GPU, 300 on a CPU",
    )

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

    base_model: PathText = Field(
        default="smollm2-135m-instruct",
        description="a directory, a Hugging Face id (org/name), or smollm2-135m-instruct",
    )
    quantization: Literal["auto", "none", "int8", "int4", "nf4", "fp8"] = Field(
        default="auto",
        description="weights of the base model. int8: eight bits (bitsandbytes' values on a GPU); "
        "int4: four bits, on a CPU; nf4: four bits, on a GPU; fp8: eight bits, on a GPU from Ada "
        "or Hopper on; auto: as the base's folder has them; of plain ones, int8 on a CPU where a "
        "short test at the start finds it faster, if engine.dtype is auto",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="auto: one GPU a replica where the cluster has GPUs, else the CPU",
    )
    model_replicas: ReplicaSettings = ReplicaSettings()
    adapters: PathText | None = Field(
        default=None, description="catalogue folder; null: the package's adapters/"
    )
    state_dir: PathText | None = Field(
        default=None,
        description="absolute path or URL of the live state (adapters; keys need a path) that "
        "every node can reach; null: the user's data folder",
    )
    auth: AuthSettings = AuthSettings()
    cors_origins: list[str] = Field(
        default=[],
        max_length=64,
        description="web pages of these origins may call the API; []: none",
    )
    references: ReferencesSettings = ReferencesSettings()
    allowed_hosts: list[str] = Field(
        default=[],
        max_length=64,
        description="names under which clients reach the server, besides localhost and its own "
        "address, while auth.mode is open; *: any",
    )
    adapter_sources: SourceSettings = SourceSettings()
    router: RouterSettings = RouterSettings()
    engine: EngineSettings = EngineSettings()

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is None:
            return None
        if path.startswith("file://"):
            raise ValueError("the path alone is expected, without file://")
        if "://" not in path and not Path(path).expanduser().is_absolute():
            raise ValueError("an absolute path is expected: every node resolves it on its own")
        if path.endswith("://"):
            raise ValueError("a bucket is expected after ://, and a folder of it")
        return path

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        return check_origins(origins)

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        return check_hosts(hosts)

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
        return self.own_state

    @property
    def own_state(self) -> str:
        """The folder of this application in the user's data folder."""
        seed = hashlib.sha256(str(self.catalog_dir.resolve()).encode()).hexdigest()[:12]
        return str(self.state_path / "clinics" / seed)

    @property
    def model_config_id(self) -> str:
        """What a router and a model replica must have in common to answer a question together."""
        apart = {
            "auth",
            "cors_origins",
            "allowed_hosts",
            "adapter_sources",
            "router",
            "model_replicas",
            "device",
        }
        shared = self.model_dump_json(exclude=apart)
        return hashlib.sha256(shared.encode()).hexdigest()[:16]

    @property
    def catalog_dir(self) -> Path:
        return project_path(self.adapters) if self.adapters else PROJECT_ROOT / "adapters"

    @property
    def router_dir(self) -> Path:
        """The trained router, or the folder of its versions, that the router replicas follow."""
        if self.router.artefact:
            return project_path(self.router.artefact)
        if self.state_dir is None or "://" in self.state_dir:
            return Path(self.own_state) / "router"
        return self.state_path / "router"

    @property
    def router_is_in_state(self) -> bool:
        """Whether `router_dir` lies in the folder of the live catalogue and goes with it."""
        return self.router.artefact is None and "://" not in self.adapter_state

    @property
    def shelf_place(self) -> Path | str | None:
        """The file of `references.path`, or `references.url`. None: the default shelf."""
        if self.references.path:
            return project_path(self.references.path)
        return self.references.url

    @property
    def router_encoder(self) -> str | None:
        """`router.encoder`; an absolute path where it is a folder of the project."""
        encoder = self.router.encoder
        return None if encoder is None else _folder_or_name(encoder)

    @property
    def base_model_or_dir(self) -> str:
        """`base_model`; an absolute path where it is a folder of the project."""
        return _folder_or_name(self.base_model)


SHIPPED_ROUTER = PROJECT_ROOT / "router" / "model"


def project_path(path: str) -> Path:
    """Resolve a relative path against the project, whatever the working folder is."""
    expanded = Path(path).expanduser()
    return expanded if expanded.is_absolute() else PROJECT_ROOT / expanded


def _folder_or_name(text: str) -> str:
    candidate = project_path(text)
    return str(candidate) if os.path.isdir(candidate) else text


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Read `args:` of serve_config.yaml.

    Raises:
        SettingsError: names every problem.
    """
    return parse_strict(Settings, args, "args of serve_config.yaml")
