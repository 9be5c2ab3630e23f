"""Tell English from French by function words."""

from collections import Counter

from scripts.datasets.record import plain_words

# Words that only one of the two languages has, often.
_MARKERS = {
    "en": frozenset("the is are what how and of does do for have with my can there".split()),
    "fr": frozenset("le la les est sont une des quels quelle comment pour je mon ma avec".split()),
}


def language(text: str) -> str:
    """Return "en" or "fr"; "und" (ISO 639-2, undetermined) when neither leads."""
    counts = Counter(plain_words(text))
    en, fr = (sum(counts[word] for word in _MARKERS[code]) for code in ("en", "fr"))
    return "und" if en == fr else ("en" if en > fr else "fr")
