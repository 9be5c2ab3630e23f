"""Plants what is guessed: tiny random models quote nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from deployments.engine.model_runner import ModelRunner
from deployments.engine.scheduling.drafts import PromptLookup


def know(monkeypatch: pytest.MonkeyPatch, answers: Mapping[tuple[int, ...], Sequence[int]]) -> None:
    """Guesses are right but for their last token.

    Args:
        answers: prompt -> what the model says to it.
    """

    def guess(self: PromptLookup, answer: Sequence[int], count: int) -> list[int]:
        prompt = tuple(self._tokens[: self._num_prompt])
        right = answers[prompt][len(answer) : len(answer) + count - 1]
        return [*right, 5][:count]

    monkeypatch.setattr(PromptLookup, "guess", guess)


def note_drafts(
    decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> list[Mapping[int, Sequence[int]]]:
    """The lines of each step with guesses, as they come."""
    seen: list[Mapping[int, Sequence[int]]] = []
    step_drafts = decoder.step_drafts

    def noted(lines: Mapping[int, Sequence[int]]) -> Any:
        seen.append(lines)
        return step_drafts(lines)

    monkeypatch.setattr(decoder, "step_drafts", noted)
    return seen
