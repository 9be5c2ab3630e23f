"""What OpenAI's endpoints ask of a model replica beside answers: texts of ids, answers that fit."""

import asyncio
import dataclasses
from collections.abc import Sequence

from adapters.token_prompts import BadTokenId
from deployments.engine.engine import Engine
from deployments.engine.errors import BadPromptToken, NotForThisModel
from deployments.engine.request import SamplingParams
from deployments.messages import GenerateRequest
from deployments.model.loading import RunningModel


class OpenAICalls:
    """Part of ModelReplica, which sets these."""

    _model: RunningModel
    _engine: Engine

    async def decode_prompts(self, prompts: Sequence[Sequence[int]]) -> list[str] | BadTokenId:
        """Return the texts of token ids, or which of the ids is none of this model's."""
        if self._model.decode is None:
            return BadTokenId(0, 0, "this model takes no token ids: send text")
        return await asyncio.to_thread(self._model.decode, prompts)

    async def continued_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids of what an answer continues as it stands.

        Raises:
            BadPromptToken: it holds an id that this model does not have.
        """
        encode = self._model.encode_text
        if encode is None:
            raise NotForThisModel("echo", "this model continues no text")
        found = await asyncio.to_thread(encode, prompt)
        if isinstance(found, BadTokenId):
            raise BadPromptToken(found.position, found.reason)
        return found

    def sampling_of(self, call: GenerateRequest, num_prompt_tokens: int) -> SamplingParams:
        """Return the call's sampling, shortened to what fits after the prompt if it may be."""
        room = self._engine.info.room_after(num_prompt_tokens)
        if not call.may_shorten or room is None:
            return call.sampling
        if not max(1, call.sampling.min_tokens) <= room < call.sampling.max_tokens:
            return call.sampling  # as it is, or refused by the engine
        return dataclasses.replace(call.sampling, max_tokens=room)
