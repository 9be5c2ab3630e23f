"""How answers are made."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Protocol:
    """How answers are made, fixed before training. Recorded with every result.

    The base model is told a length, in its system line, because it would ramble to the limit
    otherwise and lose on every overlap measure for that alone; the adapter is not. Likelihoods use
    the serving prompt for both.
    """

    base_instruction_words: int  # median length of a training answer, words
    decoding: str = "greedy"
    max_new_tokens: int = 256
    prompt: str = "serving prompt"
    references: str = "full"

    @property
    def base_instruction(self) -> str:
        return f"Answer in at most {self.base_instruction_words} words."

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"base_instruction": self.base_instruction}


def protocol_for(training_answers: Sequence[str]) -> Protocol:
    """Return the protocol whose length is the median of the training answers, words."""
    return Protocol(round(statistics.median(len(answer.split()) for answer in training_answers)))
