"""Write docs/settings.md from the settings' own descriptions, bounds and defaults.

    python -m scripts.pages.settings_page

A test compares the page with `page()`. The last line of stdout is one JSON object.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deployments.live_settings import ModelLiveSettings, RouterLiveSettings
from deployments.settings import Settings
from scripts.arguments import CommandParser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("`args`: a change restarts the deployments", "args.", Settings),
    ("`user_config` of Router: live", "Router.user_config.", RouterLiveSettings),
    ("`user_config` of Model: live", "Model.user_config.", ModelLiveSettings),
)
WORDS = {"string": "text", "array": "list", "boolean": "`true`, `false`", "null": "`null`"}
COLUMNS = "| key | meaning | allowed | default |\n| --- | --- | --- | --- |\n"
HEAD = """# Settings

Written by `python -m scripts.pages.settings_page` from `deployments/settings.py`: do not edit it.

Everything is set in `serve_config.yaml`; [operating.md](operating.md#settings) says where each key
stands in it and how to check and apply a change.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return CommandParser("settings_page", __doc__).run(argv, tuple, _write)


def _write(args: argparse.Namespace, words: Sequence[str]) -> dict[str, str]:
    PAGE.write_text(page(), encoding="utf-8")
    return {"out": str(PAGE)}


def page() -> str:
    """Return the whole page: one table for each place in serve_config.yaml."""
    parts = [HEAD]
    for title, prefix, model in SECTIONS:
        lines = [f"| {' | '.join(row)} |\n" for row in rows(model, prefix)]
        parts.append(f"\n## {title}\n\n{COLUMNS}{''.join(lines)}")
    return "".join(parts)


def rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, meaning, allowed values and default of each setting, nested ones included."""
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from rows(type(default), f"{prefix}{name}.")
        else:
            meaning = (field.description or "").replace("|", r"\|")
            yield f"`{prefix}{name}`", meaning, _allowed(schema[name]), f"`{json.dumps(default)}`"


def _allowed(schema: Mapping[str, Any]) -> str:
    return " or ".join(_one(option) for option in schema.get("anyOf", [schema]))


def _one(schema: Mapping[str, Any]) -> str:
    """Return what one JSON Schema without alternatives allows, in words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] in WORDS:
        return WORDS[schema["type"]]
    above = "exclusiveMinimum" in schema
    least = f"above {schema['exclusiveMinimum']:,}" if above else f"{schema['minimum']:,}"
    return f"{least} to {schema['maximum']:,}"


if __name__ == "__main__":
    raise SystemExit(main())
