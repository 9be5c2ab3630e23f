"""Both languages say everything, and the page says nothing that the catalogues do not have."""

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from deployments.api.grounding import MATCHING_SIGNS, NO_SOURCE, UNGROUNDED
from deployments.api.pages import WEB_DIR
from deployments.engine.request import FinishReason
from router.policy import LANGUAGE_NOT_SUPPORTED, Reason

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGES = ("en", "fr")
# Families of keys of which the page makes the last part from what the server sent.
FAMILIES = (
    "col error example finish language notice operator problem reason specialty state tier time "
    "timing duty"
).split()


def catalogue(language: str) -> dict[str, str]:
    source = (WEB_DIR / f"{language}.js").read_text(encoding="utf-8")
    words: dict[str, str] = json.loads(source.split("export default ", 1)[1].rstrip().rstrip(";"))
    return words


def scripts() -> str:
    files = [path for path in sorted(WEB_DIR.glob("*.js")) if path.stem not in LANGUAGES]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


class Markup(HTMLParser):
    """The translated parts of index.html: key -> the English text that stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._key: str | None = None
        self.feed((WEB_DIR / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._key = given.get("data-i18n")
        label = given.get("data-i18n-label")
        if label:
            self.texts[label] = given.get("aria-label") or ""

    def handle_data(self, data: str) -> None:
        if self._key:
            self.texts[self._key] = data
            self._key = None


def test_both_catalogues_have_the_same_keys() -> None:
    english, french = (catalogue(language) for language in LANGUAGES)
    assert english.keys() == french.keys()
    assert all(text.strip() for text in (*english.values(), *french.values()))


def test_both_have_the_same_places_to_fill() -> None:
    english, french = (catalogue(language) for language in LANGUAGES)
    for key, text in english.items():
        places = [sorted(re.findall(r"\{\w+\}", words)) for words in (text, french[key])]
        assert places[0] == places[1], key


def test_french_is_not_english_left_as_it_was() -> None:
    english, french = (catalogue(language) for language in LANGUAGES)
    same = {key for key, text in english.items() if text == french[key] and len(text.split()) > 2}
    assert not same


def test_index_html_stands_in_english() -> None:
    english = catalogue("en")
    markup = Markup()
    assert len(markup.texts) > 30
    assert markup.texts == {key: english[key] for key in markup.texts}


def test_every_key_that_a_script_names_exists() -> None:
    english = catalogue("en")
    named = set(
        re.findall(
            r'\b(?:t|section|table|listed|action)\(\s*"([a-z_.0-9]+\.[a-z_0-9]+)"', scripts()
        )
    )
    assert len(named) > 40
    assert named <= english.keys(), named - english.keys()


def test_no_key_is_left_over() -> None:
    sources = scripts()
    used = {key for key in catalogue("en") if f'"{key}"' in sources} | Markup().texts.keys()
    left = {
        key
        for key in catalogue("en").keys() - used
        if not (key.split(".")[0] in FAMILIES and f"`{key.split('.')[0]}." in sources)
        and not re.search(rf'"{re.escape(key.split(".")[-1])}"', sources)
    }
    assert not left


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_the_server_may_say_has_words(language: str) -> None:
    words = catalogue(language)
    for reason in Reason:
        assert f"reason.{reason}" in words
    for finish in FinishReason:
        assert f"finish.{finish}" in words
    for notice in (LANGUAGE_NOT_SUPPORTED, NO_SOURCE, UNGROUNDED, MATCHING_SIGNS):
        assert f"notice.{notice}" in words
    for code in codes_of_a_question():
        assert f"error.{code}" in words, code


def codes_of_a_question() -> set[str]:
    """Error codes that a question can meet: the engine's, and those of the checks on a text."""
    found = set()
    engine = ast.parse((ROOT / "deployments/engine/errors.py").read_text(encoding="utf-8"))
    for node in ast.walk(engine):
        if isinstance(node, ast.ClassDef):
            found |= {
                item.value.value
                for item in node.body
                if isinstance(item, ast.Assign)
                and isinstance(item.targets[0], ast.Name)
                and item.targets[0].id == "code"
                and isinstance(item.value, ast.Constant)
                and isinstance(item.value.value, str)
            }
    checks = (ROOT / "deployments/api/request_body.py").read_text(encoding="utf-8")
    found |= set(re.findall(r'code="(\w+)"', checks)) - {"too_many"}  # POST /route
    found -= {"engine_error", "refused"}  # the tree's abstract classes
    # Raised where an adapter is loaded or a decoder is built, so before there is a question:
    found -= {"adapter_not_supported", "adapter_has_no_effect", "adapter_bank_refused"}
    found -= {"fast_decoder_impossible"}
    assert len(found) > 8
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_specialties_are_named_as_the_router_names_them(language: str) -> None:
    given = yaml.safe_load((ROOT / "router/specialties.yaml").read_text(encoding="utf-8"))
    words = catalogue(language)
    for specialty in given["specialties"]:
        assert words[f"specialty.{specialty['name']}"] == specialty[language]
