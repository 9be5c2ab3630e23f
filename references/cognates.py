"""French and English medical words of one Greek or Latin origin, found by what they share.

"Hémoptysie" and "hemoptysis", "arthrite" and "arthritis", "leucémie" and "leukemia" differ in
accents, in a few letters, and in their endings. The skeleton of a word drops these differences, so
a French word is looked up among the English words of the shelf without a dictionary.
"""

import re

from references.words import fold

MIN_LETTERS = 4  # of a skeleton: shorter ones are shared by chance
_LETTERS = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        ("ae|oe", "e"),
        ("ph", "f"),
        ("[ckq]h?u?(?=[eiy])|sch", "c"),
        ("ch|qu|k|q", "c"),
        ("rrh|rh", "r"),
        ("onct", "unct"),
        ("th", "t"),
        ("y", "i"),
        ("z", "s"),
        (r"(.)\1", r"\1"),
    )
]
# French or English ending -> what both become; the first that fits is taken, once.
_ENDINGS = [
    (re.compile(f"(?:{pattern})$"), plain)
    for pattern, plain in (
        ("iennes?|iens?|eous", ""),
        ("icale?s?|icaux|ices?|ics?", "ic"),
        ("euses?|eux|ouses?|ous", "ou"),
        ("elles?|els?|ales?|als?|aux", "al"),
        ("aires?|aris?|ars?", "ar"),
        ("ifs?|ives?", "iv"),
        ("eurs?|ours?|ors?", "or"),
        ("oires?|oris?", "oir"),
        ("isi[es]|ises?", "is"),
        ("ees?|es?|eds?", ""),
        ("ies?|ias?|is|i", ""),
        ("as?|us|ums?|os?", ""),
        ("s", ""),
    )
]


def skeleton(word: str) -> str:
    """Return what a word and its cognates share. Returns "" for a word too short to tell."""
    bones = fold(word)
    for pattern, plain in _LETTERS:
        bones = pattern.sub(plain, bones)
    for pattern, plain in _ENDINGS:
        if pattern.search(bones):
            bones = pattern.sub(plain, bones)
            break
    bones = re.sub(r"[aeiou]$", "", bones)
    return bones if len(bones) >= MIN_LETTERS and bones.isalpha() else ""
