"""Read serve_config.yaml and compare it with Ray's models, because Ray 2.60 ignores unknown keys.

`ray_actor_options: {num_gpu: 1}` asks for no GPU without any message. So every key is compared with
the fields of Ray's pydantic models (read from Ray, not listed here), and then the values are parsed
with those models too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deployments.live_settings import RouterLiveSettings
from deployments.strict_model import describe, nearest

IMPORT_PATH = "deployments.app:build"
DEPLOYMENTS = ("Router", "Model")
DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 8000  # Ray's, for a file that gives none
_MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a repeated key, of which plain YAML keeps the last silently."""

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
    """Return (content, problems): no such file, bad YAML (with its line), or not a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read ({error})"]
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return {}, [f"{path}{line}: {error.problem or error}"]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        return {}, [f"{path}: not YAML ({error})"]
    if not isinstance(content, dict):
        return {}, [f"{path}: a mapping of keys is expected, found {type(content).__name__}"]
    return content, []


def http_address(content: Mapping[str, Any]) -> tuple[str, int]:
    """Return host and port of `http_options`, or Ray's defaults where it gives none."""
    options = content.get("http_options")
    options = options if isinstance(options, Mapping) else {}
    host, port = options.get("host", DEFAULT_HOST), options.get("port", DEFAULT_PORT)
    return str(host), port if is_port(port) else DEFAULT_PORT


def is_port(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65_535


def application_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first application of the file, or {} where there is none that can be read."""
    applications = content.get("applications")
    first = applications[0] if isinstance(applications, list) and applications else None
    return first if isinstance(first, Mapping) else {}


def args_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `args` of the first application, or {} where there are none that can be read."""
    args = application_of(content).get("args")
    return args if isinstance(args, Mapping) else {}


def router_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the Router's user_config, or {} where there is none that can be read."""
    listed = application_of(content).get("deployments")
    for deployment in listed if isinstance(listed, list) else []:
        if isinstance(deployment, Mapping) and deployment.get("name") == "Router":
            config = deployment.get("user_config")
            return config if isinstance(config, Mapping) else {}
    return {}


def drain_s(path: Path) -> float:
    """Return how long answers in progress may take when the server stops, as the file says now."""
    content, _ = read_config(path)
    given = router_config(content).get("drain_s")
    if isinstance(given, int | float) and not isinstance(given, bool) and given >= 0:
        return float(given)
    return RouterLiveSettings().drain_s


def key_problems(content: Mapping[str, Any]) -> list[str]:
    """Return every key that Ray does not know, with the nearest that it knows."""
    from ray.serve.schema import ServeDeploySchema

    return list(_unknown_keys(content, ServeDeploySchema, ""))


def value_problems(content: Mapping[str, Any]) -> list[str]:
    """Return the problems that Ray's models find in the values; unknown keys are not repeated."""
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
    """Compare the keys of a runtime_env, which is a plain dictionary in Ray's schema."""
    from ray.runtime_env import RuntimeEnv

    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")}
    for key in value if isinstance(value, Mapping) else ():
        if key not in RuntimeEnv.known_fields:
            yield f"{where}.{key}: unknown key; {nearest(str(key), known)}"


def _named(item: ErrorDetails, content: Any) -> ErrorDetails:
    """Replace list positions by names: applications.0 -> applications.x."""
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
    """Return the pydantic model in an annotation such as Optional[List[Model]], or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
