"""`python -m references`: what each command prints, and its exit code."""

import json
from pathlib import Path

import pytest

from references.__main__ import main
from references.quote import excerpt, quote, quote_diseases
from references.shelf import build
from tests.references.passages import ALL, HAIR, MARFAN, hpo_folder


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    hpo = hpo_folder(tmp_path / "hpo")
    path = tmp_path / "shelf.db"
    assert main(["--shelf", str(path), "build", "--hpo", str(hpo), "--quiet"]) == 0
    return path


def run(capsys: pytest.CaptureFixture[str], shelf: Path, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["--shelf", str(shelf), *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_whole_round(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, shelf, "ls")
    assert status == 0
    assert "8 passages" in out
    guide = tmp_path / "guides"
    guide.mkdir()
    (guide / "pain.md").write_text("# Chest pain\nCall for help.")
    (guide / "x.pdf").write_text("x")
    options = ("--source", "Our guide", "--licence", "CC0", "--specialty", "cardiology")
    status, out, err = run(capsys, shelf, "add", str(guide), *options)
    assert (status, "9 passages, 8 before" in out) == (0, True)
    assert "left out, as neither Markdown nor text: x.pdf" in err
    status, out, _ = run(capsys, shelf, "search", "chest pain")
    assert status == 0
    assert "[1] Chest pain: “Call for help.” (Our guide)" in out
    status, out, _ = run(capsys, shelf, "ls", "pain")
    assert "licence: CC0" in out
    assert run(capsys, shelf, "add", str(guide), *options)[0] == 2
    assert run(capsys, shelf, "add", str(guide), *options, "--replace")[0] == 0
    assert run(capsys, shelf, "rm", "pain")[0] == 0
    assert run(capsys, shelf, "search", "chest pain")[0] == 1
    status, out, _ = run(capsys, shelf, "verify")
    assert (status, "intact" in out) == (0, True)


def test_json(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, shelf, "search", "brittle hair", "--json")
    assert json.loads(out)[0]["id"] == "HP:0000002"
    _, out, _ = run(capsys, shelf, "ls", "--json")
    assert sum(row["passages"] for row in json.loads(out)["passages"]) == 8
    _, out, _ = run(capsys, shelf, "ls", "HP:0000002", "--json")
    assert len(json.loads(out)["checksum"]) == 64


def test_diagnose(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, shelf, "diagnose", "brittle hair", "sparse hair")
    assert status == 0
    assert out.startswith("Diseases whose recorded signs match, not a diagnosis:\nHair disease")


def test_json_lines_and_their_mapping(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "faq.jsonl"
    file.write_text(json.dumps({"k": "faq-1", "q": "Opening hours", "a": "Nine to five."}))
    words = ("add", str(file), "--columns", "id=k,title=q,text=a", "--source", "FAQ")
    assert run(capsys, shelf, *words, "--licence", "internal")[0] == 0
    assert run(capsys, shelf, *words)[0] == 2
    assert run(capsys, shelf, "add", str(file), "--columns", "id")[0] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rm", "nope"), "references: passage nope: there is none of this id"),
        (("ls", "nope"), "references: passage nope: there is none of this id"),
        (("add", "/nowhere", "--format", "folder"), "there is no such folder"),
        (("add", "/nowhere", "--format", "medquad"), "no folder with MedQuAD"),
        (("add", "/nowhere"), "it cannot be read"),
    ],
)
def test_refusals_are_code_2(
    shelf: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    status, _, err = run(capsys, shelf, *words)
    assert status == 2
    assert says in err


def test_damage_is_code_1(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    with sqlite3.connect(shelf) as db:
        db.execute("update passages set text = 'x' where id = 'HP:0000002'")
    status, out, err = run(capsys, shelf, "verify")
    assert (status, "damaged" in out) == (1, True)
    assert "passage HP:0000002: its content and its checksum differ" in err


def test_quotations() -> None:
    said = quote([HAIR, MARFAN])
    assert said.startswith("What the references say:\n\n[1] Monilethrix: “Beaded hair shafts")
    assert "(Test source; PMID:1; https://example.org/1)" in said
    assert quote([], "fr") == "Aucune source n'a été trouvée pour cette question."
    assert quote_diseases([MARFAN], "fr").startswith("Maladies dont les signes")
    assert "not a diagnosis" in quote_diseases([MARFAN])
    assert excerpt("word " * 200, 12) == "word word …"
    assert excerpt("x" * 20, 5) == "xxxxx …"


def test_a_shelf_without_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.references.test_shelf import Letters

    build(tmp_path / "s.db", ALL, vectorise=Letters())
    status, _, err = run(capsys, tmp_path / "s.db", "diagnose", "fever")
    assert status == 2
    assert "was built with the vectors of 'letters'" in err


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
def test_a_limit_is_a_whole_number(shelf: Path, limit: str) -> None:
    with pytest.raises(SystemExit):
        main(["--shelf", str(shelf), "search", "x", "--limit", limit])
