"""One entry of a catalogue's text changes; what people wrote around it stays."""

from pathlib import Path

import pytest
import yaml

from adapters.catalog import AdapterEntry, CatalogError
from scripts.lora.catalog_file import put_entry, with_entry

SHA = "f" * 64
OURS = f"""# The head.
base_models:
  - name: tiny
    prompt_format: chat
    languages: [en]

adapters:
  - name: derm
    specialty: dermatology
    base_model: tiny
    path: weights/derm
    sha256: {SHA}
    version: "1"
    rank: 8
    languages:
      - en

  # Trained by hand, in spring.
  - name: "cardio"  # the name in quotes
    specialty: cardiology
    base_model: tiny
    path: weights/cardio
    sha256: {SHA}
    version: "1"
    rank: 8
  - specialty: neurology
    name: neuro
    base_model: tiny
    path: weights/neuro
    sha256: {SHA}
    version: "1"
    rank: 8
# The end.
"""


def entry(name: str, version: str = "2") -> AdapterEntry:
    specialties = {"derm": "dermatology", "cardio": "cardiology", "neuro": "neurology"}
    return AdapterEntry(
        name=name,
        specialty=specialties.get(name, name),
        base_model="tiny",
        path=f"weights/{name}",
        sha256=SHA,
        version=version,
        rank=8,
        evaluation={"interval": [-0.5, 0.25], "commit": "0123e45"},
    )


def without_block(text: str, start: str, stop: str) -> str:
    return text[: text.index(start)] + text[text.index(stop) :]


@pytest.mark.parametrize("text", [OURS, OURS.replace("\n  ", "\n")], ids=["indented", "flush"])
@pytest.mark.parametrize("name", ["derm", "cardio", "neuro"])
def test_one_entry_is_replaced_and_the_others_and_comments_stay(name: str, text: str) -> None:
    after = with_entry(text, entry(name))
    found = {row["name"]: row for row in yaml.safe_load(after)["adapters"]}
    before = {row["name"]: row for row in yaml.safe_load(text)["adapters"]}
    assert list(found) == ["derm", "cardio", "neuro"]
    assert found.pop(name) == entry(name).model_dump(exclude_defaults=True) | {
        "state": "active",
        "languages": ["en"],
    }
    del before[name]
    assert found == before
    for comment in ("# The head.", "# Trained by hand, in spring.", "# The end."):
        assert comment in after
    assert with_entry(after, entry(name)) == after


def test_bytes_around_the_entry_stay() -> None:
    after = with_entry(OURS, entry("derm"))
    cut = ("  - name: derm\n", "\n  # Trained by hand")
    assert without_block(after, *cut) == without_block(OURS, *cut)
    assert with_entry(OURS, entry("onco")).startswith(OURS)


@pytest.mark.parametrize("text", ["adapters: []\n", "base_models: []\n", "adapters:\n", ""])
def test_the_first_entry(text: str) -> None:
    content = yaml.safe_load(with_entry(text, entry("derm")))
    assert [row["name"] for row in content["adapters"]] == ["derm"]


def test_a_section_behind_the_adapters_stays() -> None:
    text = OURS + "base_models_of_old: []\n"
    after = with_entry(text, entry("onco"))
    assert after.endswith("base_models_of_old: []\n")
    assert len(yaml.safe_load(after)["adapters"]) == 4


def test_what_would_not_load_is_not_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text(OURS)
    second = entry("skin").model_copy(update={"specialty": "dermatology"})
    with pytest.raises(CatalogError, match="dermatology"):
        put_entry(tmp_path, second)
    assert file.read_text() == OURS
    put_entry(tmp_path, entry("derm"))
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.yaml"]
