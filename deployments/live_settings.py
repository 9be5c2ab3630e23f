"""The `user_config` of each deployment as strict models: what changes without a restart."""

from typing import Literal

from pydantic import Field

from deployments.setting_sections import GroundingSettings
from deployments.strict_model import StrictModel

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_LOG_REQUESTS = "a record of each request at each stage, with its id and without its texts"


class AccessLimits(StrictModel):
    """Limits of one router replica, and of a key over all of them; those of a key apply to keys
    that were made without limits."""

    body_timeout_s: float = Field(
        default=15.0, gt=0, le=600, description="seconds for the whole body to arrive; then 408"
    )
    max_concurrent: int = Field(
        default=1000, ge=1, le=1024, description="requests in progress; then 503"
    )
    max_concurrent_per_key: int | None = Field(
        default=128, ge=1, le=1024, description="of these, of one key; then 429; null: no limit"
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000, description="of one key; then 429; null: no limit"
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="prompts and answers; then 429; null: no limit",
    )


class RouterLiveSettings(AccessLimits):
    """`user_config` of the Router deployment: changes without a restart."""

    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="below it: base model; null: as trained"
    )
    min_in_scope: float | None = Field(
        default=None, ge=0, le=1, description="below it: out of scope; null: as trained"
    )
    min_margin: float | None = Field(
        default=None, ge=0, le=1, description="of two specialties; below it: base; null: as trained"
    )
    red_flags: bool = Field(
        default=True,
        description="a question that may be an emergency gets notice: urgent, and the answer "
        "begins with advice to call for help; false: off",
    )
    references: GroundingSettings = GroundingSettings()
    reload_check_s: float = Field(
        default=5.0, ge=0, le=3600, description="how often to look for a new router; 0: never"
    )
    max_question_chars: int = Field(
        default=8000, ge=1, le=1_000_000, description="longest question; all turns count"
    )
    max_body_bytes: int = Field(
        default=256 * 1024, ge=256, le=64 * 2**20, description="largest HTTP body; then 413"
    )
    max_questions: int = Field(
        default=256, ge=1, le=256, description="most questions in one POST /route"
    )
    max_prompts: int = Field(
        default=32, ge=1, le=256, description="most prompts in one POST /v1/completions"
    )
    max_timeout_s: float = Field(
        default=280.0,
        gt=0,
        le=86_400,
        description="longest timeout_s, and the deadline of an answer without one; less than "
        "http_options.request_timeout_s",
    )
    max_wait_s: float = Field(
        default=60.0, gt=0, le=3600, description="longest wait predicted for an answer; then 503"
    )
    drain_s: float = Field(
        default=30.0, ge=0, le=3600, description="for answers in progress when the server stops"
    )
    log_level: LogLevel = Field(default="INFO", description="of the router deployment")
    log_requests: bool = Field(default=False, description=_LOG_REQUESTS)


class ModelLiveSettings(StrictModel):
    """`user_config` of the Model deployment: changes without a restart."""

    adapter_check_s: float = Field(
        default=5.0, ge=0, le=3600, description="how often to look for changes; 0: on request only"
    )
    log_level: LogLevel = Field(default="INFO", description="of the model deployment")
    log_requests: bool = Field(default=False, description=_LOG_REQUESTS)
