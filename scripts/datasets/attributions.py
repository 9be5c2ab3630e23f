"""Who made the data, under which licence, and who published the page an answer comes from."""

import dataclasses
from collections.abc import Sequence
from urllib.parse import urlsplit

from scripts.datasets.record import Record

# By the `source` field of a pair, up to the first slash or blank.
ATTRIBUTIONS = {
    "MedQuAD": "MedQuAD (CC BY 4.0): Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019, "
    "20:511; text originally from NIH (GARD, GHR, NINDS, NIDDK, NHLBI, NCI, NIHSeniorHealth, "
    "MedlinePlus) and CDC",
    "HPO-fr": "Human Phenotype Ontology and its French translation (HPO licence: free with "
    "citation, content unaltered): Köhler et al., Nucleic Acids Research 2021",
    "HPO": "Human Phenotype Ontology (HPO licence: free with citation, content unaltered): "
    "Köhler et al., Nucleic Acids Research 2021",
    "ICD-10-CM": "ICD-10-CM (public domain): CDC/NCHS and CMS",
    "written": "questions written for this project (router/data), Apache-2.0",
    "glossary": "terms written for this project (router/data), Apache-2.0",
    "CasiMedicos": "CasiMedicos-arg (CC0 1.0): Agerri et al. 2023, Goenaga et al. 2024",
    "CLINC150": "CLINC150 (CC BY 3.0): Larson et al., EMNLP 2019",
}
# By what follows the slash in MedQuAD's `source`.
PUBLISHERS = {
    "GARD": "Genetic and Rare Diseases Information Center",
    "GHR": "Genetics Home Reference",
    "NINDS": "National Institute of Neurological Disorders and Stroke",
    "NIDDK": "National Institute of Diabetes and Digestive and Kidney Diseases",
    "NHLBI": "National Heart, Lung, and Blood Institute",
    "CancerGov": "National Cancer Institute",
    "NIHSeniorHealth": "NIH SeniorHealth",
    "MPlusHealthTopics": "MedlinePlus",  # the XML's own words; behind them our JSON lines'
    "ADAM": "MedlinePlus",
    "MedlinePlus-HealthTopics": "MedlinePlus",
    "MedlinePlus-ADAM(question only)": "MedlinePlus",
    "CDC": "Centers for Disease Control and Prevention",
}


def origin(source: str) -> str:
    """Return the data set that a `source` field names: "MedQuAD/GARD" -> "MedQuAD"."""
    return source.replace(" ", "/").split("/")[0]


def publisher(source: str, url: str) -> str:
    """Return who published an answer: by its source, else its page's host; "" when unknown."""
    named = PUBLISHERS.get(source.partition("/")[2])
    return named or (urlsplit(url).hostname or "").removeprefix("www.")


def with_sources(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Return pairs whose answers end in `Source: <publisher>`, and how many have no publisher."""
    done, unknown = [], 0
    for record in records:
        name = publisher(record.source, record.url) if record.is_pair else ""
        unknown += record.is_pair and not name
        if name:
            record = dataclasses.replace(record, answer=f"{record.answer}\n\nSource: {name}")
        done.append(record)
    return done, unknown
