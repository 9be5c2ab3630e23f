"""The whole API over a real model replica in this process: real decoders, no router, no Ray."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.token_prompts import BadTokenId
from deployments.engine.request import TokenEvent
from deployments.messages import AdapterCard, GenerateRequest, ServedModels
from deployments.model.deployment import ModelReplica
from deployments.model.loading import load_model
from deployments.settings import Settings
from tests.conftest import TINY_ADAPTERS
from tests.deployments.conftest import SmallBackend


class TinyClinic(SmallBackend):
    """
    Args:
        in_process: whether the engine is in this process, and not in one of its own.
        more: further fields of args.engine.
    """

    def __init__(
        self, base: Path, catalog: Path, state: Path, *, in_process: bool = True, **more: Any
    ) -> None:
        super().__init__()
        engine = {
            "dtype": "float32",
            "max_rows": 8,
            "max_input_tokens": 200,
            "max_output_tokens": 300,
            "cpu_threads": 1,
            **more,
        }
        settings = Settings.model_validate(
            {
                "base_model": str(base),
                "adapters": str(catalog),
                "state_dir": str(state),
                "engine": engine,
            }
        )
        self.replica = ModelReplica(settings, "cpu", load_model if in_process else None)
        self.replica.reconfigure({"adapter_check_s": 0.0})
        names = sorted(TINY_ADAPTERS)
        self.clinic = ServedModels(
            base_model=str(base),
            adapters=tuple(AdapterCard(name, f"{name}_specialty", "1") for name in names),
            specialties=tuple(f"{name}_specialty" for name in names),
            default_output_tokens=16,
            max_output_tokens=300,
            started_at=1,
        )

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Any:
        route = super().explicit(specialty, turns)
        adapter = specialty.removesuffix("_specialty") if specialty else None
        return replace(route, adapter=adapter)

    async def decode(self, prompts: Sequence[Sequence[int]]) -> list[str] | BadTokenId:
        return await self.replica.decode_prompts(prompts)

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        try:
            async for event in self.replica.generate(call):
                yield event
        finally:
            self.num_closed += 1
