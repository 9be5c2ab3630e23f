"""The catalogue: which version of which adapter serves, and those it can return to.

One schema for both places: the read-only seed (`adapters/catalog.yaml`, revision 0) and
`<state_dir>/catalog.yaml`, which holds the catalogue after the first change. Immutable: changes.py
makes the next catalogue from one, store.py replaces the state's, seed.py writes the seed.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from adapters.bases.names import is_same_base
from adapters.legacy_seed import converted, is_old_form
from adapters.prompting import PromptFormat
from adapters.versions import SEED_PATH, AdapterVersion, Record, RegisteredAdapter

CATALOG_FILE = "catalog.yaml"
MAX_ADAPTERS = 10_000
DEFAULT_SYSTEM_LINE = "You are a medical assistant. Answer the question clearly and briefly."
_MAX_SHOWN = 20  # problems in one message

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CatalogError(ValueError):
    """The catalogue was refused. `problems` holds one line for each thing that is wrong."""

    def __init__(self, where: Path | str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        shown = [*problems[:_MAX_SHOWN]]
        if len(problems) > _MAX_SHOWN:
            shown.append(f"and {len(problems) - _MAX_SHOWN} more")
        if len(shown) == 1:
            super().__init__(f"{where}: {shown[0]}")
        else:
            lines = "\n".join(f"  - {problem}" for problem in shown)
            super().__init__(f"{len(problems)} problems in {where}:\n{lines}")


class BaseModelEntry(Record):
    """How a base model is prompted, and what it writes."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    prompt_format: PromptFormat
    system_line: str = DEFAULT_SYSTEM_LINE
    languages: Annotated[list[str], Field(min_length=1, description="ISO 639-1, main one first")]
    # Against answers that go round in circles, unless a request says otherwise: as transformers'
    # arguments of these names, and the words of LoopStop. These values are off.
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=64)] = 0
    loop_words: Annotated[int, Field(ge=0, le=64)] = 0


class Catalog(Record):
    """Every adapter, and how base models are prompted."""

    format: Literal[1] = 1
    revision: Annotated[int, Field(ge=0)]  # counts changes; the seed has 0
    base_models: list[BaseModelEntry] = []  # only the seed lists them
    adapters: Annotated[list[RegisteredAdapter], Field(max_length=MAX_ADAPTERS)] = []
    removed: list[str] = []  # names of the seed's adapters that were deleted

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if repeated := _repeated(b.name for b in self.base_models):
            problems.append(f"a base model is listed twice: {repeated}")
        if repeated := _repeated(a.name for a in self.adapters):
            problems.append(f"an adapter is listed twice: {repeated}")
        if repeated := _rivals(self.adapters):
            problems.append(
                f"a specialty has two adapters in service: {repeated}: disable all but one"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def adapter(self, name: str) -> RegisteredAdapter | None:
        return next((a for a in self.adapters if a.name == name), None)

    def of_base(self, base_model: str) -> tuple[RegisteredAdapter, ...]:
        """Return the adapters of this base, however it is named; disabled ones too."""
        return tuple(a for a in self.adapters if is_same_base(a.base_model, base_model))

    def in_service(self, base_model: str) -> tuple[RegisteredAdapter, ...]:
        return tuple(a for a in self.of_base(base_model) if a.served)

    def skipped(self, base_model: str) -> dict[str, str]:
        """Return name -> why an adapter is not served on this base."""
        reasons = {}
        for a in self.adapters:
            if not is_same_base(a.base_model, base_model):
                reasons[a.name] = f"trained on {a.base_model}, and the base model is {base_model}"
            elif not a.served:
                reasons[a.name] = "its state is disabled" + (f": {a.reason}" if a.reason else "")
        return reasons

    def base_model(
        self,
        name: str,
        *,
        family: Literal["causal", "seq2seq"] = "causal",
        has_chat_template: bool = True,
    ) -> BaseModelEntry:
        """Return the entry of this name; for a base that is not listed, its family's defaults."""
        for entry in self.base_models:
            if is_same_base(entry.name, name):
                return entry
        is_chat = family == "causal" and has_chat_template
        prompt_format: PromptFormat = "chat" if is_chat else "plain"
        return BaseModelEntry(name=name, prompt_format=prompt_format, languages=["en"])

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(v.digest for a in self.adapters for v in a.versions)


def load_catalog(directory: Path) -> Catalog:
    """Read the seed, `catalog.yaml` in `directory`; the form of before 0.2 as well.

    Raises:
        CatalogError: lists every problem: file missing, not YAML, unknown keys, bad or repeated
            names, two adapters for one specialty, a path out of the folder.
    """
    file = directory / CATALOG_FILE
    try:
        content = loaded(file.read_bytes(), file)
    except FileNotFoundError:
        fix = "give args.adapters a folder that has one, or `git checkout -- adapters`"
        raise CatalogError(file, [f"the file is missing: {fix}"]) from None
    except OSError as error:
        raise CatalogError(file, [f"cannot be read ({error.strerror})"]) from None
    if is_old_form(content):
        content = converted(content, directory)
    catalog = validated(content, file)
    problems = [
        problem
        for adapter in catalog.adapters
        for version in adapter.versions
        if (problem := _misplaced(directory, adapter.name, version))
    ]
    if problems:
        raise CatalogError(file, problems)
    return catalog


def _misplaced(directory: Path, name: str, version: AdapterVersion) -> str | None:
    where = f"adapter '{name}', version {version.version}: path '{version.path}'"
    if not version.path.startswith(SEED_PATH):
        return f"{where}: a seed's files lie below its folder: {SEED_PATH}weights/{name}"
    folder = directory / version.path.removeprefix(SEED_PATH)
    if not folder.resolve().is_relative_to(directory.resolve()):
        return f"{where} leaves the catalogue's folder, by a link: put the adapter below it"
    return None


def dump(catalog: Catalog) -> bytes:
    """Write the catalogue as JSON, a subset of YAML that replicas read some thirty times faster.

    `num_adapters` comes last, so that a file that was cut off is noticed. Base models are the
    seed's, and left out.
    """
    content = catalog.model_dump(exclude={"base_models"}) | {"num_adapters": len(catalog.adapters)}
    return (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def parse(content: bytes, where: str) -> Catalog:
    """Read what `dump` wrote, or the same as YAML.

    Raises:
        CatalogError: cut off, not YAML, or against a rule; lists the problems.
    """
    found = loaded(content, where)
    if not isinstance(found, dict) or "num_adapters" not in found:
        raise CatalogError(where, ["it was cut off, or is not a catalogue"])
    num_adapters = found.pop("num_adapters")
    catalog = validated(found, where)
    if len(catalog.adapters) != num_adapters:
        problem = f"it holds {len(catalog.adapters)} adapters and num_adapters is {num_adapters}"
        raise CatalogError(where, [problem])
    return catalog


def loaded(content: bytes, where: Path | str) -> Any:
    """Read JSON, as `dump` writes it, or any other YAML, as an operator may.

    Raises:
        CatalogError: it is neither.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(content, Loader=Loader)  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = f"it was cut off, or cannot be read as YAML ({error})"
        raise CatalogError(where, [problem]) from None


def validated(content: Any, where: Path | str) -> Catalog:
    """Check a catalogue's content. Raises CatalogError: lists every problem."""
    try:
        return Catalog.model_validate(content)
    except ValidationError as error:
        raise CatalogError(where, problems_of(error)) from None


def problems_of(error: ValidationError) -> list[str]:
    """Return one line for each problem that pydantic found, with its place and the value."""
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"])) or "catalogue"
        value = item["input"]
        shown = "" if isinstance(value, dict | list | Record) else f" (got {_shown(value)})"
        for problem in item["msg"].removeprefix("Value error, ").split("\n"):
            lines.append(f"{place}: {problem}{shown}")
    return lines


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _repeated(items: Iterable[str]) -> list[str]:
    return sorted(item for item, count in Counter(items).items() if count > 1)


def _rivals(adapters: Iterable[RegisteredAdapter]) -> list[str]:
    """Return `specialty on base` of adapters that serve what an earlier one serves."""
    rivals = []
    serving: dict[str, list[str]] = {}
    for a in adapters:
        if a.served:
            bases = serving.setdefault(a.specialty, [])
            if any(is_same_base(base, a.base_model) for base in bases):
                rivals.append(f"{a.specialty} on {a.base_model}")
            bases.append(a.base_model)
    return rivals
