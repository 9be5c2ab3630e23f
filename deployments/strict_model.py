"""Strict models for what an operator writes: every problem is reported, and each unknown key comes
with the nearest valid one. No ray, no torch."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class SettingsError(ValueError):
    """The settings were refused. `problems` has one line for each thing that is wrong."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{len(problems)} {noun} in {where}:\n{lines}")


class StrictModel(BaseModel):
    """Frozen; refuses unknown keys, NaN, infinity and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=StrictModel)


def parse_strict(model: type[ModelT], values: Mapping[str, Any], where: str) -> ModelT:
    """Validate `values`; `where` names them in the message.

    Raises:
        SettingsError: with one line for each problem.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(where, describe(error.errors(), model)) from None


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'? valid keys: ...` for an unknown key."""
    choices = sorted(valid)
    close = difflib.get_close_matches(key, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid keys: {', '.join(choices)}"


def describe(errors: Iterable[ErrorDetails], model: type[BaseModel]) -> list[str]:
    """Return one line for each problem of a pydantic error: key path, value, what is allowed."""
    lines = []
    for item in errors:
        path = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            owner = _model_at(model, item["loc"][:-1])
            fields = owner.model_fields if owner else {}
            lines.append(f"{path}: unknown key; {nearest(str(item['loc'][-1]), fields)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: is missing")
        else:
            value = repr(item["input"])
            shown = value if len(value) <= 80 else value[:77] + "..."
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')} (got {shown})")
    return lines


def _model_at(model: type[BaseModel], loc: Iterable[int | str]) -> type[BaseModel] | None:
    """Return the model of the fields at `loc`, e.g. ("engine",) -> EngineSettings."""
    current: type[BaseModel] | None = model
    for part in loc:
        field = current.model_fields.get(str(part)) if current else None
        if field is None:
            return None
        candidates = (field.annotation, *get_args(field.annotation))
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else None
    return current
