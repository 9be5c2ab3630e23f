"""What a question is about where its source does not say: the words that other questions lack."""

from functools import cache
from pathlib import Path

from scripts.datasets.record import normal_name, plain_words
from scripts.datasets.yaml_file import read_yaml

TOPICS = Path(__file__).with_suffix(".yaml")


@cache
def _of_any_question() -> frozenset[str]:
    return frozenset(read_yaml(TOPICS)["of_any_question"].split())


def topic_of(question: str) -> str:
    """Return the normal name of what the question is about; "" when no word is left.

    "What is eczema?" and "How is eczema treated?" have the same topic. Synonyms do not.
    """
    words = [word for word in plain_words(question) if word not in _of_any_question()]
    return normal_name(" ".join(words)) if words else ""
