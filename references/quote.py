"""Passages as an answer without a model: word for word, attributed, in one short frame."""

from collections.abc import Iterable, Sequence

from references.passage import Passage

_FRAMES = {
    "en": ("What the references say:", "No source was found for this question."),
    "fr": ("Ce que disent les références :", "Aucune source n'a été trouvée pour cette question."),
}
_DIAGNOSIS = {
    "en": "Diseases whose recorded signs match, not a diagnosis:",
    "fr": "Maladies dont les signes enregistrés correspondent ; ce n'est pas un diagnostic :",
}
_EXCERPT_CHARS = 600


def quote(passages: Sequence[Passage], language: str = "en") -> str:
    """Return passages as numbered quotations with their sources.

    Without passages, it says that there is no source.

    Args:
        language: of the frame, en or fr; the passages stay in their own.
    """
    heading, nothing = _FRAMES[language]
    if not passages:
        return nothing
    quoted = [
        f"[{number}] {passage.title}: \u201c{excerpt(passage.text)}\u201d ({attribution(passage)})"
        for number, passage in enumerate(passages, 1)
    ]
    return "\n\n".join([heading, *quoted])


def quote_diseases(
    passages: Sequence[Passage], language: str = "en", signs: Sequence[Iterable[str]] = ()
) -> str:
    """Return diseases found by their signs as a numbered list that says it is no diagnosis.

    Args:
        signs: of each disease, those that matched.
    """
    listed = []
    for number, passage in enumerate(passages, 1):
        matched = "; ".join(dict.fromkeys(signs[number - 1])) if signs else ""
        name = f"{passage.title}: {matched}" if matched else passage.title
        listed.append(f"[{number}] {name} ({attribution(passage)})")
    return "\n".join([_DIAGNOSIS[language], *listed])


def excerpt(text: str, limit: int = _EXCERPT_CHARS) -> str:
    """Return the text, or its beginning to the last word within the limit and an ellipsis."""
    if len(text) <= limit:
        return text
    return text[: text.rfind(" ", 0, limit) if " " in text[:limit] else limit] + " \u2026"


def attribution(passage: Passage) -> str:
    """Return source, identifiers and address of a passage, in one line."""
    known = ", ".join(passage.identifiers[:4])
    return "; ".join(part for part in (passage.source, known, passage.url) if part)
