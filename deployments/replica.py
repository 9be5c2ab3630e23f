"""What replicas of both deployments share: their name, logs, live settings, interpreter, store."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from typing import Any, TypeVar

import platformdirs
from ray import serve
from ray.serve.exceptions import RayServeException

from adapters.storage.last_good import LastGood, last_good_folder
from adapters.store import AdapterStore, open_store
from deployments.observe.records import is_for_the_console
from deployments.settings import Settings
from deployments.strict_model import SettingsError, StrictModel, parse_strict

logger = logging.getLogger(__name__)

_WRITTEN_TOGETHER, _WRITTEN_WITHIN_S = 256, 1.0  # records of requests
_OURS = ("adapters", "deployments", "references", "router")

LiveT = TypeVar("LiveT", bound=StrictModel)


def replica_id() -> str | None:
    """Return Serve's name for this replica. None outside Serve."""
    try:
        name: str = serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None
    return name


def use_serve_handlers(level: str, *, are_requests_logged: bool = False) -> None:
    """Send our packages' records from `level` up where Serve's own go, in the same format.

    Args:
        are_requests_logged: their records are written together, within a second. Written one by
            one, each between two pieces of an answer, they cost several times as much.
    """
    handlers = logging.getLogger("ray.serve").handlers
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):  # the console; files have MemoryHandlers
            handler.addFilter(is_for_the_console)
        elif isinstance(handler, MemoryHandler):
            handler.capacity = _WRITTEN_TOGETHER if are_requests_logged else 1
            if are_requests_logged:
                _flusher()
    for name in _OURS:
        ours = logging.getLogger(name)
        ours.handlers = list(handlers)
        ours.propagate = not handlers
        ours.setLevel(level)


@functools.cache
def _flusher() -> threading.Thread:
    """Return the thread that has Serve's handlers write what they hold, once a second."""

    def flush() -> None:
        while True:
            time.sleep(_WRITTEN_WITHIN_S)
            for handler in logging.getLogger("ray.serve").handlers:
                with contextlib.suppress(OSError, ValueError):  # a full disk, a closed file
                    handler.flush()

    thread = threading.Thread(target=flush, name="log-flusher", daemon=True)
    thread.start()
    return thread


def live_settings(
    current: LiveT, user_config: Mapping[str, Any], where: str
) -> tuple[LiveT, list[str]]:
    """Return `user_config` as live settings, and what /readyz says of it; where it is wrong,
    `current`, and the log has the cause.

    Never raises: Serve would replace a healthy replica for it.
    """
    try:
        return parse_strict(type(current), user_config, where), []
    except SettingsError as error:
        logger.error("kept the previous user_config: %s", error)
        return current, [f"{where} was refused, and the one before is in force: see the log"]


def open_adapter_store(settings: Settings) -> AdapterStore:
    """Open the live catalogue that `settings` name.

    Raises:
        CatalogError, StorageError: naming the file and what to do about it.
    """
    cache = platformdirs.user_cache_path("polyclinic") / "adapters"
    last_good = LastGood(last_good_folder(settings.adapter_state))
    return open_store(settings.adapter_state, settings.catalog_dir, cache, last_good)
