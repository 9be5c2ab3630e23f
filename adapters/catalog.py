"""The catalogue: which base models we know how to prompt, and which adapters are in service.

`adapters/catalog.yaml` in the repository is read-only seed data. Nothing here imports torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from adapters.prompting import PromptFormat

CATALOG_FILE = "catalog.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED_NAMES = ("auto", "base")  # values of OpenAI's `model` with a meaning of their own
DEFAULT_SYSTEM_LINE = "You are a medical assistant. Answer the question clearly and briefly."


class CatalogError(ValueError):
    """The catalogue was refused. `problems` holds one line for each thing that is wrong."""

    def __init__(self, file: Path, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{len(problems)} {noun} in {file}:\n{lines}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BaseModelEntry(_Strict):
    """How a base model is prompted, and what it writes."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    prompt_format: PromptFormat
    system_line: str = DEFAULT_SYSTEM_LINE
    languages: Annotated[list[str], Field(min_length=1, description="ISO 639-1, main one first")]


def checked_adapter_name(name: str) -> str:
    """`name`, or ValueError saying what a name may be."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "use 1 to 64 of a-z, 0-9, '_', '-', starting with a letter or digit as adapter name"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"the adapter name '{name}' is reserved: choose another")
    return name


def _path_below(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError("give a folder below the catalogue's, without a leading '/' or '..'")
    return path


class AdapterEntry(_Strict):
    """One adapter. `path` is a folder below the catalogue's own."""

    name: Annotated[str, AfterValidator(checked_adapter_name)]
    specialty: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
    base_model: Annotated[str, Field(min_length=1)]
    path: Annotated[str, AfterValidator(_path_below)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of the safetensors file")]
    version: Annotated[str, Field(min_length=1, max_length=64)]
    rank: Annotated[int, Field(ge=1, le=1024)]
    state: Literal["active", "disabled"] = "active"
    reason: Annotated[str, Field(description="why it is disabled")] = ""
    languages: Annotated[list[str], Field(min_length=1)] = ["en"]  # of the training data
    evaluation: dict[str, Any] = {}


class _File(_Strict):
    base_models: list[BaseModelEntry] = []
    adapters: list[AdapterEntry] = []


class Catalog:
    """A catalogue that was read and checked."""

    def __init__(
        self,
        directory: Path,
        base_models: Sequence[BaseModelEntry],
        adapters: Sequence[AdapterEntry],
    ) -> None:
        self.directory = directory
        self.base_models = tuple(base_models)
        self.adapters = tuple(adapters)

    def adapters_for(self, base_model: str) -> tuple[AdapterEntry, ...]:
        """The active adapters of this base, in the catalogue's order."""
        return tuple(a for a in self.adapters if self._why_not(a, base_model) is None)

    def skipped(self, base_model: str) -> dict[str, str]:
        """Name -> why an adapter of the catalogue is not served on this base."""
        reasons = {a.name: self._why_not(a, base_model) for a in self.adapters}
        return {name: why for name, why in reasons.items() if why is not None}

    def base_model(
        self, name: str, *, family: Literal["causal", "seq2seq"] = "causal"
    ) -> BaseModelEntry:
        """The entry of this name; for a base that is not listed, its family's defaults."""
        for entry in self.base_models:
            if entry.name == name:
                return entry
        prompt_format: PromptFormat = "chat" if family == "causal" else "plain"
        return BaseModelEntry(name=name, prompt_format=prompt_format, languages=["en"])

    def folder(self, entry: AdapterEntry) -> Path:
        return self.directory / entry.path

    @staticmethod
    def _why_not(entry: AdapterEntry, base_model: str) -> str | None:
        if entry.base_model != base_model:
            return f"trained on {entry.base_model}, and the base model is {base_model}"
        if entry.state == "active":
            return None
        return f"its state is {entry.state}" + (f": {entry.reason}" if entry.reason else "")


def load_catalog(directory: Path) -> Catalog:
    """Read and check `catalog.yaml` in `directory`.

    Raises:
        CatalogError: listing every problem: file missing, not YAML, unknown keys, bad or repeated
            names, two active adapters for one specialty, a path out of the catalogue's folder.
    """
    file = directory / CATALOG_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = "give args.adapters a folder that has one, or `git checkout -- adapters`"
        raise CatalogError(file, [f"the file is missing: {mend}"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(file, [f"cannot be read as YAML: {error}"]) from None
    try:
        parsed = _File.model_validate(content or {})
    except ValidationError as error:
        raise CatalogError(file, [_line(dict(item)) for item in error.errors()]) from None
    problems = _problems(parsed, directory)
    if problems:
        raise CatalogError(file, problems)
    return Catalog(directory, parsed.base_models, parsed.adapters)


def _line(item: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "(top level)"
    shown = repr(item["input"])
    return f"{path}: {item['msg']} (got {shown if len(shown) <= 80 else shown[:77] + '...'})"


def _problems(parsed: _File, directory: Path) -> list[str]:
    problems = []
    for what, names in (
        ("base model", [entry.name for entry in parsed.base_models]),
        ("adapter", [entry.name for entry in parsed.adapters]),
    ):
        problems += [f"{what} '{n}' is listed twice" for n in dict.fromkeys(_repeated(names))]
    for entry in parsed.adapters:
        if not (directory / entry.path).resolve().is_relative_to(directory.resolve()):
            problems.append(
                f"adapter '{entry.name}': path '{entry.path}' leaves the catalogue's folder, "
                "by a link: put the adapter below it"
            )
    keys = [(a.base_model, a.specialty) for a in parsed.adapters if a.state == "active"]
    for base_model, specialty in dict.fromkeys(_repeated(keys)):
        problems.append(
            f"specialty '{specialty}' has more than one active adapter for {base_model}: "
            "set `state: disabled` on all but one"
        )
    return problems


def _repeated(items: Sequence[Any]) -> list[Any]:
    return [item for position, item in enumerate(items) if item in items[:position]]
