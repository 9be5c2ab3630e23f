"""README.md and docs/ say what is true: settings, commands, reasons, metrics, modules, figures."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from deployments.api.errors import STATUS
from deployments.api.protocol.ask import AskReply, AskRequest, RouteRequest
from deployments.live_settings import ModelLiveSettings, RouterLiveSettings
from deployments.settings import Settings
from router.policy import Reason
from scripts.pages.module_list import BEGIN, END, PACKAGES, module_list
from scripts.pages.settings_page import page

ROOT = Path(__file__).resolve().parent.parent
MAX_README_BYTES = 8_192
WRITTEN_BY_HAND = (
    *("README.md", "docs/usage.md", "docs/operating.md", "docs/benchmarks.md"),
    *("docs/architecture.md", "docs/decisions.md", "docs/adapters.md", "docs/engine.md"),
    "docs/evaluation.md",
)
PAGES = (*WRITTEN_BY_HAND, "docs/settings.md", "docs/router.md", "docs/specialists.md")
WITH_COMMANDS = ("README.md", "docs/usage.md", "docs/operating.md", "docs/benchmarks.md")
COMMAND = r"((?:scripts|deployments)\.[\w.]*\w|adapters)"
REQUESTS: dict[str, type[BaseModel]] = {"/ask": AskRequest, "/route": RouteRequest}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL)


def section(name: str, title: str) -> str:
    """What follows the heading `title`, up to the next heading of its level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text_of(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name}: no section '{title}'"
    return found.group(1)


def anchor_of(heading: str) -> str:
    """GitHub's: lower case, without punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links_of(name: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(name))


def keys_of(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """Dotted key -> default, for a settings model and those inside it."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= keys_of(type(default), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = default
    return found


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").encode()) <= MAX_README_BYTES


def test_the_readme_warns() -> None:
    assert "not medical advice" in text_of("README.md")


@pytest.mark.parametrize("name", PAGES)
def test_every_link_between_pages_resolves(name: str) -> None:
    for link in links_of(name):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{name}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    """Directly, or through the pages that it links to."""
    seen, new = set[Path](), {ROOT / "README.md"}
    while new:
        seen |= new
        found = {
            (page.parent / link.partition("#")[0]).resolve()
            for page in new
            for link in links_of(str(page.relative_to(ROOT)))
        }
        new = {path for path in found if path.suffix == ".md" and path.is_file()} - seen
    assert seen >= {ROOT / name for name in PAGES}


def test_the_settings_page_is_the_generated_one() -> None:
    assert text_of("docs/settings.md") == page(), "run `python -m scripts.pages.settings_page`"


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(
        re.findall(
            r"^\| `([\w.]+)` \| [^|]+ \| [^|]+ \| `(.+)` \|$",
            text_of("docs/settings.md"),
            re.MULTILINE,
        )
    )
    expected = {
        **keys_of(Settings, "args."),
        **keys_of(RouterLiveSettings, "Router.user_config."),
        **keys_of(ModelLiveSettings, "Model.user_config."),
    }
    assert documented == {key: json.dumps(default) for key, default in expected.items()}


def test_every_reason_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", section("docs/usage.md", "Reasons"), re.MULTILINE)
    assert set(documented) == {str(reason) for reason in Reason}


def test_every_field_of_ask_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", section("docs/usage.md", "Ask"), re.MULTILINE)
    assert documented == list(AskRequest.model_fields)


def test_every_metric_is_documented() -> None:
    documented = re.findall(r"^\| `(polyclinic_\w+)` \|", text_of("docs/operating.md"), re.M)
    exported = {
        name
        for path in (ROOT / "deployments").rglob("*.py")
        for name in re.findall(r'"(polyclinic_\w+)"', path.read_text(encoding="utf-8"))
    }
    assert set(documented) == exported


def test_every_code_that_a_client_sees_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", section("docs/usage.md", "Errors")))
    documented |= set(re.findall(r"`(\w+)`", section("docs/operating.md", "Adapters")))
    given = {
        code
        for path in (ROOT / "deployments" / "api").glob("*.py")
        for pair in re.findall(
            r'(?:ApiError|_error)\(\s*\d+,\s*"(\w+)"|code="(\w+)"', path.read_text(encoding="utf-8")
        )
        for code in pair
        if code
    }
    given |= {code for code, status in STATUS.items() if status != 500}
    never_read = {"client_left", "refused"}  # nobody is there; a base class
    assert given - documented == never_read


def test_the_readmes_reply_is_one_that_the_server_gives() -> None:
    reply = re.search(r"^```json\n(.*?)^```$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert reply
    shown = json.loads(reply.group(1))
    assert AskReply.model_validate(shown).model_dump(exclude_unset=True) == shown


def test_a_question_and_an_adapter_pass_few_files() -> None:
    for title, most_files, most_lines in (
        ("The life of a question", 60, 11_600),
        ("An adapter's way into service", 20, 4_150),
    ):
        found = re.findall(r"\]\(\.\./([\w/]+\.py)\)", section("docs/architecture.md", title))
        files = [text_of(name) for name in dict.fromkeys(found)]
        assert len(files) <= most_files, title
        assert sum(text.count("\n") for text in files) <= most_lines, title


def commands(name: str) -> Iterator[list[str]]:
    """The command lines of the page's bash blocks, as words."""
    for block in re.findall(r"^```bash\n(.*?)^```$", text_of(name), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("name", WITH_COMMANDS[:-1])
def test_every_request_in_a_command_is_accepted(name: str) -> None:
    requests = [words for words in commands(name) if words[0] == "curl"]
    assert requests or name == "docs/operating.md"
    for words in requests:
        url = next(word for word in words if word.startswith("localhost"))
        model = REQUESTS[url.removeprefix("localhost:8000")]
        model.model_validate_json(words[words.index("-d") + 1])


@pytest.mark.parametrize("name", [*WRITTEN_BY_HAND, "docs/settings.md", "CHANGELOG.md"])
def test_the_commands_are_there(name: str) -> None:
    text = text_of(name)
    for target in re.findall(r"(?:^|`)make (\S+?)[` ]", text, re.MULTILINE):
        assert f"\n{target}:" in text_of("Makefile"), target
    for module in re.findall(rf"python -m {COMMAND}", text):
        assert command_file(module).is_file(), module


@pytest.mark.parametrize("name", WRITTEN_BY_HAND)
def test_the_commands_have_the_options_that_they_are_given(name: str) -> None:
    given = re.findall(rf"python -m {COMMAND}([^`\n]*)", text_of(name))
    for module, arguments in given:
        files = [command_file(module)]
        if module == "scripts.benchmark":  # each sub-command's options are in its own file
            files += sorted((ROOT / "scripts" / "benchmarks").rglob("*.py"))
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        for option in re.findall(r"(?<!\S)\[?(--\w[\w-]*)", arguments.partition("#")[0]):
            named = f'"{option}"' in source or f'"{option[2:]}"' in source
            assert named, f"{module} has no {option}"


@pytest.mark.parametrize("name", PAGES)
def test_it_holds_no_placeholder(name: str) -> None:
    assert not re.findall(r"\b(?:TODO|SETTINGS_TABLE|NUMBERS|REPLY|REPLY_COMMIT)\b", text_of(name))


def command_file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_the_readmes_results_are_those_of_their_files() -> None:
    rows = [line for line in section("README.md", "Results").splitlines() if "[json](" in line]
    assert len(rows) >= 5
    for row in rows:
        _, _, figure, _, commit, link, _ = (cell.strip() for cell in row.split("|"))
        report = json.loads(text_of(link.removeprefix("[json](").removesuffix(")")))
        assert report["commit"] == commit
        measured = list(numbers_in(report))
        for shown in re.findall(r"\d[\d,.]*\d|\d", figure):
            decimals = len(shown.partition(".")[2])
            rounded = {round(factor * n, decimals) for n in measured for factor in (1, 100)}
            assert float(shown.replace(",", "")) in rounded, f"{shown} is not in {link}"


def test_the_architecture_has_a_line_for_each_module() -> None:
    listed = section("docs/architecture.md", "Modules").partition(BEGIN)[2].partition(END)[0]
    assert listed == module_list(), "run `python -m scripts.pages.module_list`"
    named = re.findall(r"^- `\w+\.py`: \S|^### `\S+/`$", listed, re.MULTILINE)
    there = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(named) == len(there)


def test_the_changelog_names_the_version_in_progress() -> None:
    assert "## Unreleased" in text_of("CHANGELOG.md")
