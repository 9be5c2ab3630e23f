"""The stored budgets, and the fixture that holds a count against its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

BUDGETS = Path(__file__).with_name("budgets.yaml")
Hold = Callable[[str, float], None]


def check(name: str, value: float) -> None:
    budget = yaml.safe_load(BUDGETS.read_text(encoding="utf-8"))[name]
    assert value <= budget, (
        f"{name}: {value:g}, budget {budget:g}. Make it cheaper again, or raise the budget in "
        "tests/budgets/budgets.yaml and say in the commit why it is worth it"
    )


@pytest.fixture
def hold() -> Hold:
    """`hold(name, value)` fails with the counter's name if `value` is above its budget."""
    return check
