"""What `quantization` cannot be, by device, decoder and folder, and what to set instead."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from deployments.app import check_base, choose_device
from deployments.settings import parse_settings
from deployments.startup.application_checks import check_args
from deployments.startup.quantization import quantization_problems
from deployments.strict_model import SettingsError


def problems(device: str, stored: Any = None, decoder: str = "auto", **args: Any) -> list[str]:
    settings = parse_settings({**args, "engine": {"decoder": decoder}})
    return quantization_problems(settings, device, stored)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8", "none", "auto"])
def test_a_gpu_takes_all_of_its_own(kind: str) -> None:
    assert problems("cuda", quantization=kind) == []


@pytest.mark.parametrize("kind", ["int8", "int4", "none", "auto"])
def test_a_cpu_takes_all_of_its_own(kind: str) -> None:
    assert problems("cpu", quantization=kind) == []


@pytest.mark.parametrize(
    ("device", "stored", "args", "words"),
    [
        ("cpu", None, {"quantization": "nf4"}, "'nf4' needs a GPU"),
        ("cpu", None, {"quantization": "fp8"}, "'fp8' needs a GPU"),
        ("cuda", None, {"quantization": "int4"}, "'int4' is a CPU's"),
        ("cuda", None, {"quantization": "fp8", "decoder": "reference"}, "is the fast decoder's"),
        ("auto", None, {"quantization": "fp8", "decoder": "reference"}, "is the fast decoder's"),
        ("cpu", "int8", {}, "quantised to int8 by bitsandbytes, which needs a GPU"),
        ("cpu", "int8", {"quantization": "int8"}, "name a folder of the plain weights"),
        (
            "cuda",
            "int8",
            {"quantization": "none"},
            "are in int8 already: set quantization: auto or",
        ),
        ("cuda", "nf4", {"quantization": "int8"}, "are in nf4 already"),
        ("auto", "nf4", {"quantization": "fp8"}, "are in nf4 already"),
    ],
)
def test_what_does_not_fit_is_named(
    device: str, stored: Any, args: dict[str, Any], words: str
) -> None:
    (problem,) = problems(device, stored, **args)
    assert words in problem
    assert ": set " in problem or ": name " in problem


@pytest.mark.parametrize("stored", ["int8", "nf4"])
def test_folders_quantised_already_are_served_as_they_are(stored: Any) -> None:
    assert problems("cuda", stored) == []
    assert problems("cuda", stored, quantization=stored) == []
    assert problems("auto", stored) == []


def test_bitsandbytes_is_for_the_reference_decoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems("cuda", quantization="int8") == []
    assert problems("cuda", quantization="none", decoder="reference") == []
    for stored, args in ((None, {"quantization": "int8"}), ("nf4", {})):
        (problem,) = problems("cuda", stored, decoder="reference", **args)
        assert "needs bitsandbytes, which is not installed" in problem
        assert "engine.decoder: auto" in problem


@pytest.fixture
def quantised_dir(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_preflight_and_start_look_into_the_folder(quantised_dir: Path) -> None:
    args = {"base_model": str(quantised_dir), "quantization": "nf4", "device": "cuda"}
    (problem,) = check_args(args)
    assert problem.startswith("args.quantization: 'nf4', but the weights of base_model are in int8")
    with pytest.raises(SettingsError, match="are in int8 already"):
        check_base(parse_settings(args), "cuda")
    assert check_args({**args, "quantization": "auto"}) == []
    assert check_base(parse_settings({**args, "quantization": "auto"}), "cuda") > 0
    with pytest.raises(SettingsError, match="needs a GPU here"):  # device: auto, and no GPU
        check_base(parse_settings({"base_model": str(quantised_dir)}), "cpu")


def test_the_device_is_known_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert choose_device(parse_settings({"quantization": "fp8"})) == "cuda"
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(SettingsError, match="'fp8' needs a GPU, and the device is the CPU"):
        choose_device(parse_settings({"quantization": "fp8"}))


def test_int8_keys_and_values_are_the_fast_decoders_on_a_gpu() -> None:
    def found(device: str, kind: str, decoder: str = "auto") -> list[str]:
        engine = {"kv_cache_dtype": kind, "decoder": decoder}
        return quantization_problems(parse_settings({"engine": engine}), device)

    for device in ("cuda", "auto"):
        assert found(device, "int8") == []
        (problem,) = found(device, "int8", "reference")
        assert problem.startswith("engine.kv_cache_dtype: 'int8' is the fast decoder's")
    (problem,) = found("cpu", "int8")
    assert "needs a GPU, and the device is the CPU" in problem
    assert "set it to auto" in problem
    assert found("cpu", "auto", "reference") == []
    with pytest.raises(SettingsError, match="kv_cache_dtype"):
        found("cuda", "fp8")
