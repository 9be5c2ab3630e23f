"""Time transformers' own continuous batching, as a peer of the engine."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import ContinuousBatchingConfig

from deployments.engine.model_loader import Pretrained
from deployments.engine.request import Request

_MOST_PROMPT_TOKENS = 8192  # of one step; transformers' default
_PAGE = 256  # tokens; transformers' default
_STEP_TIMEOUT_S = 60.0


class ContinuousBatching:
    """A model behind transformers' manager. Prompts are not shared, as they are not in ours.

    Args:
        base: its model is changed if there is an adapter.
        num_tokens: generated for each request; end-of-sequence tokens are ignored.
        adapter: folder of the one adapter that all requests get; None: the base alone.
    """

    def __init__(self, base: Pretrained, num_tokens: int, adapter: Path | None = None) -> None:
        model: Any = base.model
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
        self._model, self._num_tokens = model.eval(), num_tokens
        self._generation = copy.deepcopy(model.generation_config)
        self._generation.do_sample, self._generation.eos_token_id = False, -1
        self._generation.pad_token_id, self._generation.max_new_tokens = base.pad_id, num_tokens
        self.attention = ""
        """The implementation that it chose; known after the first call."""

    def answer(self, requests: Sequence[Request]) -> dict[str, float]:
        """Time all requests at once; it may take them in its own order.

        Raises:
            RuntimeError: one failed, or has another number of tokens.
        """
        from transformers.generation.continuous_batching.utils import WorkloadHints

        prompts = [list(request.prompt_ids) for request in requests]
        longest, total = max(map(len, prompts)), sum(map(len, prompts))
        hints = WorkloadHints(
            max_prompt_length=longest,
            max_generated_length=self._num_tokens,
            num_requests=len(prompts),
        )
        # Room for all at once, twice. By default it takes nine tenths of the memory that is free,
        # which the other sides of this process need.
        config = ContinuousBatchingConfig(
            num_blocks=2 * len(prompts) * (1 + (longest + self._num_tokens) // _PAGE),
            max_batch_tokens=min(max(total, _PAGE), _MOST_PROMPT_TOKENS),
            allow_block_sharing=False,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=self._generation,
            continuous_batching_config=config,
            timeout=_STEP_TIMEOUT_S,
            persistent_manager=True,
            workload_hints=hints,
        ) as manager:
            self.attention = self._model.config._attn_implementation
            started = time.perf_counter()
            manager.add_requests(prompts, max_new_tokens=self._num_tokens, record_timestamps=True)
            results = [self._result(manager) for _ in prompts]
        first_tokens = sorted(result.timestamps[0] - started for result in results)
        seconds = max(result.timestamps[-1] for result in results) - started
        return {
            "tokens_per_s": len(results) * self._num_tokens / seconds,
            "seconds": seconds,
            "first_token_p50_s": first_tokens[len(first_tokens) // 2],
            "first_token_max_s": first_tokens[-1],
        }

    def _result(self, manager: Any) -> Any:
        """Return the next answer that is whole."""
        result = manager.get_result(timeout=_STEP_TIMEOUT_S)
        if result is None:
            raise RuntimeError(f"continuous batching: no answer within {_STEP_TIMEOUT_S:g} s")
        num = len(result.generated_tokens)
        if result.error is not None or num != self._num_tokens:
            raise RuntimeError(f"continuous batching: {num} tokens, {result.error}")
        return result

    def close(self) -> None:
        self._model.destroy_cached_continuous_batching_manager()
