"""The import rules, free imports, and names of files."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters", "deployments", "references", "router", "scripts")
# A library and what it may not import. `deployments.engine` is a library inside deployments/.
FORBIDDEN = {
    "router": ("ray", "starlette", "adapters", "deployments", "references", "scripts")
    + ("torch", "transformers"),
    "adapters": ("ray", "starlette", "router", "deployments", "scripts", "references"),
    "references": ("ray", "starlette", "adapters", "deployments", "router", "scripts")
    + ("torch", "transformers"),
    "deployments/engine": ("ray", "starlette", "router", "adapters", "references", "scripts"),
}
# Loaded only where settings name a Hugging Face encoder for the router.
EXCEPTIONS = {"router/transformers_encoder.py": ("torch", "transformers")}
SHARED_BY_SCRIPTS = ("arguments", "environment")
NO_RAY_NO_TORCH = ("keys", "messages", "settings")  # and the whole of deployments/api
# The no-op deployments that benchmarks compare with: no part of the product.
MAY_IMPORT_RAY = {"scripts/benchmarks/over_http/stand_in_model.py"}


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no source in {folder}"
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """Not to be changed: several tests look at it."""
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Every module that the file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def imported_modules(path: Path, *, nested: bool = True) -> set[str]:
    """The modules of ours that the file imports; `from package import module` counts as `module`.

    `nested=False`: without the imports inside functions, which run late.
    """
    tree = tree_of(path)
    nodes = list(ast.walk(tree)) if nested else _at_import(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_module = (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
                names.add(module if is_module else str(node.module))
    return names


def _at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    inside = [s for node in body if isinstance(node, ast.If) for s in (*node.body, *node.orelse)]
    return [*body, *inside]


def offends(module: str, forbidden: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in forbidden)


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_arrows_point_from_shells_to_libraries(folder: str) -> None:
    forbidden = FORBIDDEN[folder]
    if folder == "deployments/engine":  # it may import itself
        allowed = "deployments.engine"
        forbidden = (*forbidden, "deployments")
    else:
        allowed = folder
    for path in sources(folder):
        free = (allowed, *EXCEPTIONS.get(str(path.relative_to(ROOT)), ()))
        bad = {m for m in imported(path) if offends(m, forbidden) and not offends(m, free)}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_only_deployments_imports_ray_or_starlette() -> None:
    for package in ("adapters", "references", "router", "scripts"):
        for path in sources(package):
            if str(path.relative_to(ROOT)) in MAY_IMPORT_RAY:
                continue
            bad = {m for m in imported(path) if offends(m, ("ray", "starlette"))}
            assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_the_http_side_needs_neither_ray_nor_torch() -> None:
    api = (module_of(path) for path in sources("deployments/api"))
    modules = ", ".join([*api, *(f"deployments.{name}" for name in NO_RAY_NO_TORCH)])
    code = f"import sys, {modules}; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "others"),
    [("model", ("ingress", "api")), ("ingress", ("model",)), ("api", ("ingress", "model"))],
)
def test_the_two_deployments_share_only_plain_data(package: str, others: tuple[str, ...]) -> None:
    forbidden = tuple(f"deployments.{other}" for other in others)
    for path in sources(f"deployments/{package}"):
        bad = {m for m in imported(path) if offends(m, forbidden)}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_libraries_of_scripts_import_no_command() -> None:
    commands = tuple(
        module_of(path)
        for path in sources("scripts")
        if path.parent == ROOT / "scripts" and path.stem not in ("__init__", *SHARED_BY_SCRIPTS)
    )
    for path in sources("scripts"):
        if path.parent != ROOT / "scripts":
            bad = imported_modules(path) & set(commands)
            assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_no_circle_of_files() -> None:
    """Imports at module level, by file: a file never needs itself, however long the way round."""
    arrows = {
        module_of(path): imported_modules(path, nested=False)
        for package in PACKAGES
        for path in sources(package)
    }
    arrows = {module: targets & set(arrows) - {module} for module, targets in arrows.items()}
    while arrows:
        leaves = {module for module, targets in arrows.items() if not targets}
        assert leaves, f"files import each other in a circle, among {sorted(arrows)}"
        arrows = {m: targets - leaves for m, targets in arrows.items() if m not in leaves}


def test_no_file_without_a_purpose_in_its_name() -> None:
    for package in PACKAGES:
        for path in sources(package):
            names = {path.stem, *(part.name for part in path.relative_to(ROOT).parents)}
            assert not names & {"utils", "common", "helpers", "misc"}, path


def test_importing_does_no_work() -> None:
    """Module level holds only imports, definitions, constants, docstrings and main guards."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
        ast.If,
    )
    for package in PACKAGES:
        for path in sources(package):
            for node in tree_of(path).body:
                is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                assert is_docstring or isinstance(node, allowed), f"{path}:{node.lineno}"


def test_every_test_file_has_tests() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        tests = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
        ]
        assert tests, f"{path.relative_to(ROOT)} has no test"
