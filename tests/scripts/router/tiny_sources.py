"""A few lines of each public source that the router learns from, in its own format."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OBO = """format-version: 1.2

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000707
name: Abnormality of the nervous system
is_a: HP:0000001 ! All

[Term]
id: HP:0001250
name: Seizure
def: "A seizure is an intermittent abnormality of the nerves, a brief \\"fit\\" of shaking." []
synonym: "Seizures" EXACT layperson []
synonym: "Epileptic fits" EXACT []
synonym: "Somewhat related" RELATED []
is_a: HP:0000707 ! Abnormality of the nervous system

[Term]
id: HP:0001251
name: Ataxia
def: "Too short." []
is_a: HP:0000707 ! Abnormality of the nervous system

[Term]
id: HP:0001337
name: Tremor
is_a: HP:0000707 ! Abnormality of the nervous system

[Term]
id: HP:0001574
name: Abnormality of the integument
is_a: HP:0000001 ! All

[Term]
id: HP:0000988
name: Skin rash
is_a: HP:0001574 ! Abnormality of the integument

[Term]
id: HP:0002664
name: Neoplasm
is_a: HP:0000001 ! All

[Term]
id: HP:0000999
name: Tumour of brain
is_a: HP:0002664 ! Neoplasm
is_a: HP:0000707 ! Abnormality of the nervous system

[Term]
id: HP:0000998
name: Skin and nerves
is_a: HP:0001574 ! Abnormality of the integument
is_a: HP:0000707 ! Abnormality of the nervous system

[Term]
id: HP:0000997
name: Old term
is_a: HP:0000707 ! Abnormality of the nervous system
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
_ANNOTATION = "OMIM:{}\t{}\t{}\t{}\tOMIM:1\tIEA"
HPOA = "\n".join(
    [
        "#description: HPO annotations",
        "database_id\tdisease_name\tqualifier\thpo_id\treference\tevidence",
        *(_ANNOTATION.format(1, "Shaking disease", "", f"HP:000{n}") for n in (1250, 1251, 1337)),
        *(_ANNOTATION.format(2, "Two signs only", "", f"HP:000{n}") for n in (1250, 1251)),
        *(_ANNOTATION.format(3, "Half and half", "", f"HP:000{n}") for n in (1250, 1251, 1337)),
        *[_ANNOTATION.format(3, "Half and half", "", "HP:0000988")] * 3,
        *(_ANNOTATION.format(4, "Never so", "NOT", f"HP:000{n}") for n in (1250, 1251, 1337)),
        _ANNOTATION.format(5, "Unknown sign", "", "HP:9999999"),
    ]
)
BABELON = "\n".join(
    [
        "subject_id\tpredicate_id\tsource_value\ttranslation_value\ttranslation_status",
        "HP:0001250\trdfs:label\tSeizure\tCrise d'épilepsie\tOFFICIAL",
        "HP:0001250\tIAO:0000115\tdefinition\tUne définition\tOFFICIAL",
        "HP:0000988\trdfs:label\tSkin rash\tÉruption cutanée\tOFFICIAL",
        "HP:0000998\trdfs:label\tSkin and nerves\tPeau et nerfs\tOFFICIAL",
        "HP:9999999\trdfs:label\tUnknown\tInconnu\tOFFICIAL",
        "HP:0001251\trdfs:label\tAtaxia\t \tOFFICIAL",
    ]
)
ICD = """<?xml version="1.0"?><ICD10CM.tabular><chapter><section>
<diag><name>I20</name><desc>Angina pectoris</desc>
  <diag><name>I20.0</name><desc>Unstable angina</desc>
    <inclusionTerm><note>Accelerated angina</note></inclusionTerm></diag></diag>
<diag><name>C43</name><desc>Malignant melanoma of skin</desc></diag>
<diag><name>C50</name><desc>Malignant neoplasm of breast</desc>
  <includes><note>Paget's disease of breast</note></includes></diag>
<diag><name>S05.0</name><desc>Injury of right eye</desc></diag>
<diag><name>S05.1</name><desc>Injury of left eye</desc></diag>
<diag><name>T36</name><desc>Poisoning</desc></diag>
<diag><name>K02</name><desc>Dental caries</desc></diag>
</section></chapter></ICD10CM.tabular>"""
CLINC: dict[str, Any] = {
    "oos_train": [["how tall is the tower", "oos"], ["who won the cup", "oos"]],
    "oos_val": [["what is the score", "oos"]],
    "train": [["what is my balance", "balance"]],
}
CASI = [
    {"id": 7, "type": "CARDIOLOGY", "full_question": "A man of 60 with chest pain. Which one?"},
    {"id": 8, "type": " cardiology ", "full_question": "A woman with palpitations. What next?"},
    {"id": 9, "type": "STATISTICS", "full_question": "Which test would you choose?"},
]
WRITTEN = [
    {"input": "my heart races at night", "specialty": "cardiology", "lang": "en"},
    {"input": "j'ai des boutons rouges", "specialty": "dermatology", "lang": "fr"},
    {"input": "where can I park at the hospital", "specialty": "out_of_scope", "lang": "en"},
]
GLOSSARY = [{"input": "palpitations", "specialty": "cardiology", "lang": "fr"}]


def pair(number: int, focus: str, split: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"m-{number}",
        "input": f"What is {focus}?",
        "output": f"{focus} is a disease. It is common.",
        "specialty": "neurology",
        "source": "MedQuAD/GARD",
        "lang": "en",
        "split": split,
        "focus": focus,
        **more,
    }


PREPARED = {
    "neurology.jsonl": [
        *(pair(n, f"Disease {word}", "train") for n, word in enumerate("alpha beta gamma".split())),
        pair(10, "Tremor", "validation"),
        pair(11, "Disease alpha", "train", input="How is Disease alpha treated?"),
        pair(12, "Ataxia", "train", output="Long. " + "A sentence of some words. " * 60),
    ],
    "templated.jsonl": [
        {
            "id": f"hpofr-{number}",
            "input": f"Qu'est-ce que {focus} ?",
            "specialty": "neurology",
            "source": "HPO-fr (templated)",
            "lang": "fr",
            "split": split,
            "focus": focus,
        }
        for number, focus, split in (
            ("0001250", "crise d'épilepsie", "validation"),
            ("0001251", "ataxie", "train"),
        )
    ],
}


def write_lines(file: Path, items: Iterable[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    file.write_text(text, encoding="utf-8")
    return file


def make_tiny_sources(folder: Path) -> dict[str, str]:
    """Kind -> its --source argument."""
    folder.mkdir(parents=True)
    texts = {"hp.obo": OBO, "phenotype.hpoa": HPOA, "hp-fr.tsv": BABELON, "icd.xml": ICD}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "clinc.json").write_text(json.dumps(CLINC), encoding="utf-8")
    write_lines(folder / "casi.jsonl", CASI)
    write_lines(folder / "written.jsonl", WRITTEN)
    write_lines(folder / "glossary.jsonl", GLOSSARY)
    (folder / "prepared").mkdir()
    for name, items in PREPARED.items():
        write_lines(folder / "prepared" / name, items)
    terms = f",terms={folder / 'hp.obo'}"
    return {
        "prepared": f"prepared:{folder / 'prepared'}",
        "hpo": f"hpo:{folder / 'hp.obo'}",
        "hpo_fr": f"hpo_fr:{folder / 'hp-fr.tsv'}{terms}",
        "hpo_diseases": f"hpo_diseases:{folder / 'phenotype.hpoa'}{terms}",
        "icd10cm": f"icd10cm:{folder / 'icd.xml'}",
        "clinc150": f"clinc150:{folder / 'clinc.json'}",
        "casimedicos": f"casimedicos:{folder / 'casi.jsonl'},lang=en",
        "written": f"written:{folder / 'written.jsonl'}",
        "glossary": f"glossary:{folder / 'glossary.jsonl'}",
    }
