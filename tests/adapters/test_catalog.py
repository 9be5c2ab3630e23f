"""The catalogue: strict, complete in its complaints, and clear about what is skipped."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.catalog import CatalogError, load_catalog
from adapters.seed_check import check_seed
from adapters.store import open_store
from scripts.make_specialists import TWELVE

SHIPPED = Path(__file__).resolve().parents[2] / "adapters"
VERSION: dict[str, Any] = {
    "version": "1",
    "sha256": "0" * 64,
    "config_sha256": "1" * 64,
    "path": "seed:weights/derm",
    "source": "seed",
    "rank": 8,
    "num_bytes": 10,
}
GOOD: dict[str, Any] = {
    "name": "derm",
    "specialty": "dermatology",
    "base_model": "tiny",
    "state": "active",
    "version": "1",
    "versions": [VERSION],
}


def write(folder: Path, *adapters: dict[str, Any], **more: Any) -> Path:
    content = {"revision": 0, "adapters": list(adapters), **more}
    (folder / "catalog.yaml").write_text(yaml.safe_dump(content))
    return folder


def of_version(**change: Any) -> dict[str, Any]:
    return {**GOOD, "versions": [VERSION | change]}


def test_adapters_of_this_base_and_why_others_are_skipped(tmp_path: Path) -> None:
    off = {**GOOD, "name": "cardio", "specialty": "cardiology", "state": "disabled"}
    other = {**GOOD, "name": "neuro", "specialty": "neurology", "base_model": "big"}
    catalog = load_catalog(write(tmp_path, GOOD, off, other))
    assert [adapter.name for adapter in catalog.in_service("tiny")] == ["derm"]
    assert catalog.skipped("tiny") == {
        "cardio": "its state is disabled",
        "neuro": "trained on big, and the base model is tiny",
    }


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
    ("entry", "problem"),
    [
        ({**GOOD, "name": "Derm"}, "1 to 64 of a-z"),
        ({**GOOD, "name": "d" * 65}, "1 to 64 of a-z"),
        ({**GOOD, "name": "derm\n"}, "1 to 64 of a-z"),
        ({**GOOD, "name": "auto"}, "reserved"),
        ({**GOOD, "name": "base"}, "reserved"),
        (of_version(path="seed:../derm"), "folder below the catalogue"),
        (of_version(path="seed:weights/../../derm"), "folder below the catalogue"),
        (of_version(path="seed:/etc"), "folder below the catalogue"),
        (of_version(path="seed:"), "folder below the catalogue"),
        (of_version(path="seed:."), "folder below the catalogue"),
        (of_version(path="weights/derm"), "a seed's files lie below its folder"),
        (of_version(sha256="abc"), "sha256"),
        (of_version(rank=0), "rank"),
        ({**GOOD, "state": "on"}, "'active', 'canary' or 'disabled'"),
        ({**GOOD, "colour": "red"}, "colour"),
        ({**GOOD, "version": "9"}, "versions ['9'] are named but not listed"),
    ],
)
def test_bad_entry_is_refused(entry: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, entry))
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    bad = {**of_version(path="seed:../x", rank=0), "name": "auto"}
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, bad, of_version(num_bytes="2"), typo=1))
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("5 problems in ")


def test_of_many_problems_some_are_shown(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="30 problems in(.|\n)*and 10 more") as caught:
        load_catalog(write(tmp_path, *({**GOOD, "name": "Derm"} for _ in range(30))))
    assert len(str(caught.value).splitlines()) == 22


def test_repeated_names_and_two_specialists_for_one_specialty(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, GOOD, copy.copy(GOOD)))
    assert [
        "an adapter is listed twice: ['derm']" in caught.value.problems[0],
        "two adapters in service: ['dermatology on tiny']" in caught.value.problems[1],
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


def test_shipped_catalogue_and_its_weights_are_intact(tmp_path: Path) -> None:
    store = open_store(tmp_path, SHIPPED, tmp_path)
    adapters = check_seed(store, "smollm2-135m-instruct")
    assert {adapter.name for adapter in adapters} == set(TWELVE)
    for adapter in adapters:
        low, high = adapter.stable.evaluation["nll_difference_interval"]
        assert low <= high < 0, "a specialist is shipped only if it beats the base"
        weights = store.folder(adapter.stable) / "adapter_model.safetensors"
        assert weights.stat().st_size <= 1_200_000


def test_importing_the_catalogue_needs_no_torch() -> None:
    code = "import sys, adapters.ingest, adapters.seed_check; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SHIPPED.parent, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
