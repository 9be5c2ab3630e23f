"""Types of an adapter's fields: what PEFT writes passes, what it would stumble over is named."""

import dataclasses
import json
from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, EvaConfig, MontecloraConfig, VeloraConfig

from adapters.checks.lora_fields import check_fields, num_blocks


def saved(**fields: Any) -> dict[str, Any]:
    """A configuration as PEFT writes it."""
    config = LoraConfig(target_modules=["q_proj"], **fields)
    plain = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "runtime_config"
    }
    text = json.dumps(plain, default=lambda o: list(o) if isinstance(o, set) else vars(o))
    read: dict[str, Any] = json.loads(text)
    return read


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)},
        {"velora_config": VeloraConfig(), "monteclora_config": None},
        {"monteclora_config": MontecloraConfig()},
        {"init_lora_weights": "eva", "eva_config": EvaConfig()},
        {"trainable_token_indices": {"embed_tokens": [3, 4]}, "modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 4], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"layers_to_transform": [0, 1], "use_dora": True, "target_parameters": ["gate.weight"]},
        {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
    ],
    ids=lambda fields: ", ".join(fields) or "defaults",
)
def test_what_peft_writes_passes(fields: dict[str, Any]) -> None:
    assert check_fields(saved(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"eva_config": "x"}, "eva_config is 'x'; an object or null is expected"),
        ({"kasa_config": False}, "kasa_config is False; an object or null is expected"),
        ({"use_bdlora": True}, "use_bdlora is True; an object or null is expected"),
        ({"use_bdlora": {"nblocks": 0}}, "nblocks of use_bdlora is 0; 1 or more is expected"),
        ({"use_bdlora": {"target_modules_bd_a": "q_proj"}},
         "target_modules_bd_a of use_bdlora is 'q_proj'; a list of texts is expected"),
        ({"use_dora": 1}, "use_dora is 1; true or false is expected"),
        ({"lora_bias": "no"}, "lora_bias is 'no'; true or false is expected"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; a list of texts"),
        ({"target_parameters": True}, "target_parameters is True; a list of texts"),
        ({"target_modules": False}, "target_modules is False; text or a list of texts"),
        ({"layers_to_transform": True}, "layers_to_transform is True; the number of a layer"),
        ({"layers_to_transform": [-1]}, r"layers_to_transform is [-1]; the number of a layer"),
        ({"alora_invocation_tokens": 3}, "alora_invocation_tokens is 3; a list of token ids"),
        ({"trainable_token_indices": {"embed_tokens": "x"}},
         "trainable_token_indices is {'embed_tokens': 'x'}; a list of token ids"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1; true, false or the name"),
    ],
    ids=lambda given: str(given)[:60] if isinstance(given, dict) else "",
)  # fmt: skip
def test_what_peft_would_stumble_over_is_named(fields: dict[str, Any], named: str) -> None:
    [problem] = check_fields(saved() | fields)
    assert problem.startswith(named)


def test_blocks() -> None:
    assert num_blocks({}) == num_blocks({"use_bdlora": {}}) == 1
    assert num_blocks({"use_bdlora": {"nblocks": 4}}) == 4
    assert num_blocks({"use_bdlora": {"nblocks": "x"}}) == 1, "named by check_fields"
