"""The prepared data set's report: the manifest's figures for a reader, without any text of it.

What a reader wants to know of a prepared data set: leaks, boilerplate, lengths, languages.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts.datasets.cleaning import boilerplate
from scripts.datasets.record import Record, plain_words

NGRAM = 8
# Words that only one of the two languages has, often.
_MARKERS = {
    "en": frozenset("the is are what how and of does do for have with my can there".split()),
    "fr": frozenset("le la les est sont une des quels quelle comment pour je mon ma avec".split()),
}


def check(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Figures for each specialty's pairs, by specialty name."""
    pairs = [record for record in records if record.is_pair]
    seen = {gram for r in pairs if r.split == "train" for gram in ngrams(r.answer)}
    repeated = boilerplate(pairs)
    return {
        specialty: _specialty([r for r in pairs if r.specialty == specialty], seen, repeated)
        for specialty in sorted({r.specialty for r in pairs})
    }


def _specialty(pairs: Sequence[Record], seen: set[str], repeated: set[str]) -> dict[str, Any]:
    held_out = [r for r in pairs if r.split == "validation"]
    return {
        "train": len(pairs) - len(held_out),
        "validation": len(held_out),
        "diseases": {
            split: len({r.focus or r.question for r in pairs if r.split == split})
            for split in ("train", "validation")
        },
        "contamination": contamination(held_out, seen, repeated),
        "boilerplate_answers": sum(any(s in r.answer for s in repeated) for r in pairs),
        "answer_words": _lengths([len(r.answer.split()) for r in pairs]),
        "question_words": _lengths([len(r.question.split()) for r in pairs]),
        "language": dict(Counter(language(r.question + " " + r.answer) for r in pairs)),
    }


def contamination(
    held_out: Sequence[Record], seen: set[str], repeated: Iterable[str] = ()
) -> dict[str, int]:
    """How much of the held-out answers stands word for word in training answers.

    Args:
        seen: the training answers' 8-grams.
        repeated: boilerplate sentences: a second count leaves them out of the held-out answers.

    Returns:
        Counts of held-out answers with one 8-gram or more in common, and with more than half of
        theirs, with boilerplate and without.
    """
    figures = {"num_answers": len(held_out)}
    for suffix, cut in (("", ()), ("_without_boilerplate", tuple(repeated))):
        shares = []
        for record in held_out:
            text = record.answer
            for sentence in cut:
                text = text.replace(sentence, " | ")  # no 8-gram across the gap
            grams = {gram for part in text.split(" | ") for gram in ngrams(part)}
            shares.append(len(grams & seen) / len(grams) if grams else 0.0)
        figures["any_8gram" + suffix] = sum(share > 0 for share in shares)
        figures["most_8grams" + suffix] = sum(share > 0.5 for share in shares)
    return figures


def ngrams(text: str) -> list[str]:
    words = plain_words(text)
    return [" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def language(text: str) -> str:
    """ "en" or "fr" by function words; "und" (ISO 639-2, undetermined) when neither leads."""
    counts = Counter(plain_words(text))
    en, fr = (sum(counts[word] for word in _MARKERS[code]) for code in ("en", "fr"))
    return "und" if en == fr else ("en" if en > fr else "fr")


def _lengths(lengths: Sequence[int]) -> dict[str, int]:
    low, median, p90, high = np.percentile(lengths, [0, 50, 90, 100])
    return {"min": int(low), "median": int(median), "p90": int(p90), "max": int(high)}


def shared_diseases(records: Sequence[Record], groups: Sequence[str]) -> int:
    """Groups that are in more than one split: 0 after a split by disease."""
    splits: dict[str, set[str]] = {}
    for record, group in zip(records, groups, strict=True):
        splits.setdefault(group, set()).add(record.split)
    return sum(len(found) > 1 for found in splits.values())


def report_of(manifest: Mapping[str, Any]) -> str:
    """Markdown."""
    cleaning, split = manifest["cleaning"], manifest["split"]
    return "\n".join(
        [
            "# Prepared data",
            "",
            *_sources(manifest),
            "",
            "## Cleaning",
            "",
            f"- broken encodings repaired (ftfy): {cleaning['mojibake_repaired']} records",
            f"- exact duplicates dropped: {cleaning['exact_duplicates']}",
            f"- repeated questions dropped, the first stays: {cleaning['repeated_questions']}",
            f"- answers that lost boilerplate: {cleaning['boilerplate_cut']}",
            *[f"- left out, {why}: {count}" for why, count in cleaning["dropped"].items()],
            "",
            "## Split by disease",
            "",
            f"{split['diseases']} groups of diseases over all files; none is in two splits. "
            f"{split['reunited']} records changed the split because their disease was in both. "
            "Two names of one disease are only known as such where the source says so, or where "
            "they differ in subtype, order, accents or plural; the 8-gram figures below show what "
            "that misses.",
            "",
            *_counts(manifest["checks"], split["moved_to_validation"]),
            "",
            *_contamination(manifest["checks"]),
            "",
            *_length_lines(manifest["checks"]),
            "",
        ]
    )


def _sources(manifest: Mapping[str, Any]) -> list[str]:
    lines = ["## Sources", ""]
    for source in manifest["sources"]:
        licence = source["options"].get("licence")
        lines.append(f"- {source['source']}" + (f", licence: {licence}" if licence else ""))
        lines += [f"  - left out, {why}: {count}" for why, count in source["left_out"].items()]
    return lines + [f"- {text}" for text in manifest["attribution"].values()]


def _counts(checks: Mapping[str, Any], moved: Mapping[str, int]) -> list[str]:
    minimum = "pairs (diseases)"
    return [
        f"| specialty | train, {minimum} | validation, {minimum} | moved to validation |",
        "|---|---|---|---|",
        *[
            f"| {name} | {row['train']} ({row['diseases']['train']}) "
            f"| {row['validation']} ({row['diseases']['validation']}) | {moved.get(name, 0)} |"
            for name, row in checks.items()
        ],
    ]


def _contamination(checks: Mapping[str, Any]) -> list[str]:
    """Validation answers that share word sequences with training answers of any specialty."""
    lines = [
        "## Contamination",
        "",
        "Validation answers with an 8-gram of words that stands in a training answer of any "
        "specialty, and those with more than half of their 8-grams; then without sentences that "
        "answers about five diseases or more share (boilerplate).",
        "",
        "| specialty | answers | any | most | any, no boilerplate | most, no boilerplate |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in checks.items():
        found = row["contamination"]
        keys = ("any_8gram", "most_8grams")
        cells = [found["num_answers"]] + [
            found[key + suffix] for suffix in ("", "_without_boilerplate") for key in keys
        ]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return lines


def _length_lines(checks: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Lengths and languages",
        "",
        "Words, minimum / median / 90th percentile / maximum.",
        "",
        "| specialty | question | answer | answers with boilerplate | language |",
        "|---|---|---|---|---|",
    ]
    for name, row in checks.items():
        question, answer = (
            " / ".join(str(n) for n in row[f"{part}_words"].values())
            for part in ("question", "answer")
        )
        languages = ", ".join(f"{code} {n}" for code, n in sorted(row["language"].items()))
        lines.append(
            f"| {name} | {question} | {answer} | {row['boilerplate_answers']} | {languages} |"
        )
    return lines
