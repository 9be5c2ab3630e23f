"""A stroke that was named counts as one that is going on when speech or a side fails now."""

import pytest

from router.urgency.red_flags import load_red_flags


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("fr", "Mon pere a fait un AVC, il ne parle plus"),
        ("fr", "Ma mère a eu un AVC ce matin et ne parle plus du tout"),
        ("en", "My father had a stroke, he can't speak"),
    ],
)
def test_it_is_urgent(language: str, question: str) -> None:
    assert load_red_flags().find([question], language).flags == ("stroke",)


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("fr", "Mon père a fait un AVC en 2010"),
        ("fr", "Depuis son AVC il y a deux ans il parle mal"),
        ("fr", "Peut-on guérir la parole après un AVC ?"),
        ("en", "Can speech come back after a stroke?"),
        ("en", "What are the signs of a stroke?"),
    ],
)
def test_it_is_history_or_a_question(language: str, question: str) -> None:
    assert load_red_flags().find([question], language).flags == ()
