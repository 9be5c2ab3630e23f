"""Split into training and validation by disease: no disease is in both, in any file."""

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.datasets.record import Record, normal_name, plain_words

RARE_CUI = 5  # a UMLS concept of more diseases than this names a class of them, not one disease
RARE_WORD = 5  # diseases that share a word with at most this many others are close
# Words that medical questions share whatever they are about, English and French.
_OF_ANY_QUESTION = frozenset(
    (
        "what which who whom whose when where why how is are was were be been do does did can "
        "could should would will may might must has have had the a an of for in on at to from "
        "with by about between and or not no any some there it its this that these those i you my "
        "your me we our people person patient patients someone one if as than more most tell "
        "explain give describe define mean means meaning called known information research say "
        "outlook outcome long take last common cause causes caused causing symptom symptoms sign "
        "signs treatment treatments treat treated treating therapy therapies cure cured diagnosis "
        "diagnose diagnosed diagnosing test tests prevent prevented prevention risk factor "
        "factors get gets getting inherit inherited genetic gene genes change changes related "
        "affect affects affected happen happens need know see doctor complication complications "
        "help manage managed living prognosis quel quelle quels quelles que quoi qui quand ou "
        "pourquoi comment est sont etre peut faire fait le la les l un une des du de d en dans au "
        "aux pour par avec sur et ce cette ces mon ma mes votre vos il elle ils elles se s ai "
        "avoir symptome symptomes signe signes traitement traitements traiter soigner guerir "
        "diagnostic diagnostiquer prevenir risque risques maladie"
    ).split()
)


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How large validation becomes, in pairs of each specialty.

    A source's own validation pairs stay. More diseases move there until there are
    `min_validation` pairs, but never more than `max_share` of the specialty; where the source
    has no split at all, until `share` of the pairs.
    """

    min_validation: int = 30
    max_share: float = 1 / 3
    share: float = 0.1
    seed: int = 0

    def target(self, num_pairs: int, has_split: bool) -> int:
        wanted = self.min_validation if has_split else round(self.share * num_pairs)
        return min(max(self.min_validation, wanted), int(num_pairs * self.max_share))


@dataclass(frozen=True, slots=True)
class Split:
    records: list[Record]  # in the order given, each with its split
    num_groups: int
    moved: dict[str, int]  # specialty -> pairs that went from training to validation
    reunited: int  # records moved because their disease was in both splits of the source


def split_by_disease(records: Sequence[Record], rule: SplitRule) -> Split:
    """Give each record a split; the order of the records makes no difference."""
    groups = disease_groups(records)
    members: dict[str, list[Record]] = defaultdict(list)
    for record, group in zip(records, groups, strict=True):
        members[group].append(record)
    split_of = {
        group: "validation" if any(r.split == "validation" for r in inside) else "train"
        for group, inside in members.items()
    }
    reunited = sum(
        split_of[group] == "validation" and record.split == "train"
        for record, group in zip(records, groups, strict=True)
    )
    moved = {
        specialty: _fill(specialty, members, split_of, rule)
        for specialty in sorted({r.specialty for r in records if r.is_pair})
    }
    done = [
        dataclasses.replace(record, split=split_of[group])
        for record, group in zip(records, groups, strict=True)
    ]
    return Split(done, len(members), moved, reunited)


def disease_groups(records: Sequence[Record]) -> list[str]:
    """Return the group of each record.

    Records are in one group for the same normal name, a shared synonym, a shared rare UMLS CUI, or
    the same question in words. A pair without focus counts as named by its question's topic.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    num_diseases = Counter(
        cui
        for _, cuis in {(normal_name(r.focus), r.cuis) for r in records if r.focus}
        for cui in cuis
    )
    first = []
    for record in records:
        keys = _keys(record, num_diseases)
        first.append(keys[0])
        for other in keys[1:]:
            low, high = sorted((root(keys[0]), root(other)))
            parent[high] = low
    return [root(key) for key in first]


def _keys(record: Record, num_diseases: Counter[str]) -> list[str]:
    question = "question " + " ".join(plain_words(record.question))
    if not record.focus:
        topic = topic_of(record.question) if record.is_pair else ""
        return [f"name {topic}", question] if topic else [question]
    names = [record.focus, *record.synonyms]
    cuis = [cui for cui in record.cuis if num_diseases[cui] <= RARE_CUI]
    return [
        *("name " + normal_name(name) for name in names),
        *("cui " + cui for cui in cuis),
        question,
    ]


def topic_of(question: str) -> str:
    """Return the normal name of what the question is about; "" when no word is left.

    "What is eczema?" and "How is eczema treated?" have the same topic. Synonyms do not.
    """
    words = [word for word in plain_words(question) if word not in _OF_ANY_QUESTION]
    return normal_name(" ".join(words)) if words else ""


def _fill(
    specialty: str, members: dict[str, list[Record]], split_of: dict[str, str], rule: SplitRule
) -> int:
    """Move diseases of one specialty to validation; return how many of its pairs moved."""
    size = {
        group: count
        for group, inside in members.items()
        if (count := sum(r.is_pair and r.specialty == specialty for r in inside))
    }
    has_split = any(r.split for g in size for r in members[g] if r.specialty == specialty)
    held_out = sum(count for group, count in size.items() if split_of[group] == "validation")
    target = rule.target(sum(size.values()), has_split)
    candidates = _order([g for g in size if split_of[g] == "train"], specialty, members, rule.seed)
    moved = 0
    for group in candidates:
        missing = target - held_out - moved
        if missing <= 0:
            break
        if size[group] <= max(missing, rule.min_validation // 3):  # a big one would overshoot
            split_of[group] = "validation"
            moved += size[group]
    return moved


def _order(
    groups: Iterable[str], specialty: str, members: dict[str, list[Record]], seed: int
) -> list[str]:
    """Shuffle; diseases whose name shares a rare word with another's come last.

    Such names may be related in a way that the source does not say.
    """
    words = {
        group: {word for r in inside for word in normal_name(r.focus or r.question).split()}
        for group, inside in members.items()
    }
    spread = Counter(word for inside in words.values() for word in inside)
    mixed = sorted(groups)
    random.Random(f"{seed}/{specialty}").shuffle(mixed)
    return sorted(mixed, key=lambda g: any(1 < spread[w] <= RARE_WORD for w in words[g]))
