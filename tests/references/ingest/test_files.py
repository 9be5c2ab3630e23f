"""A folder, JSON lines and MedQuAD's XML as passages, and what their errors name."""

import json
from pathlib import Path
from typing import Any

import pytest

from references.ingest.folder import MAX_SECTION_CHARS, left_out, read_folder
from references.ingest.json_lines import read_json_lines
from references.ingest.medquad import read_medquad
from references.passage import ReferencesError, checked

DEFAULTS = {"source": "Our guide", "licence": "CC BY 4.0", "specialty": "cardiology"}


def test_a_folder_of_markdown_and_text(tmp_path: Path) -> None:
    (tmp_path / "heart").mkdir()
    (tmp_path / "heart" / "Chest pain.md").write_text(
        "---\ntitle: Chest pain\nsynonyms: [Angina, Tight chest]\nsource: Their guide\n---\n"
        "# Chest pain\nCall for help.\n\n## At home\nRest.\n\n## Empty\n"
    )
    (tmp_path / "plain.txt").write_text("A note.\r\nIts end.")
    (tmp_path / ".hidden.md").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    found = list(checked(read_folder(tmp_path, DEFAULTS)))
    assert [(p.id, p.title, p.text, p.source) for p in found] == [
        ("heart/Chest-pain#1", "Chest pain", "Call for help.", "Their guide"),
        ("heart/Chest-pain#2", "Chest pain: At home", "Rest.", "Their guide"),
        ("plain", "plain", "A note.\nIts end.", "Our guide"),
    ]
    assert found[0].synonyms == ("Angina", "Tight chest")
    assert {p.specialty for p in found} == {"cardiology"}
    assert left_out(tmp_path) == ["image.png"]


def test_a_long_section_is_cut_between_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("\n\n".join(["word " * 300] * 6))
    found = list(read_folder(tmp_path, DEFAULTS))
    assert [p.id for p in found] == ["long#1", "long#2", "long#3"]
    assert all(len(p.text) <= MAX_SECTION_CHARS for p in found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9", "a.md: not UTF-8 at byte 3: convert it"),
        (b"---\ntitle: [\n---\nx", "are not YAML"),
        (b"---\nautor: x\n---\nx", "unknown fields autor"),
        (b"---\n- x\n---\nx", "no fields"),
        (b"---\ntitle: {a: b}\n---\nx", "title .*a text is expected|a text is expected"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.md").write_bytes(content)
    with pytest.raises(ReferencesError, match=says):
        list(checked(read_folder(tmp_path, DEFAULTS)))


def test_a_folder_without_source_names_each_passage(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(ReferencesError, match="passage a: it has no source: give it one"):
        list(checked(read_folder(tmp_path, {})))


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="there is no such folder"):
        list(read_folder(tmp_path / "none", DEFAULTS))
    with pytest.raises(ReferencesError, match="it holds no file that ends in .md"):
        list(read_folder(tmp_path, DEFAULTS))


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n\n")
    return path


def test_json_lines_with_a_mapping(tmp_path: Path) -> None:
    row = {"key": 7, "question": "Q?", "answer": "A.", "also": "x; y", "fr": ["z"], "other": [1]}
    file = lines(tmp_path / "a.jsonl", row, {**row, "key": 8, "source": "Mine"})
    columns = {"id": "key", "title": "question", "text": "answer", "synonyms": "also"}
    columns["wordings_fr"] = "fr"
    first, second = checked(read_json_lines(file, columns, DEFAULTS))
    assert (first.id, first.title, first.text, first.synonyms) == ("7", "Q?", "A.", ("x", "y"))
    assert (first.wordings_en, first.wordings_fr) == ((), ("z",))
    assert (first.source, second.source) == ("Our guide", "Mine")


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        (["{"], {}, "a.jsonl, line 1: not JSON"),
        ([[1]], {}, "line 1: a JSON object is expected"),
        ([{"a": 1}], {"title": "b"}, "line 1: it has no b: its columns are a"),
        ([{"a": 1}], {"tilte": "a"}, "no field is called tilte"),
        ([{"id": "x", "title": ["x"]}], {}, "line 1: title .*a text is expected"),
        ([{"id": "x", "synonyms": 3}], {}, "a list of texts is expected"),
        ([{"id": "x", "wordings_en": [3]}], {}, "a list of texts is expected"),
        ([{"id": "x", "prominence": "high"}], {}, "a number is expected"),
        ([{"id": "x", "title": True}], {}, "a text is expected"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, rows: list[Any], columns: dict[str, str], says: str
) -> None:
    with pytest.raises(ReferencesError, match=says):
        list(read_json_lines(lines(tmp_path / "a.jsonl", *rows), columns, DEFAULTS))


MEDQUAD = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="0000001" source="GARD" url="https://example.org/gard/1">
<Focus>Monilethrix</Focus>
<FocusAnnotations><Synonyms><Synonym>Beaded hair</Synonym></Synonyms></FocusAnnotations>
<QAPairs>
<QAPair pid="1"><Question qid="1-1" qtype="information">What is (are)  Monilethrix ?</Question>
<Answer>A &lt;b&gt;hair&lt;/b&gt; condition.</Answer></QAPair>
<QAPair pid="2"><Question qid="1-2" qtype="treatment">Treatments?</Question><Answer></Answer>
</QAPair></QAPairs></Document>
"""


def test_medquad(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(MEDQUAD)
    (passage,) = checked(read_medquad(tmp_path, "dermatology"))
    assert (passage.id, passage.title) == ("medquad-1-1", "What is (are) Monilethrix ?")
    assert passage.synonyms == ("Monilethrix", "Beaded hair")
    assert passage.text == "A <b>hair</b> condition."
    assert "GARD" in passage.source
    assert "CC BY 4.0" in passage.licence
    assert (passage.url, passage.specialty) == ("https://example.org/gard/1", "dermatology")


@pytest.mark.parametrize(
    ("text", "says"), [("<a>", "not readable XML"), ("<a/>", "not a Document with QAPairs")]
)
def test_other_xml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "1.xml").write_text(text)
    with pytest.raises(ReferencesError, match=says):
        list(read_medquad(tmp_path))
    with pytest.raises(ReferencesError, match="no folder with MedQuAD"):
        list(read_medquad(tmp_path / "none"))
