"""Render the kustomize overlays of deploy/kuberay as far as they use kustomize.

Kustomize itself comes in no package that this project can install. What is not understood here is
an error, so that nothing is left out silently.
"""

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
OVERLAYS = ("cpu", "gpu")
_KEYS = {"apiVersion", "kind", "namespace", "resources", "patches"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    content = load(folder / "kustomization.yaml")
    assert content["kind"] == "Kustomization"
    assert set(content) <= _KEYS, f"{folder}: {set(content) - _KEYS} is not rendered here"
    objects: list[dict[str, Any]] = []
    for name in content["resources"]:
        path = (folder / name).resolve()
        objects += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    objects = copy.deepcopy(objects)  # an alias in a file is an object of its own
    for patch in content.get("patches", []):
        objects = _patched(objects, load(folder / patch["path"]), patch.get("target"))
    for item in objects:
        if content.get("namespace") and item["kind"] != "Namespace":
            item["metadata"]["namespace"] = content["namespace"]
    return objects


def _patched(objects: list[dict[str, Any]], patch: Any, target: Any) -> list[dict[str, Any]]:
    """Apply a JSON patch (a list) or a merge patch to the one object that it is for."""
    is_json_patch = isinstance(patch, list)
    kind, name = (
        (target["kind"], target["name"])
        if is_json_patch
        else (patch["kind"], patch["metadata"]["name"])
    )
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    if is_json_patch:
        plain = yaml.safe_load(yaml.dump(found, Dumper=_NoAliases))
        return [jsonpatch.apply_patch(plain, patch) if o is found else o for o in objects]
    if patch.get("$patch") == "delete":
        return [o for o in objects if o is not found]
    return [_merged(o, patch) if o is found else o for o in objects]


def _merged(old: Any, new: Any) -> Any:
    """Return a merge as kustomize does it for a kind whose schema it does not know."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def pods(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the name of each group of a RayService -> its pod template."""
    cluster = service["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}


def serve_config(service: dict[str, Any]) -> dict[str, Any]:
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert isinstance(content, dict)
    return content
