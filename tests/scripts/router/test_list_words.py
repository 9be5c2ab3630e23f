"""The words of the training texts, marked by what they point to."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from router.artefact import MANIFEST
from scripts.router.list_words import ROUTER_DIR, main, training_files, word_lines
from scripts.router_evaluation.shift import UNSEEN

TEXTS = [
    *[("eczéma et prurit", "dermatology")] * 8,
    *[("the bakery", "out_of_scope")] * 2,
    ("exzéma", "dermatology"),  # it sounds like a frequent word: a slip
    ("chaleur", "dermatology"),
]


def test_words_are_marked_and_slips_left_out() -> None:
    lines = word_lines(TEXTS, ["ibuprofen"])
    assert lines[:2] == ["eczéma", "prurit"]
    assert {"ibuprofen", "bakery everyday", "chaleur known"} <= set(lines)
    assert not any(line.startswith("exz") for line in lines)


def test_no_set_is_read_that_the_router_is_measured_on() -> None:
    read = training_files(ROUTER_DIR / "model")
    assert "written_train.jsonl" in read
    assert not {f"{name}.jsonl" for name in (*UNSEEN, "written_dev")} & {*read}


@pytest.mark.slow
def test_only_files_that_trained_the_router_are_read(tmp_path: Path) -> None:
    """A file that lies there but has trained no router changes nothing."""
    data = tmp_path / "data"
    shutil.copytree(ROUTER_DIR / "data", data)
    row = {"input": "zzyzxia zzyzxia", "specialty": "cardiology", "lang": "en"}
    (data / "written_later.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    out = tmp_path / "words.txt.gz"
    assert main(["--data", str(data), "--out", str(out)]) == 0
    assert b"zzyzxia" not in gzip.decompress(out.read_bytes())


@pytest.mark.parametrize("data", [{}, {"data": {}}, {"data": {"sources": ["hpo:hp.obo"]}}])
def test_a_router_without_texts_of_ours_is_refused(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((ROUTER_DIR / "model" / MANIFEST).read_text(encoding="utf-8"))
    del manifest["data"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | data), encoding="utf-8")
    assert main(["--model", str(tmp_path), "--out", str(tmp_path / "words.txt.gz")]) == 2
    assert "name no texts of written or glossary" in capsys.readouterr().err
    assert not (tmp_path / "words.txt.gz").exists()


@pytest.mark.slow
def test_the_committed_list_is_what_the_command_writes(tmp_path: Path) -> None:
    out = tmp_path / "words.txt.gz"
    assert main(["--out", str(out)]) == 0
    committed = ROUTER_DIR / "words.txt.gz"
    assert gzip.decompress(out.read_bytes()) == gzip.decompress(committed.read_bytes())
