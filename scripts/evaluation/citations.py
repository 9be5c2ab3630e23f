"""Whether answers name the right publisher, and only pages that exist in the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.datasets.attributions import publisher
from scripts.datasets.pairs import DataSet
from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.bootstrap import Floats, estimate
from scripts.evaluation.comparison import metric, not_available, resampled
from scripts.evaluation.metrics import cited_publisher, urls


def citations(
    data: DataSet, texts: Mapping[str, Sequence[str]], counts: Floats
) -> dict[str, dict[str, Any]]:
    """Return the metrics of the publishers and pages that answers name."""
    pairs = (*data.train, *data.validation)
    known = {pair.url for pair in pairs} | {url for pair in pairs for url in urls(pair.answer)}
    invented = {
        system: np.array([float(sum(u not in known for u in urls(t))) for t in texts[system]])
        for system in SYSTEMS
    }
    found = {"invented_urls": metric("invented_urls", invented, counts)}
    if not any(cited_publisher(pair.answer) for pair in data.train):
        why = "its training answers name no sources (prepare them with --with_sources)"
        for name in ("citation_precision", "citation_recall"):
            found[name] = not_available(name, why)
        return found
    truth = [publisher(pair.source, pair.url) for pair in data.validation]
    cited = {system: [cited_publisher(text) for text in texts[system]] for system in SYSTEMS}
    right = {
        system: np.array([100.0 * (c == t) for c, t in zip(names, truth, strict=True)])
        for system, names in cited.items()
    }
    found["citation_recall"] = metric("citation_recall", right, counts)
    precise = {
        system: np.where([c is None for c in cited[system]], np.nan, right[system])
        for system in SYSTEMS
    }
    if all((~np.isnan(values)).any() for values in precise.values()):
        found["citation_precision"] = metric("citation_precision", precise, counts)
    else:
        citing_none = [s for s, values in precise.items() if np.isnan(values).all()]
        found["citation_precision"] = _one_sided(precise, citing_none, counts)
    return found


def _one_sided(
    columns: Mapping[str, Floats], citing_none: Sequence[str], counts: Floats
) -> dict[str, Any]:
    """Return the precision of the systems that cite."""
    name = "citation_precision"
    entry = not_available(name, "it names no source in any answer", 0)
    entry["not_available"] = {s: "it names no source in any answer" for s in citing_none}
    for system, values in columns.items():
        if system not in citing_none:
            entry["systems"][system] = estimate(*resampled(name, values, counts))
            entry["n"] = int((~np.isnan(values)).sum())
    return entry
