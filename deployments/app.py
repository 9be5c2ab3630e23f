"""Composition root: `args` of serve_config.yaml -> Settings -> the bound Serve application.

    serve run serve_config.yaml        # import_path: deployments.app:build

No `from __future__ import annotations` here: Serve reads the builder's signature.
"""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adapters.bases.check import check_base_model, stored_quantization, weight_files
from adapters.seed_check import check_seed
from deployments.api.access.api_keys import KeyFileError, KeyStore, kept_records
from deployments.ingress.deployment import RouterReplica
from deployments.ingress.followed_classifier import load_classifier
from deployments.model.deployment import ModelReplica
from deployments.model.loading import LoadModel
from deployments.observe.tracing import tracing_problem
from deployments.replica import open_adapter_store
from deployments.settings import ReplicaSettings, Settings, parse_settings
from deployments.startup.quantization import quantization_problems
from deployments.strict_model import SettingsError

logger = logging.getLogger(__name__)

NODE_TIMEOUT_S = 30.0
LOOK_BACK_S = 30.0  # Serve's own default for averaging the load
METRICS_INTERVAL_S = 10.0  # likewise
GRACEFUL_S = 300.0  # an answer in progress outlives a replica that is to go; as request_timeout_s
HEALTH_CHECK_S = 2.0  # how soon a replica that has died is replaced
# On busy cores a healthy replica may take seconds; Serve replaces one that misses three in a row.
HEALTH_CHECK_TIMEOUT_S = 7.0
_CORES_PER_ROUTER = 8
_MAX_ROUTERS = 16
_MODEL_CPUS, _ROUTER_CPUS = 1, 0.2
# A replica that holds the adapter may have so many requests more than another, of its rows
# (docs/decisions.md).
_ROWS_PER_SLACK, _MIN_SLACK = 4, 2
_ONE_MORE = 1  # percent of the replicas, rounded up: one at a time
# Weights as they are loaded, key/value memory and a process, for each byte of the files.
_MEMORY_RATIO = 3


def build(args: dict[str, Any]) -> Application:
    """Build the application that serve_config.yaml describes. Runs in a task on the cluster.

    Raises:
        SettingsError: `args` are wrong; lists every problem.
        BaseModelError, ArtefactError, CatalogError, AdapterError, KeyFileError: a file is missing
            or corrupt; names it and what to do about it.
    """
    return build_application(parse_settings(args))


def build_application(settings: Settings, *, load: LoadModel | None = None) -> Application:
    """Wire Router -> Model. `load` makes a replica's model in its own process, as tests do; None
    for the model of the settings, in a process beside it."""
    device = choose_device(settings)
    routers = num_routers(settings.router.replicas)
    settings = with_routers(settings, routers)
    replicas = clamp_replicas(settings.model_replicas, device)
    # A stand-in for the model needs no base.
    num_bytes = check_base(settings, device) if load is None else 0
    check_files(settings)
    check_shared_state(settings)
    num_gpus = 1 if device == "cuda" else 0
    surge = replicas.surge
    if surge is None:
        surge = has_room(_MODEL_CPUS + _ROUTER_CPUS, num_gpus, num_bytes)
    model = serve.deployment(
        name="Model",
        ray_actor_options={"num_cpus": _MODEL_CPUS, "num_gpus": num_gpus},
        max_surge_percent=_ONE_MORE if surge else 0,
        request_router_config=placement(settings),
        # A replica decodes max_rows and holds as many again ready; the rest wait at the router,
        # where a second replica can still take them.
        max_ongoing_requests=2 * settings.engine.max_rows,
        max_queued_requests=settings.engine.max_waiting,
        graceful_shutdown_timeout_s=GRACEFUL_S,
        # A replica whose engine is gone ends itself, which this notices.
        health_check_period_s=HEALTH_CHECK_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        autoscaling_config=autoscaling(replicas, settings.engine.max_rows),
    )(ModelReplica)
    router = serve.deployment(
        name="Router",
        num_replicas=routers,
        ray_actor_options={"num_cpus": _ROUTER_CPUS, "num_gpus": 0},
        # The new version's routers come before the old ones go, and wait for its models.
        max_surge_percent=_ONE_MORE if has_room(_ROUTER_CPUS, 0, 0) else 0,
        max_ongoing_requests=1024,
        # An answer in progress outlives an upgrade; Serve's default would cut it off.
        graceful_shutdown_timeout_s=GRACEFUL_S,
        health_check_period_s=HEALTH_CHECK_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )(serve.ingress()(RouterReplica))
    application: Application = router.bind(settings, model.bind(settings, device, load))
    return application


def choose_device(settings: Settings) -> str:
    """Return "cuda" or "cpu". `auto` asks the cluster, since the builder runs on it.

    Raises:
        SettingsError: the quantization is not one of this device, or of this decoder.
    """
    device = settings.device
    if device == "auto":
        num_gpus = ray.cluster_resources().get("GPU", 0)
        device = "cuda" if num_gpus >= 1 else "cpu"
        logger.info("device auto: the cluster has %g GPUs, so %s", num_gpus, device)
    if problems := quantization_problems(settings, device):
        raise SettingsError("args of serve_config.yaml", problems)
    return device


def autoscaling(replicas: ReplicaSettings, num_rows: int) -> dict[str, Any]:
    """Return Serve's `autoscaling_config`.

    `num_rows`: answers that one replica decodes together.
    """
    # The mean follows a new load within the first half of the delay.
    look_back_s = min(LOOK_BACK_S, max(1.0, replicas.upscale_delay_s / 2))
    return {
        "min_replicas": replicas.min,
        "initial_replicas": max(1, replicas.min),  # it shows that the settings serve
        "max_replicas": replicas.max,
        "target_ongoing_requests": replicas.target or num_rows,
        "upscale_delay_s": replicas.upscale_delay_s,
        "downscale_delay_s": replicas.downscale_delay_s,
        "look_back_period_s": look_back_s,
        "metrics_interval_s": min(METRICS_INTERVAL_S, look_back_s / 2.5),
        "policy": {"policy_function": "deployments.model.scaling:by_rows"},
    }


def placement(settings: Settings) -> RequestRouterConfig:
    """Return how Serve picks a model replica for a question."""
    if settings.model_replicas.placement == "load":
        return RequestRouterConfig()
    slack = max(_MIN_SLACK, settings.engine.max_rows // _ROWS_PER_SLACK)
    return RequestRouterConfig(
        request_router_class="deployments.ingress.placement:AdapterAwareRouter",
        request_router_kwargs={"slack": slack},
    )


def num_routers(replicas: int | Literal["auto"]) -> int:
    """Return the number of router replicas. `auto` asks the cluster, since the builder runs on it.

    A replica passes some 15,000 tokens a second on (docs/serving_path.md), and classifies on one
    core.
    """
    if replicas != "auto":
        return replicas
    num_cores = int(ray.cluster_resources().get("CPU", 1))
    return min(_MAX_ROUTERS, max(1, num_cores // _CORES_PER_ROUTER))


def with_routers(settings: Settings, replicas: int) -> Settings:
    """Return the settings with the number of router replicas, which share the limits of keys."""
    return settings.model_copy(
        update={"router": settings.router.model_copy(update={"replicas": replicas})}
    )


def clamp_replicas(replicas: ReplicaSettings, device: str) -> ReplicaSettings:
    """Return one replica for a CPU: it uses all cores, so more would only share them."""
    if device == "cuda" or replicas.max == 1:
        return replicas
    logger.warning(
        "model_replicas {min: %d, max: %d} is clamped to 1: without a GPU one replica uses every "
        "core already",
        replicas.min,
        replicas.max,
    )
    return replicas.model_copy(update={"min": min(1, replicas.min), "max": 1})


def check_files(settings: Settings) -> None:
    """Check every file that the replicas will need besides the base model, so that a bad one fails
    the deploy at once, and what serves goes on."""
    if problem := tracing_problem(os.environ):
        raise SettingsError("the environment", [problem])
    load_classifier(settings)
    if settings.auth.mode == "keys":
        try:
            KeyStore(settings.state_path).read()
        except KeyFileError:
            if not kept_records(settings.state_path):
                raise
    store = open_adapter_store(settings)
    if not store.read_or_last_good().revision:
        check_seed(store, settings.base_model)


def check_base(settings: Settings, device: str) -> int:
    """Resolve the base model and look at its files; returns the bytes of its weights.

    Raises:
        BaseModelError, SettingsError: a replica could not load it.
    """
    resolved = check_base_model(settings.base_model_or_dir)
    stored = stored_quantization(resolved.path)
    if problems := quantization_problems(settings, device, stored):
        raise SettingsError("args of serve_config.yaml", problems)
    return sum(file.stat().st_size for file in weight_files(resolved.path))


def has_room(num_cpus: float, num_gpus: float, num_bytes: int) -> bool:
    """Whether one replica more could start now, beside those that run.

    Without free resources Serve would wait for them for ever, with the old version in service.
    """
    free = ray.available_resources()
    if free.get("CPU", 0) < num_cpus or free.get("GPU", 0) < num_gpus:
        return False
    return num_gpus > 0 or psutil.virtual_memory().available > _MEMORY_RATIO * num_bytes


# (node ids, a file) -> node id -> whether it sees the file, or why that is not known
Look = Callable[[Sequence[str], Path], Mapping[str, bool | str]]


def check_shared_state(settings: Settings, look: Look | None = None) -> None:
    """Check once, at the start, that every node sees the folder of the live state.

    A folder that only one node has would split the application: an adapter added through one node
    would never reach the replicas of another. A single node and an object store need no check.

    Raises:
        SettingsError: naming the nodes that do not see the folder.
    """
    if "://" in settings.adapter_state:
        return
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    if len(nodes) < 2:
        return
    folder = Path(settings.adapter_state)
    mark = folder / f".seen-{uuid.uuid4().hex}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
        seen = (look or _look_on_nodes)(sorted(nodes), mark)
    except OSError as error:
        problem = f"state_dir: {folder}: cannot be written ({error.strerror})"
        raise SettingsError("args of serve_config.yaml", [problem]) from None
    finally:
        mark.unlink(missing_ok=True)
    blind = [
        f"{nodes[node]}" + ("" if found is False else f" ({found})")
        for node, found in seen.items()
        if found is not True
    ]
    if blind:
        problem = (
            f"state_dir: {folder} is not seen by {len(blind)} of {len(nodes)} nodes: "
            f"{', '.join(blind)}; set it to a folder that all of them mount, or to an object "
            "store (s3://, gs://, abfs://)"
        )
        raise SettingsError("args of serve_config.yaml", [problem])


def _look_on_nodes(node_ids: Sequence[str], mark: Path) -> dict[str, bool | str]:
    look = ray.remote(num_cpus=0)(_sees)
    asked = {
        node: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(str(mark))
        for node in node_ids
    }
    found: dict[str, bool | str] = {}
    for node, answer in asked.items():
        try:
            found[node] = bool(ray.get(answer, timeout=NODE_TIMEOUT_S))
        except Exception as error:  # a node that is lost, or does not answer
            found[node] = type(error).__name__
    return found


def _sees(path: str) -> bool:
    return Path(path).exists()
