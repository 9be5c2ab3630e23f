"""The prepared data set's report: the manifest's figures for a reader, without any text of it."""

from collections.abc import Mapping
from typing import Any


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
            *_lengths(manifest["checks"]),
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


def _lengths(checks: Mapping[str, Any]) -> list[str]:
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
