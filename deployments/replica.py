"""Python's own pauses, kept away from the thread that a replica's answers depend on.

Our loggers inside a Serve replica: same files, same format and same console as Serve's own.
"""

import gc
import logging
import sys

_OURS = ("adapters", "deployments", "router")


def use_serve_handlers(level: str) -> None:
    """Send our packages' records from `level` up to the handlers of Serve's logger."""
    handlers = logging.getLogger("ray.serve").handlers
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = not handlers
        logger.setLevel(level)


_SWITCH_INTERVAL_S = 0.0005


def tune_interpreter() -> None:
    """For the process of a replica, once everything is loaded.

    Whoever reads or checks an adapter beside its answers is Python too, and the interpreter changes
    threads every 5 ms by default: two or three steps of a GPU, each time that the engine's thread
    comes back from the device. And a full garbage collection goes through every object of torch,
    transformers and Ray, which takes 0.1 to 1 s and stops all threads; what is there now is left
    out of it from here on.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
