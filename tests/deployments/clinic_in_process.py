"""Two model replicas and the operator's API in one process: real decoders, no Ray."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from adapters.prompting import Message, encode_prompt
from adapters.sources import SourceLimits
from adapters.versions import AdapterVersion
from deployments.adapter_admin import AdapterAdmin, BroadcastReply
from deployments.api.app import create_api
from deployments.engine.request import SamplingParams, TokenEvent
from deployments.ingress.followed import follow_catalog
from deployments.messages import GenerateRequest
from deployments.model.deployment import ModelReplica
from deployments.model.loading import load_model
from deployments.replica import open_adapter_store
from deployments.settings import Settings
from tests.deployments.conftest import SmallBackend
from tests.oracle import Oracle

QUESTION = "What is eczema?"
MAX_TOKENS = 12


class InProcess:
    """Implements `adapter_admin.Replicas`; `lost` replicas do not answer."""

    def __init__(self, replicas: Sequence[ModelReplica]) -> None:
        self.replicas = list(replicas)
        self.lost: set[int] = set()

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        return await self.replicas[0].try_adapter(name, version)

    async def broadcast(self, timeout_s: float) -> BroadcastReply:
        return await self._all(lambda replica: replica.sync_adapters())

    async def reports(self, timeout_s: float) -> BroadcastReply:
        return await self._all(lambda replica: replica.adapter_report())

    async def _all(
        self, ask: Callable[[ModelReplica], Awaitable[dict[str, Any]]]
    ) -> BroadcastReply:
        reports, unreachable = [], {}
        for number, replica in enumerate(self.replicas):
            if number in self.lost:
                unreachable[str(number)] = "it was cut off"
            else:
                reports.append({**await ask(replica), "replica": str(number)})
        return BroadcastReply(reports, unreachable)


class ClinicInProcess:
    """
    Args:
        decoder: fast or reference.
        more: further fields of args.engine.
    """

    def __init__(
        self, base: Path, catalog: Path, state: Path, *, decoder: str = "fast", **more: Any
    ) -> None:
        self.base = base
        self.settings = Settings.model_validate(
            {
                "base_model": str(base),
                "adapters": str(catalog),
                "state_dir": str(state),
                "engine": {
                    "dtype": "float32",
                    "decoder": decoder,
                    "max_rows": 4,
                    "max_input_tokens": 100,
                    "max_output_tokens": 200,
                    "cpu_threads": 1,
                    **more,
                },
            }
        )
        self.replicas = [self.new_replica(), self.new_replica()]
        self.reach = InProcess(self.replicas)
        self.store = open_adapter_store(self.settings)
        self.catalog = follow_catalog(self.store, str(base), lambda: 0.0)
        self.admin = AdapterAdmin(
            self.store,
            self.catalog.refresh,
            self.reach,
            str(base),
            max_rank=64,
            num_slots=self.settings.engine.max_adapters,
            limits=SourceLimits(max_bytes=2**20, timeout_s=5),
        )
        transport = httpx.ASGITransport(create_api(SmallBackend(), self.admin))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://clinic")

    def new_replica(self) -> ModelReplica:
        replica = ModelReplica(self.settings, "cpu", load_model)
        replica.reconfigure({"adapter_check_s": 0.0})
        return replica

    async def close(self) -> None:
        await self.http.aclose()
        for replica in self.replicas:
            replica.close()

    def call(self, adapter: str | None, version: str | None, **more: Any) -> GenerateRequest:
        fields = {"sampling": SamplingParams(MAX_TOKENS), "stream": False} | more
        return GenerateRequest(
            "r", (Message("user", QUESTION),), adapter, adapter_version=version, **fields
        )

    async def ask(self, replica: int, adapter: str | None, version: str | None = None) -> str:
        """The whole answer; an error's code in its place."""
        event: TokenEvent | None = None
        pieces = []
        async for event in self.replicas[replica].generate(self.call(adapter, version)):
            pieces.append(event.text)
        assert event is not None
        return event.error.code if event.error else "".join(pieces)


class Expected:
    """What PEFT answers with each adapter of a folder."""

    def __init__(self, base: Path, folders: dict[str, Path], question: str = QUESTION) -> None:
        from transformers import AutoTokenizer

        self._oracle = Oracle(base, folders)
        self._question = question
        self._tokenizer = AutoTokenizer.from_pretrained(base)

    def answer(self, adapter: str | None, prompt_format: Any = "chat") -> str:
        prompt = encode_prompt(
            prompt_format,
            [Message("user", self._question)],
            tokenizer=self._tokenizer,
            system_line="You are a medical assistant.",
        )
        tokens = self._oracle.generate(prompt, adapter, MAX_TOKENS)
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return text.rstrip("\N{REPLACEMENT CHARACTER}")  # an unfinished character
