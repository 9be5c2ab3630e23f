"""Which adapters each decoder serves, by the fields of adapter_config.json."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

from adapters.validation import check_adapter
from deployments.engine.cpu.intrinsics import byte_instructions
from deployments.engine.decoder_factory import Choice, FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported, FastDecoderImpossible
from deployments.engine.lora import peft_features
from deployments.engine.lora.peft_features import unsupported_features
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_model_runner import PROMPT, changed_config, load
from tests.deployments.engine.test_peft_decoder import ListSink
from tests.oracle import Oracle
from tests.tiny_models import make_adapter, make_tiny_qwen2

LIMITS = FastLimits(max_rows=2, num_positions=64, max_adapters=3)
Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture
def base_dir(tiny_catalogs: Catalogs) -> Path:
    return tiny_catalogs["llama"][0]


@pytest.fixture
def plain(tiny_catalogs: Catalogs) -> Path:
    return tiny_catalogs["llama"][1] / "weights" / "derm"


def answer(decoder: ModelRunner, adapter: str | None) -> list[int]:
    return run_rows(decoder, [Request("r", PROMPT, adapter, SamplingParams(12))]).answers[0]


def test_every_field_of_peft_is_in_one_of_the_lists() -> None:
    """A new version of PEFT with a new field fails here: say what the field does."""
    lists = [
        peft_features.RESOLVED_BY_INJECTION,
        peft_features.WITHOUT_EFFECT,
        peft_features.UNSUPPORTED_BY_FAST,
    ]
    listed = frozenset().union(*lists)
    assert sum(map(len, lists)) == len(listed), "a field is in two lists"
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= listed


def test_adapters_whose_patterns_differ_in_order_alone_are_two(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    """PEFT takes the first pattern that fits a layer, and configurations are kept."""
    patterns = [("q_proj", 40), (r".*\.layers\.1\..*", 1)]
    folders = {
        "one": changed_config(plain, tmp_path / "one", alpha_pattern=dict(patterns)),
        "two": changed_config(plain, tmp_path / "two", alpha_pattern=dict(reversed(patterns))),
    }
    decoder = build_decoder(load(base_dir), "fast", LIMITS, folders)
    assert isinstance(decoder, ModelRunner)
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    oracle = Oracle(base_dir, folders)
    expected = {name: oracle.generate(PROMPT, name, 12) for name in folders}
    assert expected["one"] != expected["two"], "nothing would be tested"
    assert {name: answer(decoder, name) for name in folders} == expected


@pytest.mark.parametrize("choice", ["fast", "reference"])
def test_an_adapter_that_changes_one_token_has_an_effect(choice: Choice, tmp_path: Path) -> None:
    """The output layer is one of its own, so nothing else of the probe is changed."""
    base = make_tiny_qwen2(tmp_path / "base")
    folder = make_adapter(
        base, tmp_path / "one", base_name="b", seed=3, targets=["embed_tokens"], std=0.5
    )
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    a = tensors["base_model.model.model.embed_tokens.lora_embedding_A"]
    a[:, torch.arange(a.shape[1]) != 301] = 0
    save_file(tensors, file)
    decoder = build_decoder(load(base), choice, LIMITS, {"one": folder})
    decoder.load_adapter("one", folder)
    assert decoder.info.adapters == {"one"}


def test_trained_tokens_that_are_none_of_the_probes_have_an_effect(tmp_path: Path) -> None:
    base = make_tiny_qwen2(tmp_path / "base")
    folder = make_adapter(
        base, tmp_path / "one", base_name="b", seed=3, std=1e-30, trainable_token_indices=[301]
    )
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t + 1.0 if "trainable" in n else t for n, t in tensors.items()}, file)
    assert any("trainable" in name for name in tensors)
    decoder = build_decoder(load(base), "reference", LIMITS, {"one": folder})
    decoder.load_adapter("one", folder)
    assert decoder.info.adapters == {"one"}


def test_tensors_for_images_are_refused_by_a_base_that_reads_none(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    folder = changed_config(plain, tmp_path / "images")
    file = folder / "adapter_model.safetensors"
    name = "base_model.model.model.encoder.vision_tower.fc.lora_A.weight"
    save_file(load_file(file) | {name: torch.ones(4, 4)}, file)
    decoder = build_decoder(load(base_dir), "fast", LIMITS, {})
    with pytest.raises(AdapterNotSupported, match=r"vision_tower.* belongs to no adapted layer"):
        decoder.load_adapter("images", folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "eva", "eva_config": dataclasses.asdict(EvaConfig())},
        {"init_lora_weights": "Gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": None},
        {"fan_in_fan_out": True},
    ],
    ids=lambda fields: str(next(iter(fields.items()))),
)
def test_how_it_was_initialised_does_not_matter(
    base_dir: Path, plain: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """The trained A and B say it all: PEFT's own logits are those of plain LoRA."""
    folder = changed_config(plain, tmp_path / "odd", **fields)
    assert unsupported_features(folder) == []
    decoder = build_decoder(load(base_dir), "fast", LIMITS, {"odd": folder})
    assert isinstance(decoder, ModelRunner)
    decoder.load_adapter("odd", folder)
    found = answer(decoder, "odd")
    assert found == Oracle(base_dir, {"odd": folder}).generate(PROMPT, "odd", 12)
    assert found != answer(decoder, None), "the adapter changes nothing"


@pytest.mark.parametrize(
    "options",
    [
        {
            "use_bdlora": BdLoraConfig(
                target_modules_bd_a=["o_proj"],
                target_modules_bd_b=["q_proj"],
                nblocks=2,
                match_strict=False,
            ),
            "targets": ["q_proj", "v_proj", "o_proj"],
        },
        {"init_lora_weights": "mica", "targets": ["embed_tokens", "q_proj"]},
        pytest.param(
            {"velora_config": VeloraConfig(num_groups=8, init_type="random")},
            marks=pytest.mark.long,
        ),
        pytest.param({"monteclora_config": MontecloraConfig()}, marks=pytest.mark.long),
    ],
    ids=lambda options: next(iter(options)),
)
def test_kinds_that_are_plain_once_they_are_trained(
    base_dir: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Blocks on a diagonal, other ways to train: B(A(x)) in the end, and PEFT's tokens."""
    odd = make_adapter(base_dir, tmp_path / "odd", base_name="b", seed=3, std=0.5, **options)
    file = odd / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(3)
    save_file(
        {  # MiCA's A is zero at first, and its B is not
            name: torch.randn(t.shape, generator=generator) * 0.3 if "lora_A" in name else t
            for name, t in load_file(file).items()
        },
        file,
    )
    assert check_adapter(odd, "b") == []
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"odd": odd})
    assert isinstance(decoder, ModelRunner)
    decoder.load_adapter("odd", odd)
    found = answer(decoder, "odd")
    assert found == Oracle(base_dir, {"odd": odd}).generate(PROMPT, "odd", 12)
    assert found != answer(decoder, None), "the adapter changes nothing"


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lora_alpha": 1e30}, r"q_proj has the scale 2\.5e\+29 .*correct lora_alpha"),
        ({"alpha_pattern": {"v_proj": -1e9}}, r"v_proj has the scale -2\.5e\+08"),
    ],
)
def test_an_absurd_scale_is_refused(
    base_dir: Path, plain: Path, tmp_path: Path, kind: Any, fields: dict[str, Any], named: str
) -> None:
    """Its answers would be empty or noise, and its logits finite."""
    folder = changed_config(plain, tmp_path / "loud", **fields)
    decoder = build_decoder(load(base_dir), kind, LIMITS, {})
    with pytest.raises(AdapterNotSupported, match=named):
        decoder.load_adapter("loud", folder)
    assert decoder.info.adapters == frozenset()
    decoder.load_adapter("plain", plain)
    with pytest.raises(AdapterNotSupported, match=named):
        decoder.load_adapter("plain", folder)
    assert decoder.info.adapters == {"plain"}, "the earlier version is gone"


def test_an_adapter_that_replicates_layers_is_refused_by_both_decoders(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    folder = changed_config(plain, tmp_path / "odd", layer_replication=[[0, 2], [1, 2]])
    for kind in ("fast", "reference"):
        decoder = build_decoder(load(base_dir), kind, LIMITS, {})  # type: ignore[arg-type]
        with pytest.raises(AdapterNotSupported, match="layer_replication is"):
            decoder.load_adapter("odd", folder)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "OLoRA"])
def test_an_adapter_that_changes_the_base_is_refused_by_both_decoders(
    base_dir: Path, plain: Path, tmp_path: Path, init: str
) -> None:
    """PEFT subtracts from the base model's weights again when it loads such an adapter: the base
    and every other adapter would answer differently from then on."""
    folder = changed_config(plain, tmp_path / "odd", init_lora_weights=init)
    for kind in ("fast", "reference"):
        decoder = build_decoder(load(base_dir), kind, LIMITS, {})  # type: ignore[arg-type]
        weights = {name: p.clone() for name, p in base_weights(decoder)}
        with pytest.raises(AdapterNotSupported, match=f"init_lora_weights is '{init}'"):
            decoder.load_adapter("odd", folder)
        assert all(torch.equal(p, weights[name]) for name, p in base_weights(decoder))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_stay_with_their_adapter(tmp_path: Path, bias: str) -> None:
    """PEFT loads them into the base model, where the other adapters would use them too."""
    base_dir = make_tiny_qwen2(tmp_path / "base")
    plain = make_adapter(base_dir, tmp_path / "plain", base_name="b", seed=1)
    biased = make_adapter(base_dir, tmp_path / "biased", base_name="b", seed=2, bias=bias)
    file = biased / "adapter_model.safetensors"
    trained = {n: t + 1.0 if n.endswith(".bias") else t for n, t in load_file(file).items()}
    assert any(name.endswith(".bias") for name in trained)
    save_file(trained, file)
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"biased": biased})
    assert isinstance(decoder, PeftDecoder)
    folders = {"plain": plain, "biased": biased}
    expected = {
        name: Oracle(base_dir, {name: f}).generate(PROMPT, name, 8) for name, f in folders.items()
    }
    expected[None] = Oracle(base_dir, {"plain": plain}).generate(PROMPT, None, 8)
    assert len(set(map(tuple, expected.values()))) == 3
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    for name in ("biased", "plain", None, "biased", None, "plain"):
        assert one_answer(decoder, name) == expected[name], name
    decoder.load_adapter("biased", biased)
    assert one_answer(decoder, "biased") == expected["biased"]
    decoder.evict("biased")
    assert one_answer(decoder, None) == expected[None]


def one_answer(decoder: PeftDecoder, adapter: str | None) -> list[int]:
    sink = ListSink([8], decoder.info.eos_ids)
    decoder.set_adapter(adapter)
    decoder.generate([Request("r", PROMPT, adapter, SamplingParams(8))], sink)
    return sink.rows[0]


def base_weights(decoder: ModelRunner | PeftDecoder) -> Any:
    return decoder._base.named_parameters() if isinstance(decoder, PeftDecoder) else ()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("shared", "shared is a Embedding, not a linear layer"),
        ("lm_head", "is the output layer"),
    ],
)
def test_a_layer_that_is_not_fast_goes_to_the_reference_decoder(
    tiny_catalogs: Catalogs, tmp_path: Path, target: str, named: str
) -> None:
    """Found at the start, not when the adapter is loaded into a decoder that cannot have it."""
    base_dir, plain = tiny_catalogs["flan_t5"][0], tiny_catalogs["flan_t5"][1] / "weights" / "derm"
    targets = ["q", target]
    odd = make_adapter(base_dir, tmp_path / "odd", base_name="b", seed=3, targets=targets)
    base = load_pretrained(base_dir, "seq2seq", device="cpu", dtype="float32")
    chosen = build_decoder(base, "auto", LIMITS, {"plain": plain, "odd": odd})
    assert isinstance(chosen, PeftDecoder)
    assert "adapter 'odd' has features that the fast decoder cannot express" in chosen.info.reason
    assert named in chosen.info.reason
    chosen.load_adapter("odd", odd)
    assert chosen.info.adapters == {"odd"}


ENDS = ("embed_tokens", "lm_head")


@pytest.fixture
def of_the_ends(base_dir: Path, tmp_path: Path) -> Path:
    return make_adapter(base_dir, tmp_path / "ends", base_name="b", seed=3, targets=ENDS)


@pytest.mark.parametrize("is_tied", [False, True])
def test_embedding_and_output_layer_of_a_tied_base_are_adapted_apart_or_together(
    base_dir: Path, tmp_path: Path, is_tied: bool
) -> None:
    targets = ["embed_tokens"] if is_tied else list(ENDS)
    options = {"ensure_weight_tying": True} if is_tied else {}
    odd = make_adapter(
        base_dir, tmp_path / "odd", base_name="b", seed=3, targets=targets, std=0.3, **options
    )
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"odd": odd})
    assert isinstance(decoder, ModelRunner)
    decoder.load_adapter("odd", odd)
    assert {"model.embed_tokens", "lm_head"} == set(decoder.lora_pool._stacks.by_module)
    found = answer(decoder, "odd")
    assert found == Oracle(base_dir, {"odd": odd}).generate(PROMPT, "odd", 12)
    assert found != answer(decoder, None)


@pytest.mark.parametrize("kind", ["fast", "reference"])
def test_a_rounded_copy_of_the_base_does_not_take_its_place(
    base_dir: Path, of_the_ends: Path, plain: Path, kind: Any
) -> None:
    """Saved from the same base in bfloat16, served on it in float32."""
    decoder: Any = build_decoder(load(base_dir), kind, LIMITS, {})
    decoder.load_adapter("plain", plain)
    answers = one_answer if kind == "reference" else answer
    before = {name: answers(decoder, name)[:8] for name in (None, "plain")}
    weights = {name: p.clone() for name, p in base_weights(decoder)}
    file = of_the_ends / "adapter_model.safetensors"
    tensors = load_file(file)
    rounded = {n: t.bfloat16() if "base_layer" in n else t for n, t in tensors.items()}
    assert any(not torch.equal(t.float(), tensors[n]) for n, t in rounded.items())
    save_file(rounded, file)
    for _ in range(2):  # and once more, in place of itself
        decoder.load_adapter("ends", of_the_ends)
        kept = dict(base_weights(decoder))
        for name, weight in weights.items():
            found = kept.get(name, kept.get(name.replace(".weight", ".base_layer.weight")))
            assert found is not None, name
            assert torch.equal(found, weight), name
    assert {name: answers(decoder, name)[:8] for name in (None, "plain")} == before
    save_file(tensors, file)
    exact = answers(decoder, "ends")
    decoder.load_adapter("ends", of_the_ends)
    assert answers(decoder, "ends") == exact, "the copy was used"


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize("layer", ["model.embed_tokens", "lm_head"])
def test_a_base_weight_in_the_file_must_be_the_bases(
    base_dir: Path, of_the_ends: Path, plain: Path, kind: Any, layer: str
) -> None:
    """PEFT would write it into the base model that all adapters share."""
    decoder = build_decoder(load(base_dir), kind, LIMITS, {})
    decoder.load_adapter("plain", plain)
    decoder.load_adapter("ends", of_the_ends)
    file = of_the_ends / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.{layer}.base_layer.weight"
    save_file(tensors | {name: tensors[name].bfloat16()}, file)
    decoder.load_adapter("ends", of_the_ends)
    tensors[name][7, 3] += 1.0
    save_file(tensors, file)
    with pytest.raises(AdapterNotSupported, match=f"{layer} has a base weight of its own"):
        decoder.load_adapter("ends", of_the_ends)
    assert decoder.info.adapters == {"plain", "ends"}


def test_bytes_adapt_the_layers_only(base_dir: Path, of_the_ends: Path, plain: Path) -> None:
    """The compiled step has no place for the ends: torch serves, or the start is refused."""
    folders = {"plain": plain, "ends": of_the_ends}
    base = replace(load(base_dir), is_dtype_free=True)
    refused = r"quantization is int8, but adapter 'ends' has features .*embed_tokens is a Embedding"
    with pytest.raises(FastDecoderImpossible, match=refused):
        build_decoder(base, "auto", LIMITS, folders, weights="int8")
    if byte_instructions() is not None:
        chosen = build_decoder(base, "auto", LIMITS, folders, weights="auto")
        assert "not int8, since adapter 'ends'" in chosen.info.weights
    narrow = build_decoder(load(base_dir), "auto", LIMITS, {"plain": plain}, weights="int8")
    with pytest.raises(AdapterNotSupported, match="embed_tokens is a Embedding, not a linear"):
        narrow.load_adapter("ends", of_the_ends)


def test_an_adapter_that_nobody_can_read_does_not_choose_the_decoder(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    broken = changed_config(plain, tmp_path / "broken", target_modules=["no_such_layer"])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "adapter_config.json").write_text(json.dumps(["r", 8]))
    folders = {"broken": broken, "text": tmp_path / "text", "gone": tmp_path / "gone"}
    for number, fields in enumerate(({"eva_config": "x"}, {"rank_pattern": []}, {"r": "x"})):
        folders[f"odd {number}"] = changed_config(plain, tmp_path / f"{number}", **fields)
    decoder = build_decoder(load(base_dir), "auto", LIMITS, folders)
    assert isinstance(decoder, ModelRunner)
    with pytest.raises(ValueError, match="no_such_layer"):
        decoder.load_adapter("broken", broken)
