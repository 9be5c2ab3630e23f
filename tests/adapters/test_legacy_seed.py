"""The seed's form of before 0.2 is read like today's, with a note, and can be converted."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import legacy_seed
from adapters.catalog import CatalogError, load_catalog
from tests.adapters.live_catalogs import make_seed

BASE = {"name": "tiny", "prompt_format": "plain", "system_line": "S", "languages": ["fr"]}


def write_old(folder: Path, **change: Any) -> None:
    """The seed of `make_seed` in the old form; `derm` changed."""
    today = load_catalog(make_seed(folder))
    entries = [
        {
            "name": a.name,
            "specialty": a.specialty,
            "base_model": a.base_model,
            "path": f"weights/{a.name}",
            "sha256": a.stable.sha256,
            "version": a.version,
            "rank": 1,
        }
        for a in today.adapters
    ]
    entries[0] |= change
    content = {"base_models": [BASE], "adapters": entries}
    (folder / "catalog.yaml").write_text("# ours\n" + yaml.safe_dump(content))


def test_it_is_read_like_todays_form_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    today = load_catalog(make_seed(tmp_path))
    write_old(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = load_catalog(tmp_path)
    assert found.adapters == today.adapters
    assert found.base_model("tiny").languages == ["fr"]
    assert f"python -m adapters.legacy_seed {tmp_path}" in caplog.text


def test_what_the_old_form_could_say_is_kept(tmp_path: Path) -> None:
    evaluation = {"split": "validation", "interval": [-0.5, 0.25]}
    write_old(tmp_path, state="disabled", reason="worse", languages=["fr"], evaluation=evaluation)
    derm = load_catalog(tmp_path).adapter("derm")
    assert derm is not None
    assert (derm.state, derm.reason) == ("disabled", "worse")
    assert (derm.stable.languages, derm.stable.evaluation) == (["fr"], evaluation)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Derm"}, "1 to 64 of a-z"),
        ({"path": "../derm"}, "folder below the catalogue"),
        ({"path": 7}, "path"),
        ({"sha256": "abc"}, "sha256"),
        ({"rank": 0}, "rank"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_entry_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    write_old(tmp_path, **change)
    with pytest.raises(CatalogError, match=problem):
        load_catalog(tmp_path)


@pytest.mark.parametrize("text", ["adapters: derm", "adapters: [derm]", "adapters: {a: 1}"])
def test_adapters_that_are_not_a_list_of_entries(text: str, tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(text)
    with pytest.raises(CatalogError, match="adapters"):
        load_catalog(tmp_path)


def test_it_is_converted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_old(tmp_path)
    before = load_catalog(tmp_path)
    assert legacy_seed.main([str(tmp_path)]) == 0
    caplog.clear()
    assert load_catalog(tmp_path) == before
    assert not caplog.text
    assert (tmp_path / "catalog.yaml").read_text().startswith("# ours\nrevision: 0\n")


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert legacy_seed.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert legacy_seed.main([str(tmp_path)]) == 2
    assert "the file is missing" in capsys.readouterr().err
    write_old(tmp_path)
    (tmp_path / "weights" / "derm" / "adapter_config.json").unlink()
    before = (tmp_path / "catalog.yaml").read_bytes()
    assert legacy_seed.main([str(tmp_path)]) == 2
    assert "adapter 'derm': its files are missing" in capsys.readouterr().err
    assert (tmp_path / "catalog.yaml").read_bytes() == before
