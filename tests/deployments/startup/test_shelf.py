"""The shelf that answers are to stand on: what the preflight says, and that the launcher builds."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import launch, preflight
from deployments.live_settings import RouterLiveSettings
from deployments.startup.shelf import uses_shelf
from references import default_shelf
from references.default_shelf import default_path, open_shelf
from tests.references.passages import ALL, hpo_folder
from tests.test_layout import ROOT as PROJECT_ROOT

CONFIG = """
http_options: {host: 127.0.0.1}
applications:
  - name: clinic
    import_path: deployments.app:build
    args: {references: {path: PATH}}
    deployments:
      - {name: Router, user_config: {references: {mode: MODE, named: NAMED}}}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(default_shelf.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(preflight, "check_machine", lambda *address: [])


def written(folder: Path, mode: str, path: str = "null", named: str = "null") -> Path:
    file = folder / "config.yaml"
    text = CONFIG.replace("MODE", mode).replace("PATH", path).replace("NAMED", named)
    file.write_text(text)
    return file


def content(folder: Path, mode: str, path: str = "null") -> dict[str, Any]:
    return dict(yaml.safe_load(written(folder, mode, path).read_text()))


@pytest.mark.parametrize(
    ("mode", "is_used"), [("off", False), ("'off'", False), ("quote", True), ("cite", True)]
)
def test_the_mode_off_needs_no_quotes(
    tmp_path: Path, mode: str, is_used: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight.main([str(written(tmp_path, mode))]) == 0
    assert ("shelf will be built" in capsys.readouterr().out) == is_used
    assert uses_shelf(content(tmp_path, mode)) == is_used


@pytest.mark.parametrize("mode", ["on", "true", "quotes", "1"])
def test_another_mode_is_refused(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight.main([str(written(tmp_path, mode))]) == 2
    assert "references.mode" in capsys.readouterr().err


def test_a_shelf_that_is_named_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.db"
    config = written(tmp_path, "cite", str(path))
    assert preflight.main([str(config)]) == 2
    message = capsys.readouterr().err
    assert f"args.references.path: there is no shelf at {path}" in message
    assert "python -m references" in message
    path.write_bytes(b"no shelf" * 200)
    assert preflight.main([str(config)]) == 2
    path.unlink()
    open_shelf(path).add(ALL)
    capsys.readouterr()
    assert preflight.main([str(config)]) == 0
    assert "5 passages on the reference shelf" in capsys.readouterr().out
    assert launch._build_shelf(content(tmp_path, "cite", str(path)))
    assert not default_path().exists()


def test_the_launcher_builds_the_default_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch._build_shelf(content(tmp_path, "off"))
    assert not default_path().exists()
    monkeypatch.setattr(default_shelf.hpo, "installed_files", lambda: tmp_path / "hpo")
    assert not launch._build_shelf(content(tmp_path, "quote"))
    assert "launch: the reference shelf:" in capsys.readouterr().err
    hpo_folder(tmp_path / "hpo")
    assert launch._build_shelf(content(tmp_path, "quote"))
    assert open_shelf().search("What is brittle hair?")
    assert "building the reference shelf" in capsys.readouterr().err
    assert preflight.main([str(written(tmp_path, "quote"))]) == 0
    assert "passages on the reference shelf" in capsys.readouterr().out


def test_a_server_is_a_note_when_it_is_away_and_a_problem_without_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    config = written(tmp_path, "cite")
    url = "postgresql://clinic:secret@127.0.0.1:9/passages"  # nobody listens there
    config.write_text(config.read_text().replace("{path: null}", f"{{url: '{url}'}}"))
    assert preflight.main([str(config)]) == 0
    said = capsys.readouterr()
    assert "args.references.url: the shelf at postgresql://127.0.0.1:9/passages" in said.out
    assert "answers go on without it" in said.out
    assert "secret" not in said.out + said.err
    assert launch._build_shelf(yaml.safe_load(config.read_text()))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert preflight.main([str(config)]) == 2
    assert "pip install 'polyclinic[postgres]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("{url: 'mysql://db/x'}", "references.url"),
        ("{url: postgresql}", "references.url"),
        ("{url: 'postgresql://db/x', path: a.db}", "path and url are both given"),
        ("{server: x}", "references.server"),
    ],
)
def test_another_place_is_refused(
    tmp_path: Path, given: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, "cite")
    config.write_text(config.read_text().replace("{path: null}", given))
    assert preflight.main([str(config)]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "named", "is_used"),
    [("off", "null", False), ("off", "off", False), ("off", "cite", True), ("quote", "off", True)],
)
def test_who_is_named_may_need_the_shelf(
    tmp_path: Path, mode: str, named: str, is_used: bool
) -> None:
    config = yaml.safe_load(written(tmp_path, mode, named=named).read_text())
    assert uses_shelf(config) == is_used


def test_as_shipped_passages_are_quoted_and_whoever_is_named_is_heard() -> None:
    shipped = yaml.safe_load((PROJECT_ROOT / "serve_config.yaml").read_text())
    assert uses_shelf(shipped)
    (router,) = (d for d in shipped["applications"][0]["deployments"] if d["name"] == "Router")
    found = RouterLiveSettings.model_validate(router["user_config"]).references
    assert (found.mode, found.named, found.max_unsupported) == ("quote", "cite", 0.2)
