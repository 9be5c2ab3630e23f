"""The forms of data that preparation reads, and the ones that it refuses by line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.datasets.pairs import load_pairs
from tests.scripts.test_prepare_medical_dataset import prepared, rows, run


def medquad(folder: Path, source: str, focus: str, *answers: str) -> None:
    """As MedQuAD writes it: ids begin anew in each folder."""
    pairs = "".join(
        f'<QAPair pid="{i}"><Question qid="0000001-{i}" qtype="information">What is (are) {focus} '
        f"number {i} ?</Question><Answer>{answer}</Answer></QAPair>"
        for i, answer in enumerate(answers, start=1)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0000001.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Document id="0000001" source="{source}" '
        f'url="https://a.gov/{focus}"><Focus>{focus}</Focus><FocusAnnotations><UMLS><CUIs>'
        f"<CUI>C1</CUI></CUIs></UMLS><Synonyms><Synonym>{focus} of old</Synonym></Synonyms>"
        f"</FocusAnnotations><QAPairs>{pairs}</QAPairs></Document>"
    )


def test_medquad(tmp_path: Path) -> None:
    medquad(tmp_path / "m" / "2_GARD_QA", "GARD", "eczema", "Key Points\n      - It itches.", "")
    medquad(tmp_path / "m" / "4_MPlus_QA", "MPlusHealthTopics", "psoriasis", "It is red.")
    medquad(tmp_path / "m" / "9_CDC_QA", "CDC", "fatigue", "It is long.")
    call = ("--source", f"medquad:{tmp_path / 'm'}", "--with_sources")
    manifest = prepared(tmp_path / "out", *call)
    found = rows(tmp_path / "out" / "dermatology.jsonl")
    assert [row["id"] for row in found] == ["2_GARD_QA/0000001-1", "4_MPlus_QA/0000001-1"]
    assert found[0]["input"] == "What is (are) eczema number 1?"
    publisher = "Genetic and Rare Diseases Information Center"
    assert found[0]["output"] == f"Key Points - It itches.\n\nSource: {publisher}"
    assert found[1]["output"].endswith("Source: MedlinePlus")
    assert (found[0]["focus"], found[0]["qtype"]) == ("eczema", "information")
    assert manifest["sources"][0]["left_out"] == {"empty answer": 1, "no single specialty": 1}
    assert len({row["split"] for row in found}) == 1, "one rare UMLS concept"


def test_medquad_whose_ids_repeat_within_a_folder(tmp_path: Path) -> None:
    """As in 1_CancerGov_QA of commit 577bd37: eight ids over twelve files."""
    folder = tmp_path / "m" / "1_CancerGov_QA"
    medquad(folder, "CancerGov", "eczema", "It itches.")
    (folder / "0000001.xml").rename(folder / "0000001_1.xml")
    medquad(folder, "CancerGov", "psoriasis", "It is red.")
    prepared(tmp_path / "out", "--source", f"medquad:{tmp_path / 'm'}")
    found = [row for file in (tmp_path / "out").glob("*.jsonl") for row in rows(file)]
    assert sorted(row["id"] for row in found) == [
        "1_CancerGov_QA/0000001-1",
        "1_CancerGov_QA/0000001_1/1",
    ]


def test_medical_abstracts(tmp_path: Path) -> None:
    """The keyword filter decides, within what the label allows."""
    long = "Skin was seen. " * 200
    (tmp_path / "train.csv").write_text(
        "condition_label,medical_abstract\n"
        '4,"Coronary disease in men. We saw 20 men. All did well."\n'
        '2,"Coronary disease in men of age. We saw them."\n'
        f'5,"Psoriasis of the nail. {long}"\n'
        '5,"A fine day. We went out."\n'
        '3,"Migraine in women"\n'
    )
    call = ("--source", f"abstracts:{tmp_path / 'train.csv'},licence=CC BY-SA 3.0")
    manifest = prepared(tmp_path / "out", *call)
    found = rows(tmp_path / "out" / "cardiology.jsonl")
    assert [(row["input"], row["output"]) for row in found] == [
        (
            "What does research say about this: Coronary disease in men?",
            "We saw 20 men. All did well.",
        )
    ]
    (cut,) = rows(tmp_path / "out" / "dermatology.jsonl")
    assert 1400 < len(cut["output"]) <= 1500
    assert cut["output"].endswith("seen.")
    assert manifest["sources"][0]["left_out"] == {
        "no single specialty": 2,
        "no title or no text after it": 1,
    }
    assert manifest["sources"][0]["options"] == {"licence": "CC BY-SA 3.0"}


ABSTRACTS = [
    ("Coronary disease in men.", "We saw 20 men with a rash. All did well.", "heart; men"),
    ("Warts in children.", "We saw 9 children. Their warts went away.", "skin"),
    ("Rash after statins.", "A statin for the heart was taken. It went.", "drugs; eczema"),
    ("A fine day.", "We went out.", "weather"),
]


@pytest.mark.parametrize(
    ("options", "expected", "left_out"),
    [
        ("keyword=eczema", None, None),  # of no text: refused below
        (
            "keyword=rash,all=dermatology",
            {"dermatology": ["Coronary disease in men", "Rash after statins"]},
            {"without the keyword": 2},
        ),
        (
            "keyword=wart*,all=dermatology",
            {"dermatology": ["Warts in children"]},
            {"without the keyword": 3},
        ),
        (
            "keyword=heart",
            {"cardiology": ["Rash after statins"]},
            {"without the keyword": 3},
        ),
        (
            "keywords=mesh",
            {
                "cardiology": ["Coronary disease in men"],
                "dermatology": ["Warts in children", "Rash after statins"],
            },
            {"no single specialty": 1},
        ),
        (
            "",
            {"cardiology": ["Coronary disease in men", "Rash after statins"]},
            {"no single specialty": 2},
        ),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_abstracts_of_a_keyword(
    options: str, expected: Any, left_out: Any, ending: str, tmp_path: Path
) -> None:
    """The option names a word, or the column that holds the keywords."""
    file = tmp_path / f"export.{ending}"
    columns = ("title", "text", "mesh")
    if ending == "csv":
        lines = [",".join(f'"{cell}"' for cell in row) for row in ABSTRACTS]
        file.write_text("\n".join([",".join(columns), *lines]) + "\n")
    else:
        listed = [(title, text, words.split("; ")) for title, text, words in ABSTRACTS]
        file.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in listed]))
    more = f"title=title,abstract=text,licence=own{',' if options else ''}{options}"
    call = ("--source", f"abstracts:{file},{more}", "--min_validation", "1")
    if expected is None:
        assert run(tmp_path / "out", *call) == 2
        return
    manifest = prepared(tmp_path / "out", *call)
    for specialty, titles in expected.items():
        found = rows(tmp_path / "out" / f"{specialty}.jsonl")
        assert sorted(row["focus"] for row in found) == sorted(titles)
        assert {row["source"] for row in found} == {file.name}
    assert manifest["sources"][0]["left_out"] == left_out


def test_a_keyword_of_medical_abstracts_own_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "condition_label,medical_abstract\n"
        '4,"Coronary disease in men. We saw 20 men. All did well."\n'
        '1,"Cancer of the coronary artery. We saw it."\n'
        '5,"A fine day. We went out."\n'
    )
    call = ("--source", f"abstracts:{tmp_path / 'train.csv'},keyword=Coronary,licence=own")
    prepared(tmp_path / "out", *call, "--min_validation", "1")
    found = rows(tmp_path / "out" / "cardiology.jsonl")
    assert [row["source"] for row in found] == ["Medical Abstracts"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keyword=gizmo", "is a word of no specialty: name the specialty too"),
        ("keyword=*", "is a word of no specialty"),
        ("all=dermatology", "goes with keyword=WORD"),
        ("keyword=rash,all=Skin Care", "specialty 'Skin Care'"),
        ("keyword=heart", "no 'medical_abstract' (columns found: title, text); name it: abstract="),
        ("abstract=text,keywords=mesh", "no 'mesh' (columns found: title, text); name it: keyword"),
        ("abstract=text,title=head", "no 'head' (columns found: title, text); name it: title="),
        ("keyword=heart,abstract=text,title=title", "no usable question (1 without the keyword)"),
        ("keyboard=heart", "there are abstract, all, keyword, keywords, licence, title"),
    ],
)
def test_keywords_that_cannot_be_used(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "export.csv"
    file.write_text("title,text\nWarts.,We saw them.\n")
    assert run(tmp_path / "out", "--source", f"abstracts:{file},{options}") == 2
    assert message in capsys.readouterr().err


MAPPING = "question=q,answer=a,specialty=s,licence=own"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("faq.csv", '\ufeffq,a,s\nWhat?,"Red, dry.",dermatology\n'),
        ("faq.tsv", "q\ta\ts\nWhat?\tRed, dry.\tdermatology\n"),
        ("faq.json", '[{"q": "What?", "a": "Red, dry.", "s": "dermatology"}]'),
        ("faq.jsonl", '{"q": "What?", "a": "Red, dry.", "s": "dermatology"}\n'),
    ],
)
def test_a_table_with_columns_of_its_own(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    prepared(tmp_path / "out", "--source", f"table:{tmp_path / file},{MAPPING}")
    (row,) = rows(tmp_path / "out" / "dermatology.jsonl")
    assert (row["input"], row["output"]) == ("What?", "Red, dry.")


@pytest.mark.parametrize(
    "row",
    [
        {"input": "What?", "output": "Red, dry."},
        {"instruction": "What?", "input": "", "output": "Red, dry."},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "Red, dry."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Red, dry."}]},
            ]
        },
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "What?"},
                {"from": "gpt", "value": "Red, dry."},
            ]
        },
        {"Question": "What?", "Answer": "Red, dry."},
        {"prompt": "What?", "completion": "Red, dry."},
        {"instruction": "What?", "context": "", "response": "Red, dry.", "category": "open_qa"},
    ],
)
@pytest.mark.parametrize("kind", ["table", "jsonl"])
def test_a_json_list_in_common_forms(row: dict[str, Any], kind: str, tmp_path: Path) -> None:
    (tmp_path / "faq.json").write_text(json.dumps([row]))
    source = f"{kind}:{tmp_path / 'faq.json'},all=dermatology,licence=own"
    prepared(tmp_path / "out", "--source", source)
    (found,) = rows(tmp_path / "out" / "dermatology.jsonl")
    assert (found["input"], found["output"]) == ("What?", "Red, dry.")
    assert not {"messages", "conversations"} & found.keys()
    assert "instruction" not in found or "response" in row
    (pair,) = load_pairs(tmp_path / "faq.json", "dermatology").train
    assert (pair.question, pair.answer) == ("What?", "Red, dry.")


def test_lines_without_a_specialty_are_told_how_to_give_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faq.json").write_text('[{"input": "What?", "output": "Red."}]')
    assert run(tmp_path / "out", "--source", f"jsonl:{tmp_path / 'faq.json'}") == 2
    assert "faq.json, line 1: no specialty" in (told := capsys.readouterr().err)
    assert "all=dermatology" in told


def test_a_conversation_is_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None of its turns is dropped."""
    turns = [{"role": role, "content": "A."} for role in ("user", "assistant") * 2]
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": turns}]))
    source = f"jsonl:{tmp_path / 'chat.json'},all=dermatology,licence=own"
    assert run(tmp_path / "out", "--source", source) == 2
    assert "'output' must be a text (columns found: messages" in capsys.readouterr().err


def test_a_dataset_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("--source", "hf:org/set,question=q,answer=a,all=dermatology,part=test,licence=own")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert run(tmp_path / "out", *call) == 2
    assert "pip install datasets" in capsys.readouterr().err

    def load(path: str, split: str) -> list[dict[str, str]]:
        assert (path, split) == ("org/set", "test")
        return [{"q": "What?", "a": "Red."}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert prepared(tmp_path / "out", *call)["sources"][0]["source"] == "hf:org/set"

    def offline(path: str, split: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    assert run(tmp_path / "other", *call) == 2
    assert "ConnectionError: no network" in capsys.readouterr().err


GOOD = '{"input": "a", "output": "b", "specialty": "dermatology"}\n'


@pytest.mark.parametrize(
    ("file", "content", "options", "message"),
    [
        ("d.jsonl", GOOD + "{torn\n", "", "d.jsonl, line 2: not JSON"),
        ("d.jsonl", GOOD + GOOD[:-3] + ', "x": "\udce9"}\n', "", "d.jsonl, line 2: not UTF-8"),
        ("d.jsonl", GOOD.replace('"b"', '" "'), "", "line 1: 'output' is empty"),
        ("d.jsonl", GOOD.replace("output", "answer"), "", "columns found: answer, input, spec"),
        ("d.jsonl", GOOD.replace("derma", "../derma"), "", "specialty '../dermatology'; use 1"),
        ("d.jsonl", GOOD[:-2] + ', "split": "test"}\n', "", "split 'test'; expected train or"),
        ("d.jsonl", GOOD[:-2] + ', "id": "1"}\n' + GOOD[:-2] + ', "id": "1"}\n', "", "id '1' is"),
        ("d.jsonl", "", "", "no usable question (nothing in it)"),
        ("t.csv", "q,a\nWhat?\n", "question=q,answer=a,all=x", "t.csv, line 2: 2 columns"),
        ("t.csv", "q,a\nWhat?,\n", "question=q,answer=a,all=x", "line 2: 'a' is empty"),
        ("t.csv", "q,a\nWhat?,b\n", "question=frage,answer=a,all=x", "(there are q, a); name it"),
        ("t.csv", "q,a\nWhat?,b\n", "question=q,answer=a", "no specialty: name the column"),
        (
            "t.csv",
            "q,a\nx,y\nWhat?,\udce9\n",
            "question=q,answer=a,all=x",
            "t.csv, line 3: not UTF",
        ),
        ("t.csv", f"q,a\nA,{'b' * 140_000}\n", "question=q,answer=a,all=x", "field larger"),
        ("t.json", '[{"q": "A", "a": ["b"]}]', "question=q,answer=a,all=x", "'a' holds a list"),
        ("t.json", '[{"q": "A", "a": null}]', "question=q,answer=a,all=x", "'a' is empty"),
        ("t.json", '{"q": "A"}', "question=q,answer=a,all=x", "a list of objects is expected"),
        ("t.txt", "A", "question=q,answer=a,all=x", "ending in .csv, .tsv, .json or .jsonl"),
        ("t.csv", "q,a\nA,b\n", "frage=q", "no option frage for kind table; there are all, an"),
    ],
)
def test_bad_sources_are_refused_by_line(
    file: str,
    content: str,
    options: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A surrogate stands for a byte that is not UTF-8."""
    (tmp_path / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    kind = "jsonl" if file == "d.jsonl" else "table"
    source = f"{kind}:{tmp_path / file},licence=own" + (f",{options}" if options else "")
    assert run(tmp_path / "out", "--source", source) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
