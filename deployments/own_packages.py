"""Import the packages beside this one, whatever else of their names Python would find first."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def import_own(*names: str) -> list[ModuleType]:
    """Import packages of this project from its folder, and return them.

    `python -m` and `serve run` put the working folder first on Python's path, so that a file
    `router.py` or a folder `adapters/` there would be taken for ours.

    Raises:
        ImportError: another module of that name is imported already; names its file.
    """
    for name in names:
        file = ROOT / name / "__init__.py"
        found = sys.modules.get(name)
        if found is None:
            _import_from(file, name)
        elif Path(getattr(found, "__file__", None) or ".").resolve() != file:
            where = getattr(found, "__file__", None) or list(getattr(found, "__path__", ["?"]))
            raise ImportError(
                f"'{name}' is a package of this project ({file.parent}), and this program has "
                f"imported another one of that name: {where}. Rename that one, or import "
                "`deployments` before it",
                name=name,
            )
    return [sys.modules[name] for name in names]


def _import_from(file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)]
    )
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
