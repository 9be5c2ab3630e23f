"""An adapter of a model that reads images gives the same logits on its text part, converted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from adapters.ingest import IngestRefused, VersionRequest, inspect_adapter
from scripts.convert_adapter import main
from scripts.save_text_part import main as save_text_part
from tests.scripts.test_save_text_part import whole

__all__ = ["whole"]  # a fixture

pytestmark = pytest.mark.slow

IDS = torch.arange(30)[None] * 7 % 390
# As Unsloth writes it, and as people write it by hand: the latter adapts what reads images, too.
KINDS: dict[str, dict[str, Any]] = {
    "pattern": {
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?"
        r"(?:q_proj|v_proj|gate_proj|down_proj))",
        "rank_pattern": {r"language_model\.layers\.1\..*q_proj": 3, "down_proj": 5},
        "alpha_pattern": {"v_proj": 9},
        "use_rslora": True,
    },
    "names": {"target_modules": ["q_proj", "o_proj", "out_proj"], "use_dora": True},
    "some layers": {
        "target_modules": r".*language_model.*\.(?:k_proj|up_proj)",
        "exclude_modules": r".*layers\.2\..*",
        "modules_to_save": ["lm_head"],
    },
}


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(whole)
    config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **KINDS[request.param])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save.default" in name:
                weight.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def logits(model: Any, adapter: Path) -> torch.Tensor:
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        found: torch.Tensor = adapted(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("is_old", [False, True])
def test_a_converted_adapter_has_the_same_logits(
    whole: Path, adapter: Path, is_old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """is_old: with the names that transformers gave until 4.51."""
    expected = logits(AutoModelForImageTextToText.from_pretrained(whole), adapter)
    plain = AutoModelForImageTextToText.from_pretrained(whole)(input_ids=IDS).logits
    assert (expected - plain).abs().max() > 1e-2, "nothing would be tested"
    if is_old:
        rename(adapter)
    base, out = tmp_path / "text", tmp_path / "converted"
    assert save_text_part(["--base_model", str(whole), "--out", str(base)]) == 0
    capsys.readouterr()
    with pytest.raises(IngestRefused, match=r"reads images .* scripts\.convert_adapter"):
        inspect_adapter(adapter, VersionRequest("a", "a", str(base), "1", str(adapter)))
    words = ["--adapter", str(adapter), "--base_model", str(base), "--out", str(out)]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    text = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(logits(text, out), expected)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    of_images = [name for name in tensors if "vision_tower" in name]
    assert report["left_out"] == len(of_images)
    assert report["tensors"] + len(of_images) == len(tensors)
    again = ["--adapter", str(out), "--out", str(tmp_path / "again")]
    assert main(again) == 2
    assert "of no model that reads images" in capsys.readouterr().err


def rename(adapter: Path) -> None:
    """Give the tensors and the patterns of an adapter the older names."""
    prefix, names = "base_model.model.", {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "lm_head.": "language_model.lm_head.",
    }  # fmt: skip
    file = adapter / "adapter_model.safetensors"
    tensors = {}
    for name, own in load_file(file).items():
        new = next(new for new in names if name.startswith(prefix + new))
        tensors[name.replace(new, names[new], 1)] = own
    save_file(tensors, file)
    config = adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    fields["rank_pattern"] = {
        key.replace(r"language_model\.", r"language_model\.model\."): own
        for key, own in fields["rank_pattern"].items()
    }
    config.write_text(json.dumps(fields))
