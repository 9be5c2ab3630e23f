"""Write the list of modules in docs/architecture.md: each module's first sentence about itself.

    python -m scripts.pages.module_list

The list stands between the lines `<!-- modules -->` and `<!-- /modules -->`. A test compares it
with `module_list()`. The last line of stdout is one JSON object.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.arguments import CommandParser
from scripts.datasets.record import DataError
from scripts.pages.markdown import put_between

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("deployments", "adapters", "references", "router", "scripts")
BEGIN, END = "<!-- modules -->\n", "<!-- /modules -->\n"


def main(argv: Sequence[str] | None = None) -> int:
    return CommandParser("module_list", __doc__).run(argv, lambda: (DataError, OSError), _write)


def _write(args: argparse.Namespace, words: Sequence[str]) -> dict[str, str]:
    put_between(PAGE, "modules", module_list().rstrip("\n"))
    return {"out": str(PAGE)}


def module_list() -> str:
    """Return a heading for each folder that holds modules, and a line for each module."""
    parts = []
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            parts.append(_folder(folder))
    return "\n".join(parts)


def _folder(folder: Path) -> str:
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines = "".join(f"- `{path.name}`: {first_sentence(path)}\n" for path in modules)
    about = first_sentence(folder / "__init__.py")
    return f"### `{folder.relative_to(ROOT)}/`\n\n{about}\n\n{lines}"


def first_sentence(path: Path) -> str:
    """Return what the module's docstring says first, on one line.

    Raises:
        ValueError: the module has no docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)}: no docstring: say what the module does")
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph, maxsplit=1)[0].removesuffix(":")


if __name__ == "__main__":
    raise SystemExit(main())
