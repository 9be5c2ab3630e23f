"""From sources to a prepared folder: split by disease, counted repairs, leaks, refusals by line."""

import errno
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import prepare_medical_dataset
from scripts.datasets import prepared_folder
from scripts.datasets.pairs import load_pairs
from scripts.datasets.record import plain_words
from scripts.datasets.topics import topic_of

NUM_DISEASES = 40  # of dermatology, three questions each
ANSWER = (
    "It makes the skin of the {place} red and dry, and a cream from the {shop} helps with that."
)


def name(number: int) -> str:
    """A made-up disease that shares no word with another: "bakarix"."""
    syllables = "ba ka de fo gu hi lo me nu pa".split()
    return syllables[number // 10] + syllables[number % 10] + "rix"


def item(question: str, answer: str, **more: Any) -> dict[str, Any]:
    fields = {"specialty": "dermatology", "source": "MedQuAD/GHR", "lang": "en"}
    return {"input": question, "output": answer, **fields, **more}


def items() -> list[dict[str, Any]]:
    """The source's own split has one disease in validation."""
    return [
        item(
            f"{kind} {name(i)}?",
            ANSWER.format(place=f"{kind} {name(i)}", shop=f"shop{i}"),
            id=f"{i}-{kind}",
            focus=name(i),
            split="validation" if i == 0 else "train",
        )
        for i in range(NUM_DISEASES)
        for kind in ("What is", "Who treats", "Who gets")
    ]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.parent


def run(out: Path, *arguments: str) -> int:
    return prepare_medical_dataset.main(["--out", str(out), *arguments])


def prepared(out: Path, *arguments: str) -> dict[str, Any]:
    """The manifest."""
    assert run(out, *arguments) == 0
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source" / "dermatology.jsonl", items())


def test_a_folder_of_json_lines(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    manifest = prepared(out, "--source", f"jsonl:{source}")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["num_pairs"] == 3 * NUM_DISEASES
    assert told["validation"] == {"dermatology": 30}
    assert told["moved_to_validation"] == {"dermatology": 27}
    for split, num in (("train", 90), ("validation", 30)):
        pairs = json.loads((out / "dermatology" / f"{split}.json").read_text())
        assert len(pairs) == num
        assert all(set(pair) == {"input", "output"} for pair in pairs)
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest
    given = (source / "dermatology.jsonl").read_bytes()
    assert manifest["sources"][0]["sha256"] == {
        "dermatology.jsonl": hashlib.sha256(given).hexdigest()
    }
    assert "CC BY 4.0" in manifest["attribution"]["MedQuAD"]
    report = (out / "report.md").read_text()
    assert "| dermatology | 90 (30) | 30 (10) | 27 |" in report
    assert "cream" not in report, "no text of the data"


def test_no_disease_is_in_two_splits(source: Path, tmp_path: Path) -> None:
    """Synonyms of order, subtype and plural go together, and router questions follow."""
    more = [
        item("What is type 2?", "Two.", id="s1", focus=f"{name(0)} disease, type II"),
        item("Who has it?", "Three.", id="s2", focus=f"familial {name(0)}", split="train"),
    ]
    write(source / "dermatology.jsonl", items() + more)
    asked = [
        item("Itchy skin", "", id="r1", focus=f"{name(0)}", split="train"),
        item("What is " + name(0), "", id="r2", split="train"),
    ]
    write(source / "router_only.jsonl", asked)
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{source}")
    found = rows(tmp_path / "out" / "dermatology.jsonl")
    split_of: dict[str, set[str]] = {}
    for row in found:
        split_of.setdefault(row["focus"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {row["id"]: row["split"] for row in found if row["id"] in ("s1", "s2")} == {
        "s1": "validation",
        "s2": "validation",
    }
    asked = rows(tmp_path / "out" / "router_only.jsonl")
    assert [row["split"] for row in asked] == ["validation"] * 2, "the second by its words"
    assert manifest["split"]["reunited"] == 3
    assert not (tmp_path / "out" / "router_only").exists()


def test_the_same_sources_and_seed_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    call = ("--source", f"jsonl:{source}")
    one, two, other = (tmp_path / folder for folder in ("one", "two", "other"))
    assert prepared(one, *call)["files"] == prepared(two, *call)["files"]
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert (
        prepared(other, *call, "--seed", "1")["files"]
        != prepared(two, "--overwrite", *call)["files"]
    )


def test_planted_duplicates_are_counted(source: Path, tmp_path: Path) -> None:
    """Dropped where the question repeats; reported as contamination where the answer does."""
    planted = items()
    copied = next(row["output"] for row in planted if row["split"] == "train")
    validation = [row for row in planted if row["split"] == "validation"]
    validation[0]["output"] = copied
    eight = " ".join(copied.split()[:8])
    validation[1]["output"] = f"Quite {eight}. " + " ".join(f"other{i}" for i in range(40))
    again = [
        planted[5] | {"id": "again"},
        planted[6] | {"id": "other", "output": "Another answer."},
    ]
    write(source / "dermatology.jsonl", planted + again)
    rule = ("--min_validation", "3")
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{source}", *rule)
    assert manifest["cleaning"]["exact_duplicates"] == 1
    assert manifest["cleaning"]["repeated_questions"] == 1
    found = manifest["checks"]["dermatology"]["contamination"]
    seen = {"num_answers": 3, "any_8gram": 3, "most_8grams": 1}
    assert {key: found[key] for key in seen} == seen, "the third has ANSWER's second half"
    assert "| dermatology | 3 | 3 | 1 | 3 | 1 |" in (tmp_path / "out" / "report.md").read_text()


def test_boilerplate_is_counted_and_cut(source: Path, tmp_path: Path) -> None:
    shared = "These resources address the diagnosis or management of this disease."
    given = [row | {"output": row["output"] + " " + shared} for row in items()]
    write(source / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source}")
    kept = prepared(tmp_path / "kept", *call)["checks"]["dermatology"]
    assert kept["boilerplate_answers"] == len(given)
    cut = prepared(tmp_path / "cut", *call, "--drop_boilerplate")
    assert cut["cleaning"]["boilerplate_cut"] == len(given)
    assert cut["checks"]["dermatology"]["boilerplate_answers"] == 0
    assert shared not in (tmp_path / "cut" / "dermatology.jsonl").read_text()


def test_mojibake_languages_notes_and_lengths(tmp_path: Path) -> None:
    given = [
        item("What is it?", "SjÃ¶gren syndrome of the skin"),
        item("Qu'est-ce que c'est ?", "Une maladie de la peau avec des plaques", note="drop"),
        item("Wie?", "Rot", lang="de"),
    ]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    call = ("--source", f"jsonl:{source}")
    manifest = prepared(tmp_path / "out", *call)
    assert manifest["cleaning"]["mojibake_repaired"] == 1
    assert rows(tmp_path / "out" / "dermatology.jsonl")[0]["output"].startswith("Sjögren")
    checks = manifest["checks"]["dermatology"]
    assert checks["language"] == {"en": 1, "fr": 1, "und": 1}
    assert checks["answer_words"] == {"min": 1, "median": 5, "p90": 7, "max": 8}
    dropped = prepared(tmp_path / "less", *call, "--drop_note", "drop")
    assert dropped["cleaning"]["dropped"] == {"note drop": 1}


def test_sources_are_named_behind_answers(tmp_path: Path) -> None:
    given = [
        item("A?", "One."),
        item("B?", "Two.", source="own", url="https://www.example.org/b"),
        item("C?", "Three.", source="own"),
    ]
    source = write(tmp_path / "source" / "dermatology.jsonl", given)
    manifest = prepared(
        tmp_path / "out", "--source", f"jsonl:{source},licence=own", "--with_sources"
    )
    answers = [row["output"] for row in rows(tmp_path / "out" / "dermatology.jsonl")]
    assert answers == [
        "One.\n\nSource: Genetics Home Reference",
        "Two.\n\nSource: example.org",
        "Three.",
    ]
    assert manifest["without_publisher"] == 1


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


def test_pairs_that_name_no_disease_are_split_by_what_they_ask_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No topic is in both splits, and the report says what is not known."""
    kinds = ("What is {}?", "How is {} treated?", "What are the symptoms of {}?", "Who gets {}?")
    pairs = [
        item(kind.format(name(i)), f"Answer {i} {j}.", id=f"{i}-{j}")
        for i in range(30)
        for j, kind in enumerate(kinds)
    ]
    folder = write(tmp_path / "source" / "dermatology.jsonl", pairs)
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{folder}")
    assert manifest["split"]["diseases"] == 30
    assert manifest["split"]["pairs_without_focus"] == len(pairs)
    assert "120 pairs do not say which disease" in (tmp_path / "out" / "report.md").read_text()
    splits: dict[str, set[str]] = {}
    for row in rows(tmp_path / "out" / "dermatology.jsonl"):
        splits.setdefault(row["id"].partition("-")[0], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert "validation pairs" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("What is (are) eczema?", "eczema"),
        ("How is eczema treated?", "eczema"),
        ("Quels sont les symptômes de l'eczéma ?", "eczema"),
        ("What should I know about it?", ""),
    ],
)
def test_what_a_question_is_about(question: str, topic: str) -> None:
    assert topic_of(question) == topic


def test_too_few_questions_for_the_gate_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "source" / "dermatology.jsonl", items()[:60])
    manifest = prepared(tmp_path / "out", "--source", f"jsonl:{folder}")
    num = manifest["checks"]["dermatology"]["validation"]
    assert num < 30
    told = capsys.readouterr().err
    assert "fewer than the 30 validation pairs that scripts.promote_adapter asks for" in told
    assert f"dermatology {num}" in told


def test_the_language_is_told_from_the_text(tmp_path: Path) -> None:
    (tmp_path / "faq.tsv").write_text(
        "question\tanswer\nQuelle est la maladie ?\tElle est dans le sang.\n"
        "Is it red?\tYes, the skin is.\nOh?\tAh.\n"
    )
    call = ("--source", f"table:{tmp_path / 'faq.tsv'},all=dermatology,licence=own")
    prepared(tmp_path / "out", *call)
    assert [row["lang"] for row in rows(tmp_path / "out" / "dermatology.jsonl")] == [
        "fr",
        "en",
        "und",
    ]


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


def test_what_does_not_fit_together(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(*arguments: str) -> str:
        assert run(out, *arguments) == 2
        assert not out.exists()
        return capsys.readouterr().err

    good = f"jsonl:{source}"
    assert "KIND one of jsonl, medquad" in refused("--source", "csv:x")
    assert "no such file or folder" in refused("--source", "jsonl:/nowhere")
    assert "--min_validation 0" in refused("--source", good, "--min_validation", "0")
    assert "between 0 and 1" in refused("--source", good, "--validation_share", "1")
    write(tmp_path / "own" / "dermatology.jsonl", [item("A?", "B.", source="mine")])
    assert "the licence of mine is not known" in refused("--source", f"jsonl:{tmp_path / 'own'}")
    write(
        tmp_path / "mixed" / "dermatology.jsonl",
        [item("A?", "B."), item("C?", "D.", specialty="x")],
    )
    told = refused("--source", f"jsonl:{tmp_path / 'mixed'}")
    assert "line 2: specialty 'x' in the file of dermatology" in told
    write(tmp_path / "all" / "everything.jsonl", [item("A?", "B.")])
    assert "1 questions and no pair" in refused("--source", f"jsonl:{tmp_path / 'all'}")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<Document>")
    assert "xml/a.xml: not XML" in refused("--source", f"medquad:{tmp_path / 'xml'}")
    (tmp_path / "a.csv").write_text("condition_label,medical_abstract\n6,Title. Text.\n")
    assert "condition_label '6'" in refused("--source", f"abstracts:{tmp_path / 'a.csv'}")


def test_only_its_own_folder_is_overwritten(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    call = ("--source", f"jsonl:{source}")
    assert run(out, *call) == 2
    assert "it exists" in capsys.readouterr().err
    assert run(out, *call, "--overwrite") == 2
    assert "this script did not write it" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_earlier_folder(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    prepared(out, "--source", f"jsonl:{source}")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_folder, "render", full)
    assert run(out, "--source", f"jsonl:{source}", "--overwrite", "--seed", "1") == 2
    assert "No space left" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_words_ignore_case_accents_and_possessives() -> None:
    assert plain_words("Crohn's Café, 2nd") == ["crohn", "cafe", "2nd"]
