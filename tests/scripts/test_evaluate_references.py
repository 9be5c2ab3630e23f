"""The report on the reference shelf: its figures, its question sets, its vignettes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from references.ingest.hpo import installed_files, read_hpo, sign_names
from references.ingest.hpo import passages as hpo_passages
from references.shelf import build
from references.words import fold, name_key
from scripts import evaluate_references
from scripts.references_evaluation import measures
from scripts.references_evaluation.vignettes import form, held_out, vignettes
from tests.references.passages import ALL, hpo_folder

ROOT = Path(__file__).resolve().parent.parent.parent
SETS = measures.SETS


def rows(name: str) -> Any:
    return measures.questions()[name]


def test_the_committed_report_has_the_committed_figures(tmp_path: Path) -> None:
    figures = ROOT / "docs" / "references_report.json"
    out = tmp_path / "report.md"
    assert evaluate_references.main(["--figures", str(figures), "--out", str(out)]) == 0
    assert out.read_text() == (ROOT / "docs" / "references_report.md").read_text()


def test_no_question_is_in_two_sets() -> None:
    questions = [
        row[lang] for name in SETS for row in rows(name) for lang in ("en", "fr") if lang in row
    ]
    assert [q for q, count in Counter(map(fold, questions)).items() if count > 1] == []
    wanted = [{fold(w) for row in rows(name) for w in row["want"]} for name in SETS]
    for number in (4, 5):  # the held-out sets
        shared = wanted[number] & set[str]().union(*wanted[:number])
        assert len(shared) <= 0.1 * len(wanted[number]), sorted(shared)


def test_absent_topics_are_not_shared() -> None:
    absent = rows("absent")
    assert not set(absent["en"]) & set(absent["en_held_out"])
    assert not set(absent["fr"]) & set(absent["fr_held_out"])


@pytest.mark.slow
def test_every_wanted_passage_is_on_the_shelf_and_no_phrase_is_a_name() -> None:
    hpo = read_hpo(installed_files())
    names = {fold(n) for p in hpo_passages(hpo) for n in (p.title, *p.synonyms)}
    wanted = {fold(name) for file in SETS for row in rows(file) for name in row["want"]}
    assert wanted - names == set()
    by_term = sign_names(hpo)
    titles = {own[0] for own in by_term.values()}
    keys = {name_key(name) for own in by_term.values() for name in own}
    assert {row["sign"] for row in rows("signs")} <= titles
    assert [r["en"] for r in rows("signs") if name_key(r["en"]) in keys] == []


def test_a_share_has_its_interval() -> None:
    found = measures.share([True] * 8 + [False] * 2)
    assert (found["value"], found["n"]) == (0.8, 10)
    assert found["low"] < 0.8 < found["high"]


def test_measures_on_a_small_shelf(tmp_path: Path) -> None:
    search = measures.Search(build(tmp_path / "s.db", ALL), read_hpo(hpo_folder(tmp_path / "hpo")))
    assert search.plain("kidney") == {"T:3"}
    assert [r.passage.id for r in search.ask("kidney stones", "en")][0] == "T:3"
    assert search.found_any("eczema", "en")
    with pytest.raises(ValueError, match=r"held_out: no passage is called"):
        search.paraphrases("held_out", "en")


def test_times_are_taken_in_turn() -> None:
    asked: list[str] = []
    ways = {"a": lambda q: asked.append(f"a{q}"), "b": lambda q: asked.append(f"b{q}")}
    found = measures.alternated(["1", "2"], ways)
    assert asked == ["a1", "b1", "a2", "b2"]
    assert found["a"]["wall"]["n"] == 2
    assert found["b"]["cpu"]["p95"] >= 0


def test_noisy_copies_have_ids_and_texts_of_their_own() -> None:
    copies = list(measures.noisy(ALL, 12, seed=0))
    assert len({p.id for p in copies}) == 12
    assert copies[:5] == list(ALL)
    assert all(not p.problems() for p in copies)
    assert any(copy.text != ALL[at % 5].text for at, copy in enumerate(copies))


def test_vignettes_are_drawn_from_one_half_of_the_diseases(tmp_path: Path) -> None:
    hpo = read_hpo(hpo_folder(tmp_path))
    disease = hpo.diseases["OMIM:1"]
    assert vignettes(hpo, sign_names(hpo), 2, 5, seed=0, tuning=not held_out("OMIM:1")) == []
    assert len(disease.signs) == 2  # too few to be drawn
    assert form("Usher syndrome, type 1D") == form("Usher syndrome type II") == "usher"
    assert form("Marfan syndrome") != form("Neonatal Marfan syndrome")
