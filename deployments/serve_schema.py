"""serve_config.yaml against Ray's own models: Ray 2.60 drops a misspelt key without a word.

`ray_actor_options: {num_gpu: 1}` asks for no GPU and nobody is told. So every key is compared with
the fields of Ray's pydantic models (read from Ray, not listed here), and then the values go through
those models too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from deployments.settings import describe, nearest

IMPORT_PATH = "deployments.app:build"
DEPLOYMENTS = ("Router", "Model")
# Ray leaves these as plain dictionaries, or as unions, in its own schema.
_FREE_FORM = ("runtime_env", "args", "user_config", "resources", "label_selector")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error; plain YAML keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(content, problems): a missing file, bad YAML (with its line), or no mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read ({error})"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "not YAML"
        return {}, [f"{path}{line}: {what}"]
    if not isinstance(content, dict):
        return {}, [f"{path}: a mapping of keys is expected, found {type(content).__name__}"]
    return content, []


def key_problems(content: Mapping[str, Any]) -> list[str]:
    """Every key that Ray does not know, with the nearest that it knows."""
    from ray.serve.schema import ServeDeploySchema

    return list(_unknown_keys(content, ServeDeploySchema, ""))


def value_problems(content: Mapping[str, Any]) -> list[str]:
    """What Ray's models say of the values."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        return describe(error, ServeDeploySchema)
    except (ValueError, TypeError) as error:
        return [str(error)]
    return []


def _unknown_keys(content: Any, model: type[BaseModel], path: str) -> Iterator[str]:
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        where = f"{path}.{key}" if path else str(key)
        field = model.model_fields.get(str(key))
        if field is None:
            yield f"{where}: unknown key; {nearest(str(key), model.model_fields)}"
            continue
        inner = _model_in(field.annotation)
        if inner is None or key in _FREE_FORM:
            continue
        if isinstance(value, list):
            for position, item in enumerate(value):
                yield from _unknown_keys(item, inner, f"{where}.{_item_name(item, position)}")
        else:
            yield from _unknown_keys(value, inner, where)


def _item_name(item: Any, position: int) -> str:
    name = item.get("name") if isinstance(item, Mapping) else None
    return str(name) if name else str(position)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as Optional[List[Model]]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
