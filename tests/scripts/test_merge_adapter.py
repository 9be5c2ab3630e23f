"""Merging equals PEFT's adapter on its base, is checked before it is written, or is refused."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from scripts import merge_adapter
from scripts.lora import merge, merged_folder, parity
from scripts.lora.errors import MergeError
from tests.tiny_models import load_model, make_adapter

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
FAMILIES = ["tiny_llama_dir", "tiny_flan_t5_dir"]
QUESTION = "What causes migraine?"


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def adapters(base: Path, folder: Path, *, rank: int = 4) -> list[Path]:
    return [
        make_adapter(base, folder / name, base_name="tiny", seed=seed, rank=rank, std=0.3)
        for seed, name in enumerate(("derm", "cardio"))
    ]


def run(base: Path, out: Path, folders: list[Path], *more: str) -> int:
    return merge_adapter.main(
        [
            *("--adapter", *map(str, folders), "--out", str(out), "--device", "cpu"),
            *("--base_model", str(base), "--base_model_name", "tiny"),
            *("--max_new_tokens", "8", "--repeats", "1", *more),
        ]
    )


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


@torch.inference_mode()
def logits(model: Any, base: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(base)(QUESTION, return_tensors="pt").input_ids
    given = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    return torch.as_tensor(model(input_ids=ids, **given).logits)


def peft_model(base: Path, folders: list[Path]) -> PeftModel:
    model = PeftModel.from_pretrained(load_model(base), str(folders[0]), adapter_name="a0")
    for i, folder in enumerate(folders[1:], start=1):
        model.load_adapter(str(folder), adapter_name=f"a{i}")
    return model.eval()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).norm() / one.norm()) < 1e-4


def test_a_merged_model_is_the_base_with_its_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapters(base, tmp_path)[0]
    wanted = logits(peft_model(base, [folder]), base)
    assert not same(logits(load_model(base), base), wanted), "the adapter changes something"
    assert run(base, tmp_path / "out", [folder]) == 0
    report = report_of(capsys)
    assert same(logits(load_model(tmp_path / "out"), base), wanted)
    assert report["logits_relative_error"] <= 1e-4
    assert (report["equal_answers"], report["kind"]) == ("4 of 4", "model")
    assert report["read_back"] == {"logits_equal": True}
    assert report["bytes_before"] > report["bytes_after"]
    assert report["tokens_per_s_after"] > 0
    written = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert written["logits_relative_error"] == report["logits_relative_error"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(QUESTION).input_ids


def test_a_weighted_sum_is_pefts(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = adapters(base, tmp_path)
    model = peft_model(base, folders)
    model.add_weighted_adapter(["a0", "a1"], [0.7, 0.3], "sum", combination_type="cat")
    alone = [logits(model, base)]
    model.set_adapter("sum")
    wanted = logits(model, base)
    assert not same(alone[0], wanted)
    assert run(base, tmp_path / "out", folders, "--weights", "0.7", "0.3") == 0
    assert report_of(capsys)["weights"] == [0.7, 0.3]
    assert same(logits(load_model(tmp_path / "out"), base), wanted)


@pytest.mark.parametrize(
    ("combination", "more"),
    [
        ("linear", []),
        ("svd", []),
        ("ties", ["--density", "0.5"]),
        ("dare_linear", ["--density", "0.5"]),
    ],
)
def test_a_sum_as_an_adapter_is_pefts(
    combination: str, more: list[str], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folders = adapters(tiny_llama_dir, tmp_path)
    model = peft_model(tiny_llama_dir, folders)
    options = {"density": 0.5} if more else {}
    torch.manual_seed(0)
    model.add_weighted_adapter(
        ["a0", "a1"], [1, 0.5], "sum", combination_type=combination, **options
    )
    wanted = get_peft_model_state_dict(model, adapter_name="sum")
    words = ["--weights", "1", "0.5", "--combination", combination, "--save_adapter_only", *more]
    assert run(tiny_llama_dir, tmp_path / "out", folders, *words) == 0
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name].to(torch.bfloat16)), name
    again = PeftModel.from_pretrained(load_model(tiny_llama_dir), str(tmp_path / "out"))
    assert not same(
        logits(again, tiny_llama_dir), logits(load_model(tiny_llama_dir), tiny_llama_dir)
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_bfloat16_has_its_own_tolerance(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapters(tiny_llama_dir, tmp_path)[0]
    assert run(tiny_llama_dir, tmp_path / "out", [folder], "--dtype", "bfloat16") == 0
    report = report_of(capsys)
    assert 1e-4 < report["logits_relative_error"] <= report["logits_tolerance"] == 0.06


def test_a_merge_that_is_not_exact_is_refused(
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One layer is a per cent off after merging, say."""
    finite = merge.check_finite

    def damage_first(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight.mul_(1.01)
        finite(model)

    monkeypatch.setattr(merge, "check_finite", damage_first)
    folder = adapters(tiny_llama_dir, tmp_path)[0]
    assert run(tiny_llama_dir, tmp_path / "out", [folder]) == 2
    assert "differ from base plus adapter by 0.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_answers_are_refused_in_float32_and_counted_in_bfloat16() -> None:
    before = parity.ProbeResult([[1], [2]], [torch.ones(1, 3)] * 2, 1.0)
    after = parity.ProbeResult([[1], [3]], [torch.ones(1, 3)] * 2, 1.0)
    with pytest.raises(MergeError, match="greedy answer to prompt 2 differs"):
        parity.check_parity(before, after, "float32")
    assert parity.check_parity(before, after, "bfloat16")["equal_answers"] == "1 of 2"


def test_a_folder_that_reads_back_differently_is_refused(
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if a weight were not saved: the plain base is read instead."""
    load = parity.load_base
    monkeypatch.setattr(parity, "load_base", lambda path, *rest: load(tiny_llama_dir, *rest))
    folder = adapters(tiny_llama_dir, tmp_path)[0]
    assert run(tiny_llama_dir, tmp_path / "out", [folder]) == 2
    assert "the written model's logits differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def damage(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize("more", [[], ["--weights", "1", "--save_adapter_only"]])
def test_nan_is_refused_and_nothing_is_written(
    more: list[str], tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapters(tiny_llama_dir, tmp_path)[0]
    damage(folder)
    assert run(tiny_llama_dir, tmp_path / "out", [folder], *more) == 2
    assert "NaN or infinity" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cardio", "derm"]


def test_a_full_disk(
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seen before it is tried, and in the middle of it; what was there stays."""
    folder, out = adapters(tiny_llama_dir, tmp_path)[0], tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("kept")
    small = SimpleNamespace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(merged_folder.shutil, "disk_usage", lambda _: small)
        assert run(tiny_llama_dir, out, [folder], "--overwrite") == 2
    assert "0 MiB are free" in capsys.readouterr().err

    for saved, error in (
        ("PreTrainedTokenizerBase", Exception("No space left on device (os error 28)")),
        ("PreTrainedModel", OSError(errno.ENOSPC, "No space left on device")),
    ):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(f"transformers.{saved}.save_pretrained", full)
        assert run(tiny_llama_dir, out, [folder], "--overwrite") == 2
        assert "the disk is full; nothing was written" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cardio", "derm", "out"]


def test_a_folder_that_is_there_is_kept_or_replaced_whole(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = adapters(tiny_llama_dir, tmp_path)[0], tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("kept")
    assert run(tiny_llama_dir, out, [folder]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["old"]
    assert run(tiny_llama_dir, out, [folder], "--overwrite") == 0
    assert not (out / "old").exists()
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "1"], "1 --weights for 2 adapters"),
        ([], "2 adapters and no --weights"),
        (["--weights", "1", "1", "--density", "0.5"], "--density is for ties"),
        (["--weights", "1", "1", "--combination", "ties"], "needs --density"),
        (
            ["--weights", "1", "1", "--combination", "ties", "--density", "2"],
            "a share above 0 and at most 1",
        ),
    ],
)
def test_arguments_that_do_not_fit(
    more: list[str],
    message: str,
    tiny_llama_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_llama_dir, tmp_path / "out", adapters(tiny_llama_dir, tmp_path), *more) == 2
    assert message in capsys.readouterr().err


def test_inputs_that_do_not_fit(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    other = make_adapter(tiny_llama_dir, tmp_path / "other", base_name="elsewhere", seed=1)
    assert run(tiny_llama_dir, out, [other]) == 2
    assert "trained on 'elsewhere', and the base model here is 'tiny'" in capsys.readouterr().err
    ranks = [
        make_adapter(tiny_llama_dir, tmp_path / f"r{r}", base_name="tiny", seed=r, rank=r)
        for r in (2, 4)
    ]
    words = ["--weights", "1", "1", "--combination", "linear"]
    assert run(tiny_llama_dir, out, ranks, *words) == 2
    assert "--combination linear: " in capsys.readouterr().err
    (ranks[0] / "adapter_model.safetensors").rename(ranks[0] / "adapter_model.bin")
    assert run(tiny_llama_dir, out, ranks[:1]) == 2
    assert "only safetensors are read" in capsys.readouterr().err
    assert run(tiny_llama_dir, out, [tmp_path / "none"]) == 2
    assert "cannot be read as an adapter's config" in capsys.readouterr().err
    assert not out.exists()


def test_a_damaged_adapter_and_one_of_the_other_family(
    tiny_llama_dir: Path,
    tiny_flan_t5_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, other = adapters(tiny_llama_dir, tmp_path)
    assert run(tiny_flan_t5_dir, tmp_path / "out", [folder]) == 2
    assert "--adapter derm: it is damaged, or of another base model" in capsys.readouterr().err
    file = other / "adapter_model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "layers.0." in name}
    save_file(state, file, metadata={"format": "pt"})
    both = [folder, other]
    assert run(tiny_llama_dir, tmp_path / "out", both, "--weights", "1", "1") == 2
    assert "--adapter cardio: adapter_model.safetensors lacks 4 of 8" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:100])
    assert run(tiny_llama_dir, tmp_path / "out", [other]) == 2
    assert "--adapter cardio: it is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapters(tiny_llama_dir, tmp_path)[0]
    base = tmp_path / "quantised"
    shutil.copytree(tiny_llama_dir, base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    assert run(base, tmp_path / "out", [folder]) == 2
    assert "it is quantised, and merging would round" in capsys.readouterr().err
