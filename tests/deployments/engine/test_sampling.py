"""Sampling: against transformers' own processors, independent of the batch, repeatable."""

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deployments.engine.draw import uniform
from deployments.engine.request import SamplingParams
from deployments.engine.sampling import Sampler

VOCABULARY = 40
EOS = (3, 7)


def sampler(num_rows: int = 4) -> Sampler:
    return Sampler(num_rows, VOCABULARY, EOS, torch.device("cpu"))


def params(**more: object) -> SamplingParams:
    return SamplingParams(max_tokens=64, **more)  # type: ignore[arg-type]


def logits(seed: int, num_rows: int = 1) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def drawn(n: int, scores: torch.Tensor, **more: object) -> list[int]:
    """One token from each of n seeds."""
    tokens = []
    for seed in range(n):
        picker = sampler()
        picker.begin(0, params(seed=seed, **more), [])
        tokens.append(int(picker.pick(scores, [0])))
    return tokens


def test_greedy_is_the_largest_logit() -> None:
    picker = sampler()
    for row in range(3):
        picker.begin(row, params(), [])
    scores = logits(0, 3)
    assert picker.pick(scores, [2, 0, 1]).tolist() == scores.argmax(-1).tolist()


def test_frequencies_follow_the_probabilities() -> None:
    scores = logits(1)
    counts = torch.bincount(torch.tensor(drawn(4000, scores, temperature=1.3)), minlength=40)
    expected = (scores / 1.3).softmax(-1)[0]
    assert (counts / 4000 - expected).abs().max() < 0.03
    assert (counts > 0).sum() > 15


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 0.7, "top_k": 5}, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(5)]),
        ({"temperature": 1.5, "top_p": 0.6}, [TemperatureLogitsWarper(1.5), TopPLogitsWarper(0.6)]),
        (
            {"temperature": 1.2, "top_k": 12, "top_p": 0.8},
            [TemperatureLogitsWarper(1.2), TopKLogitsWarper(12), TopPLogitsWarper(0.8)],
        ),
        ({"temperature": 1.0, "top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
    ],
)
def test_only_what_transformers_keeps_is_drawn(
    options: dict[str, float], warpers: list[object]
) -> None:
    for seed in range(4):
        scores = logits(seed)
        kept = scores
        for warper in warpers:
            kept = warper(None, kept)  # type: ignore[operator]
        chances = kept.softmax(-1)[0]
        allowed = set(kept.isfinite()[0].nonzero().flatten().tolist())
        likely = {token for token in allowed if chances[token] > 0.02}
        assert likely <= set(drawn(600, scores, **options)) <= allowed


def test_a_seeded_answer_does_not_depend_on_its_batch() -> None:
    scores = [logits(seed, 3) for seed in range(12)]
    alone, together = sampler(), sampler()
    alone.begin(0, params(temperature=1.0, seed=11), [])
    together.begin(1, params(temperature=2.0, seed=5), [])
    together.begin(2, params(), [])
    together.begin(3, params(temperature=1.0, seed=11), [])
    first = [int(alone.pick(s[2:], [0])) for s in scores]
    second = [together.pick(s, [1, 2, 3]).tolist() for s in scores]
    assert first == [tokens[2] for tokens in second]
    assert [tokens[1] for tokens in second] == [int(s[1].argmax()) for s in scores]
    assert len(set(first)) > 3


def test_without_a_seed_answers_differ() -> None:
    answers = set()
    for _ in range(3):
        picker = sampler()
        picker.begin(0, params(temperature=2.0), [])
        answers.add(tuple(int(picker.pick(logits(seed), [0])) for seed in range(12)))
    assert len(answers) > 1


def test_the_repetition_penalty_is_transformers() -> None:
    picker = sampler()
    picker.begin(0, params(repetition_penalty=1.7), [1, 2, 3])
    picker.begin(1, params(), [])
    context = [1, 2, 3]
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    changed = 0
    for seed in range(30):
        scores = logits(seed, 2)
        expected = processor(torch.tensor([context]), scores[:1]).argmax(-1).item()
        token, other = picker.pick(scores, [0, 1]).tolist()
        assert token == expected
        assert other == scores[1].argmax()
        changed += token != scores[0].argmax()
        context.append(token)
    assert changed > 3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeated_ngram_is_transformers(size: int) -> None:
    """Of two rows, the context counts as said; a vocabulary of two words makes repetitions sure."""
    picker = sampler()
    asked = SamplingParams(40, no_repeat_ngram_size=size)
    context = [1, 2, 1, 3]
    picker.begin(0, asked, context)
    picker.begin(1, params(), [])
    assert not picker.is_argmax([0, 1]), "a captured step would not know what was said"
    assert picker.is_argmax([1])
    processor = NoRepeatNGramLogitsProcessor(size)
    changed = 0
    for seed in range(VOCABULARY - 4 if size == 1 else 40):
        scores = logits(seed % 5, 2)
        allowed = processor(torch.tensor([context]), scores[:1].clone())
        expected = allowed.argmax(-1).item()
        token, other = picker.pick(scores, [0, 1]).tolist()
        assert token == expected
        assert other == scores[1].argmax()
        changed += token != scores[0].argmax()
        context.append(token)
    assert changed > 3
    picker.free(0)
    picker.begin(0, params(), [])
    assert int(picker.pick(logits(0), [0])) == logits(0).argmax()


def test_no_end_before_min_tokens() -> None:
    picker = sampler()
    picker.begin(0, params(min_tokens=3), [])
    processor = MinNewTokensLengthLogitsProcessor(0, 3, list(EOS))
    tokens = []
    for number in range(5):
        scores = logits(number)
        scores[0, 7] = 100.0
        expected = processor(torch.zeros(1, number), scores).argmax(-1).item()
        tokens.append(int(picker.pick(scores, [0])))
        assert tokens[-1] == expected
    assert [token == 7 for token in tokens] == [False, False, False, True, True]


def test_a_freed_row_leaves_nothing_to_the_next() -> None:
    picker = sampler()
    picker.begin(0, params(repetition_penalty=5.0), range(VOCABULARY))
    picker.free(0)
    picker.begin(0, params(repetition_penalty=5.0), [])
    scores = logits(2)
    assert picker.pick(scores, [0]).item() == scores.argmax()


def test_the_hash_is_even() -> None:
    numbers = torch.tensor([uniform(seed, n) for seed in range(60) for n in range(60)])
    assert abs(numbers.mean() - 0.5) < 0.02
    assert abs(numbers.std() - 12**-0.5) < 0.01
    assert numbers.unique().numel() == 3600
