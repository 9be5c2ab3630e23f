"""Figures of a trained router on questions that it was not trained on.

    python -m scripts.evaluate_router --data DATA_FOLDER --out docs/router.md

Two sets: the data folder's validation split (it also calibrated the router, so its probabilities
are a little flattered there) and the development set of written questions, on which nothing is
trained or calibrated. Development questions that also stand in the training set are left out.
Beside them stands a plain TF-IDF + logistic regression, trained on the folder's training split
only. The report holds numbers and no question text. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from router.classifier import ArtefactError, Classification, Classifier
from router.features import words_of
from router.policy import Reason, decide
from router.training import OUT_OF_SCOPE, Question
from scripts.train_router import ROUTER_DIR, WRITTEN, load_questions
from scripts.training_data import DataError, read_jsonl

DEV = ROUTER_DIR / "data" / "written_dev.jsonl"
NUM_BINS = 15
MIN_FOR_ECE = 500
NUM_WARM_UPS = 5
NUM_PAGES = 50
Rows = list[dict[str, Any]]
Mask = npt.NDArray[np.bool_]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = run(args)
    except (DataError, ArtefactError) as error:
        print(f"evaluate_router: {error}", file=sys.stderr)
        return 2
    if args.out:
        args.out.write_text(_markdown(report), encoding="utf-8")
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate_router",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of .jsonl files")
    add("--dev", type=Path, default=DEV, help="our own development questions")
    add("--model", type=Path, default=ROUTER_DIR / "model")
    add("--out", type=Path, help="Markdown report")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain data."""
    classifier = Classifier.load(args.model)
    training, held_out, _ = load_questions(args.data, WRITTEN)
    validation = [q for q in held_out if q.source != "written"]
    written_dev, follow_ups = _read_dev(args.dev)
    trained_on = {_folded(q.text) for q in (*training, *held_out)}
    dev = [q for q in written_dev if _folded(q.text) not in trained_on]
    sets = {"validation split": validation, "development set": dev}
    classified = {
        name: [classifier.classify([[q.text]])[0] for q in tqdm(questions, name)]
        for name, questions in sets.items()
    }
    baseline = _baseline([q for q in training if q.source != "written"])
    report: dict[str, Any] = {
        "version": classifier.version,
        "min_confidence": classifier.thresholds.min_confidence,
        "min_in_scope": classifier.thresholds.min_in_scope,
        "dev_left_out": len(written_dev) - len(dev),
        "routing": [],
        "scope": [],
    }
    for name, questions in sets.items():
        report["routing"] += _routing_rows(name, questions, classified[name], baseline, classifier)
        report["scope"] += _scope_rows(name, questions, classified[name], classifier)
    report["per_class"] = _per_class(dev, classified["development set"])
    report["follow_ups"] = {
        "n": len(follow_ups),
        "without_signal": round(
            float(np.mean([not classifier.classify([[q]])[0].last.has_signal for q in follow_ups])),
            4,
        ),
    }
    report["latency_ms"] = _latency(classifier, [q.text for q in dev])
    report["machine"] = {"num_cores": os.cpu_count(), "load_1_min": round(os.getloadavg()[0], 1)}
    return report


def _read_dev(path: Path) -> tuple[list[Question], list[str]]:
    """(single questions with their kind as source, follow-ups without a signal)."""
    questions, follow_ups = [], []
    for _, item in read_jsonl(path):
        if item["kind"] == "follow_up":
            follow_ups.append(item["input"])
        else:
            questions.append(Question(item["input"], item["specialty"], item["lang"], item["kind"]))
    return questions, follow_ups


def _folded(text: str) -> str:
    """Without case, accents and punctuation, so that a copy is found behind them."""
    return " ".join(word.normal for word in words_of(text))


def _baseline(training: Sequence[Question]) -> Callable[[Sequence[str]], list[str]]:
    """Word TF-IDF + logistic regression, scikit-learn's defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    inside = [q for q in training if q.specialty != OUT_OF_SCOPE]
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit([q.text for q in inside], [q.specialty for q in inside])
    return lambda texts: [str(label) for label in model.predict(list(texts))]


def _routing_rows(
    name: str,
    questions: Sequence[Question],
    classified: Sequence[Classification],
    baseline: Callable[[Sequence[str]], list[str]],
    classifier: Classifier,
) -> Rows:
    """Which specialist, on in-scope questions: all, by language, by source."""
    inside = np.array([q.specialty != OUT_OF_SCOPE for q in questions])
    groups: list[tuple[str, Mask]] = [("all", inside)]
    for attribute in ("language", "source"):
        for value in sorted({str(getattr(q, attribute)) for q in questions}):
            picked = np.array([getattr(q, attribute) == value for q in questions]) & inside
            if picked.any():
                groups.append((value, picked))
    for code in ("en", "fr"):
        is_code = np.array([q.language == code for q in questions])
        for value in sorted({q.source for q in questions}):
            picked = is_code & inside & np.array([q.source == value for q in questions])
            if picked.any() and name == "development set":
                groups.append((f"{value} {code}", picked))
    truth = np.array([q.specialty for q in questions])
    tops = [max(c.last.probabilities.items(), key=lambda item: item[1]) for c in classified]
    predicted = np.array([top for top, _ in tops])
    confidence = np.array([value for _, value in tops])
    plain = np.array(baseline([q.text for q in questions]))
    rows = []
    for group, mask in groups:
        correct = predicted[mask] == truth[mask]
        sure = confidence[mask] >= classifier.thresholds.min_confidence
        rows.append(
            {
                "set": name,
                "group": group,
                "n": int(mask.sum()),
                "accuracy": _rounded(correct.mean()),
                "macro_f1": _rounded(_macro_f1(truth[mask], predicted[mask])),
                "coverage": _rounded(sure.mean()),
                "accuracy_when_sure": _rounded(correct[sure].mean()) if sure.any() else None,
                "ece": _rounded(_ece(confidence[mask], correct))
                if mask.sum() >= MIN_FOR_ECE
                else None,
                "baseline_accuracy": _rounded((plain[mask] == truth[mask]).mean()),
            }
        )
    return rows


def _scope_rows(
    name: str,
    questions: Sequence[Question],
    classified: Sequence[Classification],
    classifier: Classifier,
) -> Rows:
    """In scope or not: against all strangers, and far ones and near misses apart."""
    scores = np.array([c.last.in_scope for c in classified])
    inside = np.array([q.specialty != OUT_OF_SCOPE for q in questions])
    kinds = sorted({q.source for q, is_in in zip(questions, inside, strict=True) if not is_in})
    rows = []
    for kind in ["all", *kinds] if len(kinds) > 1 else ["all"]:
        outside = ~inside & np.array([kind in ("all", q.source) for q in questions])
        rows.append(
            {
                "set": name,
                "strangers": kind,
                "n_in": int(inside.sum()),
                "n_out": int(outside.sum()),
                "auroc": _rounded(_auroc(scores[inside], scores[outside])),
                "fpr_at_95": _rounded(_fpr_at_95(scores[inside], scores[outside])),
                "in_scope_kept": _rounded(
                    (scores[inside] >= classifier.thresholds.min_in_scope).mean()
                ),
                "strangers_refused": _rounded(
                    (scores[outside] < classifier.thresholds.min_in_scope).mean()
                ),
                "strangers_to_a_specialist": _rounded(
                    np.mean(
                        [
                            _reaches_a_specialist(c, classifier)
                            for c, is_out in zip(classified, outside, strict=True)
                            if is_out
                        ]
                    )
                ),
            }
        )
    return rows


def _reaches_a_specialist(classification: Classification, classifier: Classifier) -> bool:
    route = decide(
        classification,
        thresholds=classifier.thresholds,
        adapters={name: name for name in classifier.specialties},
        base_languages=("en", "fr"),
    )
    return route.reason is Reason.CONFIDENT


def _per_class(questions: Sequence[Question], classified: Sequence[Classification]) -> Rows:
    rows = []
    for label in sorted({q.specialty for q in questions} - {OUT_OF_SCOPE}):
        hits = [
            max(c.last.probabilities.items(), key=lambda item: item[1])[0] == label
            for q, c in zip(questions, classified, strict=True)
            if q.specialty == label
        ]
        rows.append({"specialty": label, "n": len(hits), "recall": _rounded(np.mean(hits))})
    return rows


def _macro_f1(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    scores = []
    for label in sorted(set(truth)):
        hits = float(((predicted == label) & (truth == label)).sum())
        scores.append(2 * hits / float((predicted == label).sum() + (truth == label).sum()))
    return statistics.mean(scores)


def _ece(confidence: npt.NDArray[Any], correct: npt.NDArray[Any]) -> float:
    """Expected calibration error over bins of equal mass."""
    bins = np.array_split(np.argsort(confidence), NUM_BINS)
    gaps = [len(b) * abs(confidence[b].mean() - correct[b].mean()) for b in bins]
    return float(sum(gaps) / len(confidence))


def _auroc(inside: npt.NDArray[Any], outside: npt.NDArray[Any]) -> float:
    """Probability that an in-scope question scores above a stranger (Mann-Whitney)."""
    greater = (inside[:, None] > outside[None, :]).mean()
    equal = (inside[:, None] == outside[None, :]).mean()
    return float(greater + equal / 2)


def _fpr_at_95(inside: npt.NDArray[Any], outside: npt.NDArray[Any]) -> float:
    """Share of strangers above the threshold that keeps 95 % of the in-scope questions."""
    return float((outside >= np.percentile(inside, 5)).mean())


def _latency(classifier: Classifier, texts: Sequence[str]) -> dict[str, float]:
    """Wall-clock milliseconds for one question, and for one of 8,000 characters."""
    page = " ".join(texts)[:8000]
    report: dict[str, float] = {}
    for name, sample in (("question", list(texts[:300])), ("page", [page] * NUM_PAGES)):
        times = []
        for text in [*sample[:NUM_WARM_UPS], *sample]:
            started = time.perf_counter()
            classifier.classify([[text]])
            times.append((time.perf_counter() - started) * 1000)
        p50, p95 = np.percentile(times[NUM_WARM_UPS:], [50, 95])
        report |= {f"{name}_p50": _rounded(p50), f"{name}_p95": _rounded(p95)}
    return report


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _markdown(report: dict[str, Any]) -> str:
    parts = [
        "# The router: figures",
        "",
        f"Artefact `{report['version']}`; thresholds: confidence {report['min_confidence']}, "
        f"in scope {report['min_in_scope']}. Written by `python -m scripts.evaluate_router`.",
        "",
        "The **development set** is ours (`router/data/written_dev.jsonl`): plain patient "
        "questions and short vignettes in French and English, far out-of-scope questions and "
        "near misses. "
        "No weight, temperature or threshold was fitted on it, but its figures were seen while "
        "the recipe of the scope calibration was still changing: read them as development "
        "figures, not as an untouched test. "
        f"{report['dev_left_out']} of its questions also stand in the training set and are left "
        "out. Its labels are the authors' judgement, "
        "not a clinician's. The **validation split** also served for calibration. The baseline is "
        "word TF-IDF + logistic regression, trained on the public training split only.",
        "",
        "## Which specialist (in-scope questions)",
        "",
        *_table(report["routing"]),
        "",
        "## In scope or not",
        "",
        *_table(report["scope"]),
        "",
        "## Recall by specialty, development set",
        "",
        *_table(report["per_class"]),
        "",
        f"Of {report['follow_ups']['n']} follow-ups without words of their own, "
        f"{report['follow_ups']['without_signal']:.0%} are seen as such. "
        "Latency in milliseconds, warm, on the machine that wrote this page "
        f"(a page is 8,000 characters): {json.dumps(report['latency_ms'])}; "
        f"other work ran beside it: {json.dumps(report['machine'])}.",
        "",
    ]
    return "\n".join(parts)


def _table(rows: Rows) -> list[str]:
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|" + " --- |" * len(names))
    for row in rows:
        cells = ("n/a" if row[name] is None else str(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
