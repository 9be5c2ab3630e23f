"""The catalogue: strict, complete in its complaints, and clear about what is skipped."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.catalog import CatalogError, load_catalog
from adapters.loading import check_catalogued
from scripts.make_specialists import TWELVE

SHIPPED = Path(__file__).resolve().parents[2] / "adapters"
GOOD: dict[str, Any] = {
    "name": "derm",
    "specialty": "dermatology",
    "base_model": "tiny",
    "path": "weights/derm",
    "sha256": "0" * 64,
    "version": "1",
    "rank": 8,
}


def write(folder: Path, *adapters: dict[str, Any], **more: Any) -> Path:
    (folder / "catalog.yaml").write_text(yaml.safe_dump({"adapters": list(adapters), **more}))
    return folder


def test_adapters_of_this_base_and_why_others_are_skipped(tmp_path: Path) -> None:
    off = {**GOOD, "name": "cardio", "specialty": "cardiology", "state": "disabled"}
    other = {**GOOD, "name": "neuro", "specialty": "neurology", "base_model": "big"}
    catalog = load_catalog(write(tmp_path, GOOD, off, other))
    assert [entry.name for entry in catalog.adapters_for("tiny")] == ["derm"]
    skipped = catalog.skipped("tiny")
    assert skipped == {
        "cardio": "its state is disabled",
        "neuro": "trained on big, and the base model is tiny",
    }
    assert catalog.folder(catalog.adapters[0]) == tmp_path / "weights/derm"


def test_base_that_is_not_listed_gets_its_familys_defaults(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path))
    assert catalog.base_model("x", family="causal").prompt_format == "chat"
    assert catalog.base_model("x", family="seq2seq").prompt_format == "plain"
    assert catalog.base_model("x").languages == ["en"]


def test_listed_base_keeps_its_own_entry(tmp_path: Path) -> None:
    base = {"name": "x", "prompt_format": "plain", "system_line": "S", "languages": ["fr"]}
    entry = load_catalog(write(tmp_path, base_models=[base])).base_model("x", family="causal")
    assert (entry.prompt_format, entry.system_line, entry.languages) == ("plain", "S", ["fr"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Derm"}, "1 to 64 of a-z"),
        ({"name": "d" * 65}, "1 to 64 of a-z"),
        ({"name": "derm\n"}, "1 to 64 of a-z"),
        ({"name": "auto"}, "reserved"),
        ({"name": "base"}, "reserved"),
        ({"path": "../derm"}, "folder below the catalogue"),
        ({"path": "weights/../../derm"}, "folder below the catalogue"),
        ({"path": "/etc"}, "folder below the catalogue"),
        ({"path": ""}, "folder below the catalogue"),
        ({"path": "."}, "folder below the catalogue"),
        ({"sha256": "abc"}, "sha256"),
        ({"rank": 0}, "rank"),
        ({"state": "on"}, "'active' or 'disabled'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_entry_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, {**GOOD, **change}))
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    bad = {**GOOD, "name": "auto", "path": "../x", "rank": 0}
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, bad, {**GOOD, "version": 2}, typo=1))
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("5 problems in ")


def test_repeated_names_and_two_specialists_for_one_specialty(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, GOOD, copy.copy(GOOD)))
    assert [
        "'derm' is listed twice" in caught.value.problems[0],
        "more than one active adapter" in caught.value.problems[1],
    ] == [True, True]


def test_link_out_of_the_catalogue_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "derm").symlink_to(tmp_path)
    with pytest.raises(CatalogError, match="leaves the catalogue's folder, by a link"):
        load_catalog(write(folder, GOOD))


def test_missing_or_broken_file_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"catalog.yaml(.|\n)*git checkout"):
        load_catalog(tmp_path)
    (tmp_path / "catalog.yaml").write_text("a: [")
    with pytest.raises(CatalogError, match="cannot be read as YAML"):
        load_catalog(tmp_path)
    (tmp_path / "catalog.yaml").write_text("- a list\n")
    with pytest.raises(CatalogError, match="valid dictionary"):
        load_catalog(tmp_path)


def test_shipped_catalogue_and_its_weights_are_intact() -> None:
    entries = check_catalogued(load_catalog(SHIPPED), "smollm2-135m-instruct")
    assert {entry.name for entry in entries} == set(TWELVE)
    for entry in entries:
        low, high = entry.evaluation["nll_difference_interval"]
        assert low <= high < 0, "a specialist is shipped only if it beats the base"
        assert (SHIPPED / entry.path / "adapter_model.safetensors").stat().st_size <= 1_200_000


def test_importing_the_catalogue_needs_no_torch() -> None:
    code = "import sys, adapters.loading, adapters.base_models; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SHIPPED.parent, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
