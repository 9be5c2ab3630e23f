"""Is the live state seen by every node? Looked at once, when the application is built.

A folder that only one node has would split the clinic: an adapter added through one node would
never reach the replicas of another.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.settings import Settings, SettingsError

TIMEOUT_S = 30.0

# (node ids, a file) -> node id -> whether it sees the file, or why that is not known
Look = Callable[[Sequence[str], Path], Mapping[str, bool | str]]


def check_shared_state(settings: Settings, look: Look | None = None) -> None:
    """Does nothing on a single node, and for an object store.

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
            found[node] = bool(ray.get(answer, timeout=TIMEOUT_S))
        except Exception as error:  # a node that is lost, or does not answer
            found[node] = type(error).__name__
    return found


def _sees(path: str) -> bool:
    return Path(path).exists()
