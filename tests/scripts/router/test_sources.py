"""Each source's own format, and what is named when it is another."""

from pathlib import Path

import pytest

from scripts.datasets.record import DataError
from scripts.datasets.source import Source, parse_source
from scripts.router.dataset import Entry
from scripts.router.sources import OPTIONS, PASSAGE_CHARS, READERS, read_source_entries
from tests.scripts.router.tiny_sources import make_tiny_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_tiny_sources(tmp_path_factory.mktemp("sources") / "all")


def parse(text: str) -> Source:
    return parse_source(text, OPTIONS)


def entries(sources: dict[str, str], kind: str) -> list[Entry]:
    return read_source_entries(parse(sources[kind]))


def short(found: list[Entry]) -> set[tuple[str, str, str]]:
    return {(e.text, e.specialty, e.kind) for e in found}


def test_hpo(sources: dict[str, str]) -> None:
    found = entries(sources, "hpo")
    terms = {(text, label) for text, label, kind in short(found) if kind == "term"}
    assert terms == {
        ("Abnormality of the nervous system", "neurology"),
        ("Seizure", "neurology"),
        ("Seizures", "neurology"),
        ("Epileptic fits", "neurology"),
        ("Ataxia", "neurology"),
        ("Tremor", "neurology"),
        ("Abnormality of the integument", "dermatology"),
        ("Skin rash", "dermatology"),
        ("Neoplasm", "oncology"),
        ("Tumour of brain", "oncology"),  # a tumour first; in two branches otherwise
    }
    [definition] = [e for e in found if e.kind == "passage"]
    assert '"fit"' in definition.text
    assert definition.group == "HP:0001250"
    assert "seizure" in definition.names
    assert all(e.split == "" and e.lang == "en" for e in found)


def test_hpo_in_french(sources: dict[str, str]) -> None:
    found = entries(sources, "hpo_fr")
    assert short(found) == {
        ("Crise d'épilepsie", "neurology", "term"),
        ("Éruption cutanée", "dermatology", "term"),
    }
    assert {e.group for e in found} == {"HP:0001250", "HP:0000988"}  # as the English names
    assert {e.lang for e in found} == {"fr"}


def test_diseases_by_their_signs(sources: dict[str, str]) -> None:
    assert short(entries(sources, "hpo_diseases")) == {("Shaking disease", "neurology", "term")}


def test_icd(sources: dict[str, str]) -> None:
    assert short(entries(sources, "icd10cm")) == {
        ("Angina pectoris", "cardiology", "term"),
        ("Unstable angina", "cardiology", "term"),
        ("Accelerated angina", "cardiology", "term"),
        ("Malignant melanoma of skin", "dermatology", "term"),
        ("Malignant neoplasm of breast", "oncology", "term"),
        ("Paget's disease of breast", "oncology", "term"),
        ("Injury of right eye", "ophthalmology", "term"),  # one of both sides
    }


def test_clinc(sources: dict[str, str]) -> None:
    found = entries(sources, "clinc150")
    assert [(e.text, e.split) for e in found] == [
        ("how tall is the tower", "train"),
        ("who won the cup", "train"),
        ("what is the score", "validation"),
    ]
    assert {e.specialty for e in found} == {"out_of_scope"}


def test_casimedicos_validates_only(sources: dict[str, str]) -> None:
    found = entries(sources, "casimedicos")
    assert [(e.specialty, e.group) for e in found] == [
        ("cardiology", "casi 7"),
        ("cardiology", "casi 8"),
    ]
    assert {e.split for e in found} == {"validation"}
    french = read_source_entries(parse(sources["casimedicos"].replace("lang=en", "lang=fr")))
    assert {e.lang for e in french} == {"fr"}
    assert [e.group for e in french] == [e.group for e in found]
    assert not {e.id for e in french} & {e.id for e in found}


def test_written_questions_and_glossary(sources: dict[str, str]) -> None:
    written = entries(sources, "written")
    assert [(e.specialty, e.lang, e.kind, e.source) for e in written] == [
        ("cardiology", "en", "question", "written"),
        ("dermatology", "fr", "question", "written"),
        ("out_of_scope", "en", "question", "written"),
    ]
    [term] = entries(sources, "glossary")
    assert (term.kind, term.source, term.split, term.names) == (
        "term",
        "glossary",
        "",
        ("palpitation",),
    )


def test_prepared(sources: dict[str, str]) -> None:
    found = {e.id: e for e in entries(sources, "prepared")}
    assert found["m-0"].group == found["m-11"].group == found["m-0/passage"].group
    assert found["m-0"].group != found["m-1"].group
    assert found["m-0/passage"].text == "Disease alpha is a disease. It is common."
    passage = found["m-12/passage"].text
    assert PASSAGE_CHARS * 0.8 < len(passage) <= PASSAGE_CHARS
    assert passage.startswith(("A sentence", "Long."))
    held_out, training = found["hpofr-0001250"], found["hpofr-0001251"]
    assert (held_out.kind, held_out.text) == ("question", "Qu'est-ce que crise d'épilepsie ?")
    assert (training.kind, training.text) == ("term", "ataxie")
    assert held_out.group == "HP:0001250"  # the group of its names in other languages
    assert found["m-10"].split == "validation"


def test_medquads_own_files(tmp_path: Path) -> None:
    (tmp_path / "1_GARD").mkdir()
    for number, focus in enumerate(("Eczema", "Psoriasis", "Zzz")):
        (tmp_path / "1_GARD" / f"{number}.xml").write_text(
            f'<Document id="{number}" source="GARD"><Focus>{focus}</Focus><FocusAnnotations>'
            f"<Synonyms><Synonym>skin</Synonym></Synonyms></FocusAnnotations><QAPairs><QAPair>"
            f'<Question qid="{number}-1">What is {focus} ?</Question><Answer/></QAPair></QAPairs>'
            f"</Document>",
            encoding="utf-8",
        )
    found = read_source_entries(parse(f"medquad:{tmp_path}"))
    assert {(e.text, e.specialty, e.source) for e in found} >= {
        ("What is Eczema?", "dermatology", "MedQuAD/GARD"),
        ("What is Psoriasis?", "dermatology", "MedQuAD/GARD"),
    }
    assert {e.split for e in found} <= {"train", "validation"}


BAD = {
    "hpo": (b"no term at all", r"it has no \[Term\]"),
    "hpo_fr": (b"a\tb\n1\t2\n", "not the format that kind hpo_fr expects"),
    "hpo_diseases": (b"one column only\n", "not the format that kind hpo_diseases expects"),
    "icd10cm": (b"<open>", "not the format that kind icd10cm expects"),
    "clinc150": (b"{", "not the format that kind clinc150 expects"),
    "casimedicos": (b'{"id": 1}\n', "not the format that kind casimedicos expects"),
    "written": (b'{"input": " ", "specialty": "x", "lang": "en"}', "line 1: 'input' must be"),
    "glossary": (b'{"input": "x", "lang": "en"}', "line 1: 'specialty' must be a text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_another_format_is_named(sources: dict[str, str], tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    file = tmp_path / "bad.file"
    file.write_bytes(content)
    options = sources[kind].partition(",")[1:]
    with pytest.raises(DataError, match=message) as caught:
        read_source_entries(parse(f"{kind}:{file}{''.join(options)}"))
    assert "bad.file" in str(caught.value)


@pytest.mark.parametrize("kind", sorted(set(BAD) - {"hpo_fr"}))
def test_bytes_that_are_no_text_are_named(
    sources: dict[str, str], tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "bad.file"
    file.write_bytes(b"\xff\xfe\x00\x81")
    options = sources[kind].partition(",")[1:]
    with pytest.raises(DataError, match=r"bad\.file"):
        read_source_entries(parse(f"{kind}:{file}{''.join(options)}"))


@pytest.mark.parametrize("kind", sorted(READERS))
def test_a_missing_file_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="absent: no such file or folder"):
        read_source_entries(parse(f"{kind}:{tmp_path / 'absent'}"))


@pytest.mark.parametrize("kind", ["hpo_fr", "hpo_diseases"])
def test_the_tree_of_signs_is_asked_for(sources: dict[str, str], kind: str) -> None:
    with pytest.raises(DataError, match="add ,terms=hp.obo"):
        read_source_entries(parse(sources[kind].partition(",")[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tarot:cards", "expected KIND:PATH with KIND one of prepared, medquad"),
        ("hpo:", "expected KIND:PATH"),
        ("hpo", "expected KIND:PATH"),
        ("hpo_fr:,terms=hp.obo", "expected KIND:PATH"),
        ("hpo:hp.obo,lang=fr", "no option lang for kind hpo; there are none"),
        ("casimedicos:x.jsonl,langue=fr", "no option langue for kind casimedicos; there are lang"),
    ],
)
def test_a_bad_argument_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(text)
