"""Applications without a model, for the benchmarks of the HTTP side.

`build_chain`: Ray's own no-op chain, the least that a router in front of a model can cost.
`build_clinic`: this application, whose model replica has a decoder that does no work.

No `from __future__ import annotations` here: Serve reads the builder's signature.
"""

import functools
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from adapters.prompting import Message, PromptFormat
from deployments.app import build_application
from deployments.engine.decoder import DecoderInfo
from deployments.engine.errors import EngineError
from deployments.engine.request import SchedulerOutput, SequenceState, TokenScore
from deployments.model.adapter_manager import AdapterManager
from deployments.model.loading import LoadedModel
from deployments.model.weights_reader import HostCache
from deployments.replica import open_adapter_store
from deployments.settings import Settings, parse_settings

_NUM_POSITIONS = 1 << 20
_TOKEN = ord("a")


class ChainModel:
    async def __call__(self) -> str:
        return "fine"


class ChainRouter:
    """Reads the body, calls the model and answers, without anything else."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Route("/ask", self._ask, methods=["POST"])])

    async def _ask(self, request: HttpRequest) -> JSONResponse:
        await request.body()
        return JSONResponse({"answer": await self._model.remote()})


def build_chain(args: dict[str, Any]) -> Application:
    """Bind two deployments with the options that build_application gives ours, except `num_cpus`.

    Both applications must fit on two cores together, and `num_cpus` limits no use of them.
    """
    model = serve.deployment(
        name="Model", ray_actor_options={"num_cpus": 0.2}, max_ongoing_requests=args["max_ongoing"]
    )(ChainModel)
    router = serve.deployment(
        name="Router", ray_actor_options={"num_cpus": 0.2}, max_ongoing_requests=1024
    )(serve.ingress()(ChainRouter))
    application: Application = router.bind(model.bind())
    return application


def build_clinic(args: dict[str, Any]) -> Application:
    """Build our application from `args` of serve_config.yaml, `step_s`, the seconds of a step,
    `load_s`, those of reading an adapter, and `tells`: whether a text tells who wrote it."""
    rest = dict(args)
    step_s, load_s = float(rest.pop("step_s", 0.0)), float(rest.pop("load_s", 0.0))
    tells = bool(rest.pop("tells", False))
    load = functools.partial(load_stand_in, step_s=step_s, load_s=load_s, tells=tells)
    return build_application(parse_settings(rest), load=load)


def load_stand_in(
    settings: Settings, device: str, *, step_s: float, load_s: float = 0.0, tells: bool = False
) -> LoadedModel:
    decoder = StandInDecoder(settings.engine.max_rows, step_s, load_s, tells)

    make_manager = functools.partial(
        AdapterManager,
        open_adapter_store(settings),
        settings.base_model,
        decoder,
        capacity=settings.engine.max_adapters,
        host=HostCache(0),
    )

    def encode(
        messages: Sequence[Message],
        *,
        answer_language: str | None,
        prompt_format: PromptFormat | None = None,
    ) -> list[int]:
        return list(messages[-1].content.encode()) if tells else [_TOKEN] * 16

    return LoadedModel(settings.base_model, decoder, encode, make_manager)


def _telling_token(job: SequenceState) -> int:
    asked = f"{job.request.adapter} {job.request.prompt_ids}".encode()
    first, step = divmod(zlib.crc32(asked), 25)
    return _TOKEN + (first + (step + 1) * job.num_scheduled) % 26


class _Ready:
    def __init__(self, tokens: Mapping[int, int]) -> None:
        self._tokens = tokens
        self.scores: dict[int, list[TokenScore]] = {}
        self.failures: dict[int, EngineError] = {}

    def wait(self) -> Mapping[int, int]:
        return self._tokens


class StandInDecoder:
    """A step decoder whose rows all write the letter a until max_tokens, `step_s` apart; an adapter
    is read in `load_s`, by threads that do not hinder each other. With `tells`, the letters follow
    each other from one that adapter and prompt decide, and in steps that they decide."""

    can_split_prompts = True
    num_steps_ahead = 0
    num_prompts_together = 1
    grammars: Any = None  # it has no tokenizer

    def __init__(
        self, num_rows: int, step_s: float, load_s: float = 0.0, tells: bool = False
    ) -> None:
        self.capacities = (_NUM_POSITIONS,) * num_rows
        self._token_of = _telling_token if tells else lambda job: _TOKEN
        self._adapters: dict[str, Path] = {}
        self._step_s, self._load_s = step_s, load_s

    @property
    def info(self) -> DecoderInfo:
        reason = "a stand-in without a model"
        names = frozenset(self._adapters)
        return DecoderInfo("stand-in", reason, "cpu", "none", None, frozenset(), names)

    def read_adapter(self, directory: Path) -> Path:
        time.sleep(self._load_s)
        return directory

    def num_host_bytes(self, weights: Path) -> int:
        return 0

    def install(self, name: str, weights: Path, *, probe: bool = True) -> None:
        self._adapters[name] = weights

    def dry_run(self, name: str, weights: Path) -> None:
        """Accept every adapter."""

    def evict(self, name: str) -> None:
        del self._adapters[name]

    def set_adapter(self, row: int, name: str | None) -> None:
        """Do nothing: rows have no state."""

    def step(self, plan: SchedulerOutput) -> _Ready:
        if self._step_s:
            time.sleep(self._step_s)
        return _Ready({job.row: self._token_of(job) for job in plan.emits if job.row is not None})

    def free(self, row: int) -> None:
        """Do nothing: rows have no state."""

    def reset(self) -> None:
        """Do nothing: rows have no state."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])
