"""Patterns of an adapter's configuration: those that compile and come to an end are taken."""

import time
from typing import Any

import pytest

from adapters.checks.patterns import check_patterns

NAMES = [f"model.layers.{number}.self_attn.{part}_proj" for number in range(4) for part in "qkv"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["q_proj", "(((no pattern in a list"]},
        {"target_modules": "all-linear", "exclude_modules": None},
        {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"},
        {"target_modules": r"^(?!.*visual).*(?:q_proj|k_proj)$"},
        {"target_modules": r"(?:.*?(?:text|model).*?(?:layers|h).*?(?:attn|mlp).*?(?:q_proj))"},
        {"rank_pattern": {"q_proj": 4, "^model.layers.0.*": 8}, "alpha_pattern": None},
        {"layers_pattern": "layers"},
        {"layers_pattern": ["h", "layers"]},
    ],
)
def test_usual_patterns(config: dict[str, Any]) -> None:
    assert check_patterns(config, NAMES) == []


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"target_modules": "(((q"}, "target_modules '(((q': no regular expression"),
        ({"exclude_modules": "[z-a]"}, "exclude_modules '[z-a]': no regular expression"),
        ({"rank_pattern": {"q(": 4}}, "rank_pattern 'q(': no regular expression"),
        ({"target_modules": "(.*)*(.*)*x"}, "target_modules '(.*)*(.*)*x': takes more than 1 s"),
        ({"alpha_pattern": {"q_proj": 1, "(.+)+z": 4}}, "alpha_pattern '(.+)+z': takes more"),
        ({"layers_pattern": ["layers", "((.+)+)+"]}, "layers_pattern '((.+)+)+': takes more"),
    ],
)
def test_patterns_that_are_refused(
    config: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.checks.patterns.TIMEOUT_S", 1.0)
    started = time.monotonic()
    [problem] = check_patterns(config, NAMES)
    assert problem.startswith(part)
    assert time.monotonic() - started < 8
