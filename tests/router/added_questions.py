"""Specialties that small_questions.py lacks: 60 questions each, half of them French."""

from itertools import combinations

_WORDS = {
    "dentistry": ("tooth gums braces filling molar", "dent gencive appareil plombage molaire"),
    "otology": ("ear tinnitus hearing earwax deafness", "oreille acouphene ouie bouchon surdite"),
}
ADDED = tuple(_WORDS)
_FRAMES = (
    ("what can I do about my {}", "is {} worrying", "tell me about {} please"),
    ("que faire pour mon {}", "est-ce que {} est inquietant", "parlez moi de {} merci"),
)


def added_questions(label: str) -> list[str]:
    """Each pair of the label's words in each frame."""
    return [
        frame.format(" ".join(pair))
        for words, frames in zip(_WORDS[label], _FRAMES, strict=True)
        for pair in combinations(words.split(), 2)
        for frame in frames
    ]
