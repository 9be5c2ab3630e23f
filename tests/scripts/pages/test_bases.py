"""The table of bases: a line for each architecture, with tests that exist."""

import pytest

from deployments.engine.models.architectures import ARCHITECTURES
from deployments.engine.models.t5 import T5_MODELS
from scripts.pages import bases
from tests.deployments.engine import test_architectures, test_bfloat16
from tests.tiny_architectures import RECIPES


def test_the_page_has_the_generated_table() -> None:
    text = bases.PAGE.read_text(encoding="utf-8")
    written = text.split("<!-- bases -->\n")[1].split("\n<!-- /bases -->")[0]
    assert written == bases.table(), "run `python -m scripts.pages.bases`"


@pytest.mark.parametrize("name", [*ARCHITECTURES, *T5_MODELS])
def test_a_line_names_tests_that_run_this_architecture(name: str) -> None:
    lines = [line for line in bases.table().splitlines() if f"`{name}`" in line]
    assert len(lines) == 1
    assert "2 layers of 64, float32: `test_architectures.py`" in lines[0]
    assert any(model.__name__ == name for _, model, _ in RECIPES.values())
    assert test_architectures.__file__.endswith("test_architectures.py")


def test_a_full_size_is_one_that_a_test_runs() -> None:
    marks = test_bfloat16.test_full_size.pytestmark  # type: ignore[attr-defined]
    shapes = next(mark.args[1] for mark in marks if mark.name == "parametrize")
    assert set(bases.FULL_SIZE.values()) == set(shapes)


def test_what_is_beyond_llama_is_said() -> None:
    said = {name: ARCHITECTURES[name].features for name in ARCHITECTURES}
    assert said["LlamaForCausalLM"] == ()
    assert "soft caps" in said["Gemma2ForCausalLM"]
    assert "soft caps" not in said["Gemma3ForCausalLM"]
    assert said["Phi3ForCausalLM"] == (
        "fused qkv_proj and gate_up_proj",
        "sliding windows",
        "partial RoPE",
    )
    assert said["GraniteForCausalLM"] == ("multipliers",)
