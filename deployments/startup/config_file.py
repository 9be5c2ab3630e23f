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
from pydantic_core import ErrorDetails

from deployments.strict_model import describe, nearest

IMPORT_PATH = "deployments.app:build"
DEPLOYMENTS = ("Router", "Model")
_MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error; plain YAML keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE_TAG:
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(content, problems): a missing file, bad YAML (with its line), or no mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read ({error})"]
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return {}, [f"{path}{line}: {error.problem or error}"]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        return {}, [f"{path}: not YAML ({error})"]
    if not isinstance(content, dict):
        return {}, [f"{path}: a mapping of keys is expected, found {type(content).__name__}"]
    return content, []


def key_problems(content: Mapping[str, Any]) -> list[str]:
    """Every key that Ray does not know, with the nearest that it knows."""
    from ray.serve.schema import ServeDeploySchema

    return list(_unknown_keys(content, ServeDeploySchema, ""))


def value_problems(content: Mapping[str, Any]) -> list[str]:
    """What Ray's models say of the values. Unknown keys are left to `key_problems`."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        others = [item for item in error.errors() if item["type"] != "extra_forbidden"]
        return describe((_named(item, content) for item in others), ServeDeploySchema)
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
        if key == "runtime_env":
            yield from _unknown_runtime_env_keys(value, where)
        inner = _model_in(field.annotation)
        if inner is None:
            continue
        if isinstance(value, list):
            for position, item in enumerate(value):
                yield from _unknown_keys(item, inner, f"{where}.{_item_name(item, position)}")
        else:
            yield from _unknown_keys(value, inner, where)


def _unknown_runtime_env_keys(value: Any, where: str) -> Iterator[str]:
    """A runtime_env is a plain dictionary in Ray's schema, but Ray knows its keys elsewhere."""
    from ray.runtime_env import RuntimeEnv

    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")}
    for key in value if isinstance(value, Mapping) else ():
        if key not in RuntimeEnv.known_fields:
            yield f"{where}.{key}: unknown key; {nearest(str(key), known)}"


def _named(item: ErrorDetails, content: Any) -> ErrorDetails:
    """The same error with list positions replaced by names: applications.0 -> applications.x."""
    loc: list[int | str] = []
    for part in item["loc"]:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            content = None
        loc.append(_item_name(content, part) if isinstance(part, int) else part)
    return {**item, "loc": tuple(loc)}


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
