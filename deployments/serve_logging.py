"""Our loggers inside a Serve replica: same files, same format and same console as Serve's own."""

import logging

_OURS = ("adapters", "deployments", "router")


def use_serve_handlers(level: str) -> None:
    """Send our packages' records from `level` up to the handlers of Serve's logger."""
    handlers = logging.getLogger("ray.serve").handlers
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = not handlers
        logger.setLevel(level)
