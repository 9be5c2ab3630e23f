"""Check the application's part of serve_config.yaml: route, `args`, and its deployments."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.live_settings import ModelLiveSettings, RouterLiveSettings
from deployments.settings import Settings, parse_settings, project_path
from deployments.startup.config_file import DEPLOYMENTS, IMPORT_PATH
from deployments.startup.quantization import quantization_problems
from deployments.strict_model import SettingsError, StrictModel, nearest, parse_strict
from router.artefact import MANIFEST
from router.versions import CURRENT, is_to_come

LIVE_SETTINGS: dict[str, type[StrictModel]] = {
    "Router": RouterLiveSettings,
    "Model": ModelLiveSettings,
}
# The builder decides these from `args`; in the YAML they would overrule it.
_BUILDERS_OWN = ("num_replicas", "autoscaling_config")
_INSTEAD = {"Router": "router.replicas", "Model": "model_replicas"}


def check_application(application: Mapping[str, Any]) -> list[str]:
    """Return the problems of import path, route, `args` and every deployment."""
    problems = []
    import_path = application.get("import_path")
    if import_path != IMPORT_PATH:
        problems.append(f"import_path: is {import_path!r}; it must be '{IMPORT_PATH}'")
    problems += check_route_prefix(application.get("route_prefix", "/"))
    args = application.get("args")
    if isinstance(args, Mapping):
        problems += check_args(args)
    elif args is not None:
        problems.append(f"args: a mapping of keys is expected (got {args!r})")
    deployments = application.get("deployments")
    listed = deployments if isinstance(deployments, list) else []
    mappings = [deployment for deployment in listed if isinstance(deployment, Mapping)]
    for deployment in mappings:
        problems += _check_deployment(deployment)
    for name, times in Counter(str(deployment.get("name")) for deployment in mappings).items():
        if times > 1:
            problems.append(f"deployments.{name}: is listed {times} times; keep one")
    return problems


def check_route_prefix(prefix: Any) -> list[str]:
    """Return what Ray refuses later, while it deploys; ask for a prefix that it takes."""
    if prefix is None:
        return ["route_prefix: null gives no HTTP route to the clinic: use /"]
    is_path = isinstance(prefix, str) and prefix.startswith("/") and not set(prefix) & set("{}")
    if is_path and (prefix == "/" or not prefix.endswith("/")):
        return []
    return [
        f"route_prefix: a path such as / or /clinic is expected, with a / at its start, none at "
        f"its end, and neither {{ nor }} (got {prefix!r})"
    ]


def check_args(args: Mapping[str, Any]) -> list[str]:
    """Return the problems of `args`: keys, values, missing folders, settings that conflict."""
    try:
        settings = parse_settings(args)
    except SettingsError as error:
        return [f"args.{problem}" for problem in error.problems]
    try:
        return [f"args.{problem}" for problem in _check_paths(settings)]
    except OSError as error:  # no right to look, a file server that is gone
        return [f"args: {error.filename}: cannot be looked at ({error.strerror})"]


def _check_paths(settings: Settings) -> list[str]:
    problems = []
    if settings.adapters and not os.path.isdir(settings.catalog_dir):
        problems.append(f"adapters: the folder {settings.catalog_dir} does not exist")
    problems += _check_state_url(settings.state_dir or "")
    problems += _check_router(settings)
    return problems + _check_base_model(settings)


def _check_state_url(state_dir: str) -> list[str]:
    scheme, separator, _ = state_dir.partition("://")
    if not separator:
        return []
    from fsspec.registry import known_implementations

    if scheme in known_implementations:
        return []
    hint = nearest(scheme, ("s3", "gs", "abfs")).replace("valid keys", "there are")
    return [f"state_dir: {scheme}:// is no kind of store; {hint}"]


def _check_router(settings: Settings) -> list[str]:
    """Return a problem of the router's folder, which may be missing or empty until one is added."""
    folder = settings.router_dir
    if is_to_come(folder):
        parent = folder.parent
        if settings.router.artefact and not os.path.isdir(parent):
            return [
                f"router.artefact: the folder {folder} does not exist, and nor does {parent}: make "
                f"{parent}, where add_specialty will put the versions, or correct the path"
            ]
        return []
    if not any(os.path.isfile(folder / name) for name in (MANIFEST, CURRENT)):
        return [
            f"router.artefact: {folder} is neither a trained router ({MANIFEST}) nor a folder of "
            f"versions ({CURRENT}), and it is not empty: name one of these"
        ]
    return []


def _check_base_model(settings: Settings) -> list[str]:
    """Return what is wrong with a folder or a name, or with `quantization` for it; whether the hub
    has it is not asked here."""
    from adapters.bases.check import check_folder, stored_quantization
    from adapters.bases.models import BUILT_IN, BaseModelError, is_hub_name

    name = settings.base_model
    if name.startswith(("/", ".", "~")) and not os.path.isdir(project_path(name)):
        return [f"base_model: the folder {project_path(name)} does not exist"]
    folder = Path(settings.base_model_or_dir)
    if name == BUILT_IN or (is_hub_name(name) and not os.path.isdir(folder)):
        return quantization_problems(settings, settings.device)
    if not os.path.isdir(folder):
        return [
            f"base_model: '{name}' is no folder, not '{BUILT_IN}', and no Hugging Face id of the "
            f"form org/name; {nearest(name, [BUILT_IN]).replace('valid keys', 'there is')}"
        ]
    try:
        check_folder(folder)
        stored = stored_quantization(folder)
    except BaseModelError as error:
        return [str(error)]
    return quantization_problems(settings, settings.device, stored)


def _check_deployment(deployment: Mapping[str, Any]) -> list[str]:
    name = deployment.get("name")
    if name not in DEPLOYMENTS:
        hint = nearest(str(name), DEPLOYMENTS).replace("valid keys", "there are")
        return [f"deployments.{name}: no such deployment; {hint}"]
    problems = [
        f"deployments.{name}.{key}: the builder decides this; use args: {_INSTEAD[str(name)]}"
        for key in _BUILDERS_OWN
        if deployment.get(key) is not None
    ]
    problems += _check_actor_options(str(name), deployment.get("ray_actor_options"))
    user_config = deployment.get("user_config")
    if user_config is None:
        return problems
    where = f"deployments.{name}.user_config"
    if not isinstance(user_config, Mapping):
        return [*problems, f"{where}: a mapping of keys is expected (got {user_config!r})"]
    try:
        parse_strict(LIVE_SETTINGS[str(name)], user_config, where)
    except SettingsError as error:
        problems += [f"{where}.{problem}" for problem in error.problems]
    return problems


def _check_actor_options(name: str, options: Any) -> list[str]:
    """Refuse options with which Ray would replace the builder's, the GPU included."""
    where = f"deployments.{name}.ray_actor_options"
    if isinstance(options, Mapping) and "num_gpus" in options:
        return [
            f"{where}.num_gpus: the builder gives each Model replica one GPU, where there is one; "
            "use args: device"
        ]
    if name == "Model" and options:
        return [
            f"{where}: they would replace the builder's whole set, num_gpus too, and the model "
            "would get no GPU: take them out; args: device and args: engine.cpu_threads decide"
        ]
    return []
