"""The Dockerfile: what it copies is there, it runs as nobody special, and it holds no secret."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from deployments.preflight import check_file
from deployments.settings import parse_settings
from deployments.startup.config_file import application_of, read_config
from tests.deploy.manifests import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
CONFIG = DEPLOY / "docker" / "serve_config.yaml"
TARGETS = ("cpu", "cuda")


def instructions() -> list[tuple[str, str]]:
    parser = DockerfileParser(fileobj=DOCKERFILE.open("rb"))
    return [
        (i["instruction"], i["value"]) for i in parser.structure if i["instruction"] != "COMMENT"
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the name of each stage -> its instructions, with those of the stage it builds on."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, value in instructions():
        if instruction == "FROM":
            base, _, name = re.split(r"\s+", value)
            found[name] = list(found.get(base, []))
        if name:
            found[name].append((instruction, value))
    return found


def copied() -> set[str]:
    """Return every path of the repository that an instruction copies."""
    values = [v for i, v in instructions() if i in ("COPY", "ADD") and "--from" not in v]
    return {source for value in values for source in value.split()[:-1]}


def ignored(path: str) -> bool:
    """Return whether .dockerignore keeps the path from the builder, as Docker reads it."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().split("\n") if r and r[0] != "#"]
    is_ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)][:-1]
        names = [Path(path).name] if rule.startswith("**/") else parents
        if any(fnmatch(name, pattern) for name in names):
            is_ignored = not rule.startswith("!")
    return is_ignored


def test_what_is_copied_is_there_and_not_ignored() -> None:
    assert {"deployments", "pyproject.toml"} <= copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "docs/usage.md", "tests/conftest.py", "keys.json"]
    + ["notes.local.md", "deployments/notes.local.md", "adapters/__pycache__", ".env"],
)
def test_nothing_else_goes_to_the_builder(path: str) -> None:
    assert ignored(path)


def test_it_holds_what_the_service_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {n.rstrip("*") for n in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages - {"scripts"} <= copied()  # scripts train and measure; none is served


def test_every_image_is_pinned_by_its_digest() -> None:
    arguments = dict(v.split("=", 1) for i, v in instructions() if i == "ARG" and "=" in v)
    bases = [value.split()[0] for i, value in instructions() if i == "FROM"]
    ours = set(stages())
    for base in bases:
        if base not in ours:
            image = arguments[base.strip("${}")]
            assert re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_an_unprivileged_user_on_a_read_only_root(target: str) -> None:
    stage = stages()[target]
    users = [value for instruction, value in stage if instruction == "USER"]
    assert users[-1] == "10001:10001"
    volumes = next(value for instruction, value in stage if instruction == "VOLUME")
    writable = re.findall(r'"([^"]+)"', volumes)
    settings = " ".join(value for instruction, value in stage if instruction == "ENV")
    paths = re.findall(r"(?:HOME|_DIR)=(/\S+)", settings)
    assert len(paths) == 6
    assert all(any(Path(p).is_relative_to(v) for v in writable) for p in paths)


@pytest.mark.parametrize("target", TARGETS)
def test_its_health_is_the_readiness_of_the_clinic(target: str) -> None:
    values = dict(stages()[target])
    check = values["HEALTHCHECK"]
    (code,) = re.findall(r'"(import [^"]+)"', check)
    compile(code, "HEALTHCHECK", "exec")
    assert "http://127.0.0.1:8000/readyz" in code
    assert values["STOPSIGNAL"] == "SIGTERM"
    assert '"deployments.launch", "/app/serve_config.yaml"' in values["CMD"]


def test_no_secret_is_baked_in() -> None:
    names = [v for i, v in instructions() if i in ("ARG", "ENV")]
    assert not re.search(r"(?i)token|secret|password|api_?key", " ".join(names))


def test_its_configuration_is_accepted() -> None:
    assert check_file(CONFIG) == []
    settings = parse_settings(application_of(read_config(CONFIG)[0])["args"])
    assert settings.auth.mode == "keys"  # it listens on every interface of its container
    assert Path(str(settings.state_dir)).is_relative_to("/var/lib/polyclinic")
