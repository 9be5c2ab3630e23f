"""The gate: what it lets in, what it refuses and why, and that nothing is lost on the way."""

import copy
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.bases.models import sha256_of
from adapters.catalog import load_catalog
from adapters.seed_check import check_seed
from adapters.store import open_store
from adapters.versions import RegisteredAdapter
from scripts import promote_adapter
from tests.tiny_models import make_adapter

WEIGHTS = "adapter_model.safetensors"
HEAD = """# ours, and it stays

revision: 0
base_models:
- name: tiny
  prompt_format: chat
  system_line: Answer.
  languages: [en]
adapters:
- name: oncology
  specialty: oncology
  base_model: other
  state: active
  version: '7'
  versions:
  - version: '7'
    sha256: SHA
    config_sha256: SHA
    path: seed:weights/oncology
    source: seed
    rank: 2
    num_bytes: 10
""".replace("SHA", "f" * 64)


@pytest.fixture(params=["tiny_llama_dir", "tiny_flan_t5_dir"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_adapter(
        request.getfixturevalue(request.param), tmp_path / "dermatology", base_name="tiny", seed=1
    )


@pytest.fixture
def llama(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_llama_dir, tmp_path / "dermatology", base_name="tiny", seed=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "catalog.yaml").write_text(HEAD)
    return folder


def good_result(adapter: Path) -> dict[str, Any]:
    """What evaluate_adapter writes of these weights, as far as the gate reads it."""

    def metric(base: float, value: float, low: float, high: float) -> dict[str, Any]:
        systems = {"base": {"value": base}, "adapter": {"value": value}}
        return {"systems": systems, "difference": {"value": value - base, "interval": [low, high]}}

    return {
        "specialty": "dermatology",
        "base_model": "tiny",
        "split": "validation",
        "adapter_sha256": sha256_of(adapter / WEIGHTS),
        "num_questions": 30,
        "answers_changed": 0.9,
        "commit": "abc1234",
        "metrics": {
            "nll": metric(2.4, 1.9, -0.6, -0.4),
            "rouge_l": metric(16.0, 18.0, -0.5, 4.5),
            "bleu": metric(3.0, 5.0, 0.5, 3.5),
        },
    }


def promote(adapter: Path, catalog: Path, result: Any, *more: str) -> int:
    file = catalog.parent / "result.json"
    file.write_text(result if isinstance(result, str) else json.dumps(result))
    return promote_adapter.main(
        ["--adapter", str(adapter), "--evaluation", str(file), "--catalog", str(catalog), *more]
    )


def listed(catalog: Path) -> dict[str, RegisteredAdapter]:
    return {adapter.name: adapter for adapter in load_catalog(catalog).adapters}


def checked(catalog: Path) -> tuple[RegisteredAdapter, ...]:
    return check_seed(open_store(catalog.parent / "state", catalog, catalog.parent), "tiny")


def other_weights(adapter: Path) -> None:
    file = adapter / WEIGHTS
    state = {name: value * 0.5 for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def test_a_good_adapter_is_in_service(
    adapter: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "notes.txt").write_text("not part of it")
    assert promote(adapter, catalog, good_result(adapter)) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["state"], told["version"], told["failed"]) == ("active", "1", [])
    (found,) = checked(catalog)
    assert found.name == "dermatology"
    assert found.stable.evaluation["nll_difference_interval"] == [-0.6, -0.4]
    files = {path.name for path in (catalog / "weights" / "dermatology").iterdir()}
    assert {WEIGHTS, "adapter_config.json"} <= files
    assert "notes.txt" not in files
    text = (catalog / "catalog.yaml").read_text()
    assert text.startswith(HEAD), "the rest stays byte for byte"

    assert promote(adapter, catalog, good_result(adapter)) == 0
    assert (catalog / "catalog.yaml").read_text() == text, "again changes nothing"
    other_weights(adapter)
    assert promote(adapter, catalog, good_result(adapter)) == 0
    assert listed(catalog)["dermatology"].version == "2"
    assert checked(catalog)


def test_a_limited_evaluation_proves_nothing(
    adapter: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote(adapter, catalog, good_result(adapter) | {"limit": 30}) == 1
    assert "the evaluation took --limit 30" in capsys.readouterr().err


def set_interval(metric: str, low: float, high: float) -> Any:
    def change(result: dict[str, Any]) -> None:
        result["metrics"][metric]["difference"]["interval"] = [low, high]

    return change


def set_field(name: str, value: Any) -> Any:
    return lambda result: result.update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_interval("nll", -0.3, 0.1), "likelihood of the references does not rise"),
        (set_interval("nll", -0.02, -0.005), "the interval must be below -0.01"),
        (set_interval("nll", 0.1, 0.2), "changes by [0.100, 0.200] nats"),
        (set_interval("rouge_l", -3.0, -0.1), "ROUGE-L is worse: it changes by [-3.00, -0.10]"),
        (set_interval("bleu", -3.0, -0.1), "BLEU is worse"),
        (set_field("num_questions", 29), "29 validation questions; 30 are needed"),
        (set_field("split", "train"), "on the split 'train'; validation is needed"),
        (set_field("adapter_sha256", "f" * 64), "the evaluation is of adapter_sha256 ffff"),
        (set_field("base_model", "big"), "of base_model big, and the adapter's is tiny"),
        (set_field("answers_changed", 0), "every answer is the base's own"),
    ],
)
def test_what_is_not_proved_is_listed_as_disabled_with_the_reason(
    change: Any, reason: str, llama: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = good_result(llama)
    change(result)
    assert promote(llama, catalog, result) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    told = json.loads(captured.out.splitlines()[-1])
    assert (told["state"], len(told["failed"])) == ("disabled", 1)
    found = listed(catalog)["dermatology"]
    assert (found.state, reason in found.reason) == ("disabled", True)
    assert not (catalog / "weights" / "dermatology").exists()
    assert checked(catalog) == ()


def test_an_untrained_adapter_is_refused(adapter: Path, catalog: Path) -> None:
    """B is zero, as PEFT makes it: nothing changes, whatever an evaluation says."""
    file = adapter / WEIGHTS
    state = {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    result = good_result(adapter)
    result["answers_changed"] = 0
    set_interval("nll", 0.0, 0.0)(result)
    assert promote(adapter, catalog, result) == 1
    reason = listed(catalog)["dermatology"].reason
    for part in ("every lora_B is zero", "does not rise", "every answer is the base's own"):
        assert part in reason


def test_damaged_and_large_adapters_are_refused(
    llama: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote(llama, catalog, good_result(llama), "--max_bytes", "1000") == 1
    assert "at most 1000 are allowed" in capsys.readouterr().err
    state = load_file(llama / WEIGHTS)
    next(iter(state.values()))[0, 0] = torch.nan
    save_file(state, llama / WEIGHTS, metadata={"format": "pt"})
    assert promote(llama, catalog, good_result(llama)) == 1
    assert "holds NaN or infinity" in capsys.readouterr().err
    (llama / WEIGHTS).write_bytes(b"half")
    assert promote(llama, catalog, good_result(llama)) == 1
    assert "cannot be read as safetensors" in capsys.readouterr().err


def test_a_worse_version_leaves_the_one_in_service(
    llama: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote(llama, catalog, good_result(llama)) == 0
    before = (catalog / "catalog.yaml").read_bytes()
    other_weights(llama)
    worse = good_result(llama)
    set_interval("bleu", -3.0, -0.1)(worse)
    capsys.readouterr()
    assert promote(llama, catalog, worse) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "refused"
    assert (catalog / "catalog.yaml").read_bytes() == before
    assert len(checked(catalog)) == 1


def test_the_one_in_service_is_switched_off_when_it_fails_anew(llama: Path, catalog: Path) -> None:
    assert promote(llama, catalog, good_result(llama)) == 0
    worse = good_result(llama)
    set_interval("bleu", -3.0, -0.1)(worse)
    assert promote(llama, catalog, worse) == 1
    assert listed(catalog)["dermatology"].state == "disabled"


def test_a_full_disk_leaves_files_and_catalogue_as_they_were(
    llama: Path,
    catalog: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The new weights are in place when the catalogue cannot be written."""

    def full(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("adapters.seed.write_atomically", full)
        assert promote(llama, catalog, good_result(llama)) == 2
    assert "No space left" in capsys.readouterr().err
    assert not (catalog / "weights" / "dermatology").exists()

    assert promote(llama, catalog, good_result(llama)) == 0
    before = {path: path.read_bytes() for path in catalog.rglob("*.*") if path.is_file()}
    other_weights(llama)
    with monkeypatch.context() as patch:
        patch.setattr("adapters.seed.write_atomically", full)
        assert promote(llama, catalog, good_result(llama)) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in (catalog / "weights").iterdir()] == ["dermatology"]
    assert checked(catalog)


def test_a_second_adapter_of_a_specialty_is_refused(
    llama: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote(llama, catalog, good_result(llama)) == 0
    before = (catalog / "catalog.yaml").read_bytes()
    second = Path(shutil.copytree(llama, llama.with_name("skin")))
    assert promote(second, catalog, good_result(second)) == 2
    assert "dermatology" in capsys.readouterr().err
    assert (catalog / "catalog.yaml").read_bytes() == before
    assert not (catalog / "weights" / "skin").exists()


def without(*keys: str) -> Any:
    def change(result: dict[str, Any]) -> None:
        inner = result
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("metrics", "bleu"),
        without("metrics", "nll", "difference"),
        without("adapter_sha256"),
        without("num_questions"),
        set_interval("rouge_l", float("nan"), float("nan")),
    ],
)
def test_an_evaluation_that_is_none(
    change: Any, llama: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = copy.deepcopy(good_result(llama))
    change(result)
    for given in (result, json.dumps(result)[:200]):
        assert promote(llama, catalog, given) == 2
        assert "no result of scripts.evaluate_adapter" in capsys.readouterr().err
    assert (catalog / "catalog.yaml").read_text() == HEAD


def test_inputs_that_are_not_there(
    llama: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = good_result(llama)
    assert promote(tmp_path / "none", catalog, result) == 2
    assert "cannot be read as an adapter's config" in capsys.readouterr().err
    assert promote(llama, tmp_path / "nowhere", result) == 2
    assert "nowhere" in capsys.readouterr().err
    named = Path(shutil.copytree(llama, tmp_path / "Derm Skin"))
    assert promote(named, catalog, result) == 2
    assert "1 to 64 of a-z" in capsys.readouterr().err
    (llama / WEIGHTS).unlink()
    assert promote(llama, catalog, result) == 2
    assert f"{WEIGHTS}: no such file" in capsys.readouterr().err
    assert (catalog / "catalog.yaml").read_text() == HEAD
