"""A grammar for transformers' `generate`, as the reference decoder runs it, one by one."""

import numpy as np
import torch
from llguidance import LLMatcher
from transformers import LogitsProcessor

from deployments.engine.errors import StructureFailed


class GrammarProcessor(LogitsProcessor):
    """Let only tokens through that the matcher's grammar allows next. Raises StructureFailed."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._has_begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._has_begun:
            self._matcher.consume_token(int(input_ids[0, -1]))
        self._has_begun = True
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise StructureFailed(self._matcher.get_error().split("\n")[0])
        allowed = np.unpackbits(bits, bitorder="little")[: scores.shape[1]]
        blocked = torch.from_numpy(allowed == 0).to(scores.device)
        return scores.masked_fill(blocked, -torch.inf)
