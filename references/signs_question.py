"""A question that lists signs and asks which disease has them: the diseases whose signs match."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from references.diagnosis import split_signs
from references.passage import Passage
from references.shelf import Shelf
from references.words import guess_language, plain, words

MIN_SIGNS = 2  # of one disease; a single sign is a question about that sign
MAX_SIGNS = 20
_DISEASE = r"(?:diseases?|disorders?|conditions?|syndromes?|illness(?:es)?|diagnos[ei]s)"
_MALADIE = r"(?:maladies?|affections?|syndromes?|troubles?|pathologies?|diagnostics?)"
# What asks for a disease, on folded text; a sign may follow it at once.
_ASKS = re.compile(
    rf"""\b(?:
      (?:what|which)\s+(?:\w+\s+){{0,2}}?{_DISEASE}
        (?:\s+(?:has|have|had|with|that|which|cause[sd]?|characteri[sz]ed|associated|could|can|may|might|would|will|is|are|am|do|does|did
          |be|it|this|that|these|those|he|she|they|we|you|i|presents?|shows?|includes?|matche?s?
          |fits?|explains?|combines?|show|giv(?:e|es|ing)|suggested|indicated|by|in|all|the|my|such
          |following|signs?|symptoms?|like|as|people|patients?|someone|having))*
    | is\s+there\s+(?:a|any|some)\s+(?:\w+\s+)?{_DISEASE}(?:\s+(?:with|that|has|have|causes?))*
    | (?:diagnosis|diagnostic)(?=\s*\?)
    | what\s+(?:could|might|can|may|would)\s+(?:it|this|that|i|he|she|they|we|my\s+\w+)
        \s+(?:be|have)
    | what\s+(?:do|does|did)\s+(?:i|he|she|they|we|it|my\s+\w+)\s+have
    | what(?:\s+is|'?s)\s+(?:wrong|the\s+diagnosis)(?:\s+with\s+(?:me|him|her|them|my\s+\w+))?
    | quel(?:le)?s?\s+(?:(?:est|sont|serait|peut|peuvent|pourrait|etre)\s+)*
        (?:(?:la|le|les|l'|cette|ce|ma|sa)\s*)?{_MALADIE}
        (?:\s+(?:qui|a|ont|ai|avec|donne|donnent|provoque|provoquent|cause|causent|presente|presentent|associe
          |associent|comporte|comportent
          |peut|peuvent|pourrait|est|sont|etre|c'est|ca|cela|j'ai|il|elle|les|le|la|l'|ces|des|de
          |suivants?|signes?|symptomes?))*
    | (?:qu'est[\s-]ce\s+que|qu'|de\s+quoi)\s*(?:j'ai|ai-je|il\s+a|elle\s+a|il\s+souffre
        |elle\s+souffre|je\s+souffre|souffre|peut-il\s+s'agir|s'agit-il)
    | c'est\s+quoi\s+(?:cette|la|comme)\s+maladie
    )\b""",
    re.VERBOSE,
)
# Such a question is about diseases by name, or about what to do.
_OTHER_SENSE = frozenset(
    """difference differences compare compared versus vs treat treats treated treatment treatments
    cure cures cured medicine medicines drug drugs medication medications dose vaccine prevent
    prevented prevention traiter traite traitement traitements soigner medicament medicaments
    vaccin prevenir guerir comparer more most worse""".split()
)
# Who has the signs: it says nothing about them.
_BEARER = re.compile(
    r"""^(?:(?:and|et|or|if|when|si|quand|that|who|qui|also|aussi)\s+)*
    (?:(?:i|we|he|she|they|it|you|there|someone|somebody|patients?|people|il|elle|on|nous|ils|elles|je
       |an?\s+(?:\w+\s+)?(?:patient|person|child|baby|infant|man|woman|boy|girl)
       |(?:my|our|the|his|her|this)\s+(?:\w+\s+)?(?:child|son|daughter|baby|husband|wife|father
         |mother|patient|brother|sister|friend|partner|boy|girl|kid)
       |(?:mon|ma|notre)\s+\w+|(?:une?|le|la)\s+(?:patiente?|enfant|bebe|homme|femme))(?:\s+|$|(?='))
      |j'|l'enfant\s+)?
    (?:(?:has|have|had|having|'ve|with|is|are|am|suffers?|suffering|from|shows?|presents?|developed
      |gets?|got|been|be|also|experienc(?:e|es|ing)|characteri[sz]ed|by|associated|ai|a|as|ont|avons
      |souffre|presente|avec|de|du|des|une?|les?|la|the|an?|these|those|signs?|symptoms?|of|such
      |signes?|symptomes?)(?:\s+|$)|d'|l')*""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class MatchedDisease:
    """A disease's passage; sign as given -> title of the recorded sign that it was found by."""

    passage: Passage
    signs: Mapping[str, str]


def asked_signs(question: str) -> list[str]:
    """Return the signs that a question lists, if it asks which disease has them; else [].

    What is negated is left out. It is not looked up whether a part is a sign.
    """
    question = question.replace("\u2019", "'")
    asks = list(_ASKS.finditer(plain(question)))
    if not asks or _OTHER_SENSE & set(words(question)):
        return []
    starts, ends = [0, *(found.end() for found in asks)], [found.start() for found in asks]
    rest = "\n".join(question[a:b] for a, b in zip(starts, [*ends, None], strict=True))
    signs = (_without_bearer(part).strip(" '-") for part in split_signs(rest))
    return list(dict.fromkeys(sign for sign in signs if len(sign) > 2))[:MAX_SIGNS]


def _without_bearer(part: str) -> str:
    found = _BEARER.match(plain(part))
    return part[found.end() :] if found else part


def diseases_asked_for(shelf: Shelf, question: str, *, limit: int) -> list[MatchedDisease]:
    """Return the diseases that match at least MIN_SIGNS signs of such a question, the best first.

    Returns [] where the question is another one, or the shelf has no signs of diseases.

    Raises:
        ReferencesError: there is no shelf, or its file is damaged.
    """
    signs = asked_signs(question)
    if len(signs) < MIN_SIGNS or not shelf.has_signs:
        return []
    language = guess_language(question)
    found = shelf.diagnose(signs, language=language, limit=limit)
    matches = [match for match in found if len(match.signs) >= MIN_SIGNS]
    there = shelf.get(match.disease for match in matches)
    return [MatchedDisease(there[m.disease], m.signs) for m in matches if m.disease in there]
