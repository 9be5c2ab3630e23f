"""Each thing that makes an adapter unfit for service is named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from adapters.catalog import load_catalog
from adapters.sources import SourceError, open_file
from adapters.validation import check_adapter
from tests.tiny_models import make_adapter

Catalogs = dict[str, tuple[Path, Path]]
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    _, catalogue = tiny_catalogs["llama"]
    return Path(shutil.copytree(catalogue / "weights" / "derm", tmp_path / "derm"))


@pytest.fixture
def base(tiny_catalogs: Catalogs) -> str:
    return str(tiny_catalogs["llama"][0])


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_weights(folder: Path, change: Callable[[State], None]) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_embedding_and_output_layer_pass_with_the_copies_that_peft_saves(
    base: str, tmp_path: Path
) -> None:
    ends = ("embed_tokens", "lm_head")
    folder = make_adapter(Path(base), tmp_path / "ends", base_name=base, seed=1, targets=ends)
    assert any("base_layer" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert check_adapter(folder, base) == []
    part = "base_model.model.model.embed_tokens.lora_embedding_A"
    for change, named in (
        (lambda state: state.pop(part), "lora_embedding_B has no partner lora_embedding_A"),
        (lambda state: state.update({part: torch.ones(2, 7)}), "differ in rank"),
    ):
        rewrite_weights(shutil.copytree(folder, tmp_path / named[:12]), change)
        assert named in "\n".join(check_adapter(tmp_path / named[:12], base))


def test_an_embedding_alone_whose_effect_is_zero(base: str, tmp_path: Path) -> None:
    folder = make_adapter(
        Path(base), tmp_path / "one", base_name=base, seed=1, targets=["embed_tokens"]
    )
    assert check_adapter(folder, base) == []
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    rewrite_weights(folder, lambda state: state[name].zero_())
    assert "would change nothing" in "\n".join(check_adapter(folder, base))


@pytest.mark.parametrize("family", ["llama", "flan_t5", "relu_t5"])
def test_live_adapters_pass(family: str, tiny_catalogs: Catalogs) -> None:
    base, folder = tiny_catalogs[family]
    adapters = load_catalog(folder).adapters
    found = [check_adapter(folder / "weights" / a.name, str(base), rank=4) for a in adapters]
    assert found == [[], []]


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pt", "x.pkl", "x.pth", "x.ckpt"])
def test_pickles_are_refused(name: str, folder: Path, base: str) -> None:
    (folder / name).write_bytes(b"")
    [problem] = check_adapter(folder, base)
    assert name in problem
    assert "pickled weights are never loaded" in problem


@pytest.mark.parametrize(
    "name",
    ["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt",
     "rng_state.pth", "rng_state_3.pth"],
)  # fmt: skip
def test_the_state_of_a_training_is_no_weight(name: str, folder: Path, base: str) -> None:
    """Transformers' Trainer leaves it beside every adapter, and nothing here reads it."""
    (folder / name).write_bytes(b"\x80\x02")
    assert check_adapter(folder, base) == []


def test_nulls_that_peft_reads_are_taken(folder: Path, base: str) -> None:
    names = "auto_mapping exclude_modules layers_pattern layers_to_transform modules_to_save"
    rewrite_config(folder, **dict.fromkeys(f"{names} revision use_dora use_rslora".split()))
    assert check_adapter(folder, base) == []


@pytest.mark.parametrize("header_bytes", [0x0280, 0x0380, 0x0480, 0x0580, 0x10280])
def test_a_header_whose_length_looks_like_a_pickle(
    header_bytes: int, folder: Path, base: str
) -> None:
    """A safetensors file begins with that length: 80 02 are the first bytes of a pickle, too."""
    file = folder / "adapter_model.safetensors"
    if header_bytes < 0x1000:  # the header of all tensors is longer
        rewrite_weights(folder, _only_one_pair)
        rewrite_config(folder, target_modules=r"model\.layers\.0\.self_attn\.q_proj")
    state = load_file(file)
    shortest = len(save({**state}, metadata={"x": ""}))
    more = header_bytes - int.from_bytes(save(state, metadata={"x": ""})[:8], "little")
    content = save(state, metadata={"x": "a" * more})
    assert shortest + more == len(content)
    assert content[:2] == header_bytes.to_bytes(8, "little")[:2]
    file.write_bytes(content)
    assert check_adapter(folder, base) == []
    file.write_bytes(content[:-1])
    [problem] = check_adapter(folder, base)
    assert "cannot be read as safetensors" in problem


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named_with_the_mend(name: str, folder: Path, base: str) -> None:
    (folder / name).unlink()
    [problem] = check_adapter(folder, base)
    assert all(part in problem for part in (name, "missing", "git checkout", "train"))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["model.safetensors"], "'model.safetensors': rename it to adapter_model.safetensors"),
        (["pytorch_lora_weights.safetensors"], "rename it to adapter_model.safetensors"),
        (["adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"],
         "2 other .safetensors files: save the adapter as one file"),
        (["checkpoint-10/adapter_model.safetensors", "checkpoint-20/adapter_model.safetensors"],
         "its folder 'checkpoint-20' holds one: name that folder"),
    ],
)  # fmt: skip
def test_weights_under_another_name(names: list[str], hint: str, folder: Path, base: str) -> None:
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(weights)
    [problem] = check_adapter(folder, base)
    assert hint in problem
    with pytest.raises(SourceError, match=re.escape(hint)):
        open_file(folder, "adapter_model.safetensors")


def test_missing_folder(tmp_path: Path, base: str) -> None:
    [problem] = check_adapter(tmp_path / "none", base)
    assert "the folder is missing" in problem


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3"}, ["'IA3'", "only LORA is served: train it as LoRA"]),
        ({"base_model_name_or_path": "other"}, ["trained on 'other'"]),
        ({"r": 16}, ["r is 16"]),
        ({"r": 5000}, ["5000", "1 to 256"]),
        ({"r": "8"}, ["1 to 256"]),
        ({"rank_pattern": {"q_proj": 512}}, ["512", "1 to 256"]),
        ({"rank_pattern": [1]}, ["rank_pattern is [1]"]),
        ({"rank_pattern": None}, ["rank_pattern is null", "write {}"]),
        ({"alpha_pattern": None}, ["alpha_pattern is null", "write {}"]),
        ({"bias": None}, ["bias is None", "none, all, lora_only"]),
        ({"bias": "some"}, ["bias is 'some'"]),
        ({"lora_dropout": None}, ["lora_dropout is None", "0 to 1"]),
        ({"lora_dropout": "0.1"}, ["lora_dropout is '0.1'"]),
        ({"lora_dropout": 3}, ["lora_dropout is 3"]),
    ],
)
def test_config_that_does_not_fit(
    changes: dict[str, Any], parts: list[str], folder: Path, base: str
) -> None:
    rewrite_config(folder, **changes)
    text = "\n".join(check_adapter(folder, base, rank=4))
    assert "adapter_config.json" in text
    assert all(part in text for part in parts)


@pytest.mark.parametrize("alpha", [1e30, -1e30, float("nan"), float("inf"), 10**400, "8", True])
@pytest.mark.parametrize("field", ["lora_alpha", "alpha_pattern"])
def test_an_alpha_that_no_training_gives(field: str, alpha: Any, folder: Path, base: str) -> None:
    value = alpha if field == "lora_alpha" else {"q_proj": alpha}
    rewrite_config(folder, **{field: value})
    [problem] = check_adapter(folder, base)
    assert field in problem
    assert "at most 65536" in problem


def test_what_else_peft_can_do_is_for_the_decoder_to_judge(folder: Path, base: str) -> None:
    def with_more(state: State) -> None:
        state["base_model.model.q_proj.lora_magnitude_vector"] = torch.ones(4)
        state["base_model.model.q_proj.bias"] = torch.ones(4)

    rewrite_config(folder, use_dora=True, bias="all", modules_to_save=["lm_head"])
    rewrite_weights(folder, with_more)
    assert check_adapter(folder, base) == []


def test_a_git_lfs_pointer_is_named_as_one(folder: Path, base: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text(pointer)
    problems = check_adapter(folder, base)
    assert len(problems) == 2
    assert all("a Git LFS pointer" in problem and "git lfs pull" in problem for problem in problems)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_config_that_is_no_json_object(content: str, folder: Path, base: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    [problem] = check_adapter(folder, base)
    assert "adapter_config.json" in problem


def _nan(state: State) -> None:
    state[next(iter(state))][0, 0] = torch.nan


def _infinity(state: State) -> None:
    state[next(iter(state))][0, 0] = torch.inf


def _other_rank(state: State) -> None:
    name = next(name for name in state if "lora_A" in name)
    state[name] = state[name][:2].clone()


def _no_partner(state: State) -> None:
    del state[next(name for name in state if "lora_B" in name)]


def _only_one_pair(state: State) -> None:
    for name in [name for name in state if "layers.0.self_attn.q_proj" not in name]:
        del state[name]


def _stranger(state: State) -> None:
    state["base_model.model.model.norm.weight"] = torch.ones(2)


def _silent(state: State) -> None:
    for name in state:
        if "lora_B" in name:
            state[name] = torch.zeros_like(state[name])


def _flat(state: State) -> None:
    name = next(name for name in state if "lora_A" in name)
    state[name] = state[name].flatten()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_nan, "NaN or infinity"),
        (_infinity, "NaN or infinity"),
        (_other_rank, "differ in rank"),
        (_no_partner, "no partner lora_B"),
        (_stranger, "is not a LoRA weight"),
        (_silent, "would change nothing"),
        (_flat, "two dimensions"),
        (dict.clear, "holds no tensor"),
    ],
)
def test_tensors_that_cannot_serve(
    change: Callable[[State], None], part: str, folder: Path, base: str
) -> None:
    rewrite_weights(folder, change)
    problems = check_adapter(folder, base)
    assert part in "\n".join(problems)


def test_whole_ends_are_left_to_the_decoders(folder: Path, base: str) -> None:
    """They compare them with the base's, and say so if the vocabulary was resized."""
    names = ("model.embed_tokens", "lm_head", "shared", "lm_head.out_proj")
    ends = {f"base_model.model.{name}.weight": torch.ones(2, 2) for name in names}
    rewrite_weights(folder, lambda state: state.update(ends))
    assert check_adapter(folder, base) == []


def test_file_that_is_no_safetensors(folder: Path, base: str) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    [problem] = check_adapter(folder, base)
    assert "cannot be read as safetensors" in problem


def test_file_that_is_too_large(folder: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.validation.MAX_BYTES", 100)
    [problem] = check_adapter(folder, base)
    assert "at most 100" in problem


def test_the_ranks_of_stacked_experts_are_not_judged(folder: Path, base: str) -> None:
    """PEFT saves (experts * r, in) and (out, experts * r) of them."""
    rewrite_config(folder, r=2)
    assert any("has rank 4" in problem for problem in check_adapter(folder, base))
    rewrite_config(folder, target_parameters=["experts.gate_up_proj"])
    assert check_adapter(folder, base) == []


def test_blocks_on_a_diagonal_are_narrower(folder: Path, base: str) -> None:
    """Of a lora_B in blocks, BD-LoRA saves those on its diagonal, one below the other."""

    def halved(state: State) -> None:
        state.update({n: t[:, ::2].clone() for n, t in state.items() if "lora_B" in n})

    rewrite_weights(folder, halved)
    assert "differ in rank" in "\n".join(check_adapter(folder, base))
    rewrite_config(folder, use_bdlora={"target_modules_bd_b": ["q_proj", "v_proj"], "nblocks": 2})
    assert check_adapter(folder, base) == []
    rewrite_config(folder, use_bdlora={"target_modules_bd_b": ["q_proj", "v_proj"], "nblocks": 3})
    assert "differ in rank" in "\n".join(check_adapter(folder, base))
    rewrite_config(folder, r=8, use_bdlora={"nblocks": 2})
    assert "has rank 4; the config says [8]" in "\n".join(check_adapter(folder, base))


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("value", [False, 0, "", []])
def test_a_pattern_that_is_no_mapping(field: str, value: Any, folder: Path, base: str) -> None:
    rewrite_config(folder, **{field: value})
    assert f"{field} is {value!r}; a mapping is expected" in "\n".join(check_adapter(folder, base))


def test_the_ranks_of_another_kind_are_not_judged(folder: Path, base: str) -> None:
    rewrite_config(folder, peft_type="PREFIX_TUNING", r=None)
    [problem] = check_adapter(folder, base)
    assert "'PREFIX_TUNING'" in problem


def test_every_problem_is_listed_at_once(folder: Path, base: str) -> None:
    (folder / "x.bin").write_bytes(b"")
    rewrite_config(folder, base_model_name_or_path="other", r=0)
    (folder / "adapter_model.safetensors").unlink()
    assert len(check_adapter(folder, base)) == 4
