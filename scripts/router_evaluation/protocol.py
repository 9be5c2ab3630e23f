"""How the router's figures came about, in the words of the report."""

from scripts.router_evaluation.metrics import NUM_EXPENSIVE
from scripts.router_evaluation.results import Results
from scripts.router_evaluation.tables import Lines


def method(results: Results) -> Lines:
    left_out = ", ".join(f"{name} {count}" for name, count in results.left_out.items())
    limits = ", ".join(f"{name} {value:g}" for name, value in results.thresholds.items())
    fitted = "; ".join(f"{name}: {count:,} texts" for name, count in results.num_baseline.items())
    return [
        "## What was measured, and how",
        "",
        "- **Validation**: the validation split of the public sources, questions only. No disease, "
        "sign or text of it is in a question or passage that trained the router. Terminologies "
        "(HPO, ICD-10-CM) do train the shipped artefact, so it may know the *name* of a disease "
        "that a question asks about from a public list, as it may in service. Nothing is fitted "
        "on validation: calibration and thresholds come from the split `head`.",
        "- **French (HPO)**: signs in French question templates that no training text has. The "
        "shipped artefact may know the terms, in English from the lists; the strict one has seen "
        "neither templates nor terms.",
        "- **Exam vignettes**: the Spanish MIR exam in English and French (n = 42 each), in no "
        "training text.",
        "- **Development set**: our own questions (`router/data/written_dev.jsonl`). Nothing was "
        "fitted on it, but its figures were looked at while the recipe was changing: read them as "
        "development figures.",
        "- **Test set**: our own questions (`router/data/written_test.jsonl`). No weight, "
        "threshold or choice of recipe was made by it, and its errors were not read.",
        "- The labels of our own sets, and the specialties that sources map to, are the authors' "
        "judgement, not clinicians'. A question may well have two good answers; only one counts.",
        "- Copies of training texts (case, accents and punctuation aside) are left out: "
        f"{left_out}.",
        "- **Coverage** is the share of questions for which the policy names a specialist, given "
        "an adapter for every specialty; **accuracy when sure** is the accuracy on those. "
        f"Thresholds: {limits}.",
        "- **Baselines**: word TF-IDF + logistic regression on in-scope texts of the training "
        "splits. *baseline* learns from the public sources' questions, *baseline, all texts* from "
        "everything that the router learns from, passages, terms and our own questions too "
        f"({fitted}). Gains are paired by question.",
        "- **Intervals**: 95 %, percentile bootstrap over questions, 10,000 resamples; "
        f"{NUM_EXPENSIVE:,} for ECE, selective accuracy, AUROC, FPR and times.",
        f"- Data: questions.jsonl with sha256 `{results.data_sha256}`; {results.origin}.",
        "",
    ]
