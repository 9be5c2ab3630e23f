"""Which names mean the same base model, so that an adapter is neither lost nor misplaced."""

import json
import shutil
from pathlib import Path

import pytest

from adapters.bases.names import is_same_base
from adapters.catalog import BaseModelEntry, Catalog, load_catalog
from adapters.changes import add_version
from tests.adapters.live_catalogs import make_seed, write_bundle

BUILT_IN = "smollm2-135m-instruct"


@pytest.mark.parametrize(
    ("named", "served"),
    [
        (None, "org/model"),
        ("org/model", "org/model"),
        ("org/model/", "org/model"),
        ("/srv/models/model", "/srv/models/model/"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", BUILT_IN),
        ("unsloth/SmolLM2-135M-Instruct-bnb-4bit", BUILT_IN),
        ("unsloth/SmolLM2-135M-Instruct", BUILT_IN),
        ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B"),
        ("google/flan-t5-xl", "/srv/models/flan-t5-xl"),
        ("/content/flan-t5-xl", "google/flan-t5-xl"),
        ("google/flan-t5-xl", "/cache/models--google--flan-t5-xl/snapshots/7d6315df2c"),
        ("org/model", "./model"),
        ("C:\\models\\flan-t5-xl", "google/flan-t5-xl"),
        ("Google/Flan-T5-XL", "google/flan-t5-xl"),
        ("google/flan-t5-xl@7d6315df2c", "google/flan-t5-xl"),
        ("../../models/flan-t5-xl/.", "google/flan-t5-xl"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/home/me/.cache/modelscope/hub/Qwen/Qwen2___5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2___5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("models/flan-t5-xl", "google/flan-t5-xl"),
        ("checkpoints/flan-t5-xl/", "google/flan-t5-xl"),
    ],
)
def test_the_same_base(named: str | None, served: str) -> None:
    assert is_same_base(named, served)
    assert named is None or is_same_base(served, named)


@pytest.mark.parametrize(
    ("named", "served"),
    [
        ("other/base", "org/base"),
        ("models/flan-t5-large", "google/flan-t5-xl"),
        ("LLM/Qwen2___5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("other", "tiny"),
        ("google/flan-t5-xl", "google/flan-t5-large"),
        ("unsloth/Llama-3.2-3B-bnb-4bit", "meta-llama/Llama-3.2-1B"),
        ("google/flan-t5-xl", "/cache/models--other--flan-t5-xl/snapshots/7d6315df2c"),
        ("", "org/model"),
    ],
)
def test_another_base(named: str, served: str) -> None:
    assert not is_same_base(named, served)


def test_a_copy_in_another_folder(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_llama_dir, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"_name_or_path": "elsewhere", "transformers_version": "4.0.0"}
    (copy / "config.json").write_text(json.dumps(config))
    assert is_same_base(str(copy), str(tiny_llama_dir))
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 7}))
    assert not is_same_base(str(other), str(tiny_llama_dir))


def test_other_weights_of_the_same_shape(tiny_llama_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_llama_dir, tmp_path / "other"))
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not is_same_base(str(other), str(tiny_llama_dir))


def test_a_local_folder_keeps_the_catalogues_entry() -> None:
    entry = BaseModelEntry(
        name="google/flan-t5-xl", prompt_format="plain", languages=["en", "fr", "de", "ro"]
    )
    catalog = Catalog(revision=0, base_models=[entry])
    assert catalog.base_model("/srv/models/flan-t5-xl", family="seq2seq") == entry
    assert catalog.base_model("/srv/models/flan-t5-base").languages == ["en"]


def test_an_adapter_of_the_hub_id_serves_on_a_local_folder(tmp_path: Path) -> None:
    catalog = load_catalog(make_seed(tmp_path))
    listed = [a.model_copy(update={"base_model": "google/flan-t5-xl"}) for a in catalog.adapters]
    catalog = catalog.model_copy(update={"adapters": listed})
    assert catalog.in_service("/srv/models/flan-t5-xl") == tuple(listed)
    assert catalog.skipped("/srv/models/flan-t5-xl") == {}
    assert catalog.in_service("google/flan-t5-large") == ()
    record = write_bundle(tmp_path / "2", "2")
    after = add_version(
        catalog, name="derm", specialty=None, base_model="/srv/flan-t5-xl", version=record
    )
    assert [a.version for a in after.of_base("google/flan-t5-xl")] == ["2", "1"]
