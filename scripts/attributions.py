"""Who made the data, under which licence, and who published the page an answer comes from."""

from urllib.parse import urlsplit

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
    """The data set that a `source` field names: "MedQuAD/GARD" -> "MedQuAD"."""
    return source.replace(" ", "/").split("/")[0]


def publisher(source: str, url: str) -> str:
    """Who published an answer: by its source, else the host of its page; "" when unknown."""
    named = PUBLISHERS.get(source.partition("/")[2])
    return named or (urlsplit(url).hostname or "").removeprefix("www.")
