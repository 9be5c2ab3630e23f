"""README.md says what is true: every setting is in its table with its default, files exist."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deployments.settings import ModelLiveSettings, RouterLiveSettings, Settings
from router.policy import Reason

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(
        re.findall(r"^\| `([\w.]+)` \| .+ \| `(.+)` \| \w+ \|$", README, re.MULTILINE)
    )
    expected = {
        **keys_of(Settings, "args."),
        **keys_of(RouterLiveSettings, "Router.user_config."),
        **keys_of(ModelLiveSettings, "Model.user_config."),
    }
    assert documented == {key: json.dumps(default) for key, default in expected.items()}


def test_every_reason_is_documented() -> None:
    for reason in Reason:
        assert f"| `{reason}` |" in README, reason


def test_it_holds_no_placeholder() -> None:
    assert not re.findall(r"\b(?:TODO|SETTINGS_TABLE|NUMBERS|REPLY|REPLY_COMMIT)\b", README)


def test_the_commands_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for module in re.findall(r"python -m ((?:scripts|deployments)[\w.]*\w)", README):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_changelog_names_the_version_in_progress() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog
