"""Log records of requests: one at each stage of an answer, all with the request's id."""

import logging


def is_for_the_console(record: logging.LogRecord) -> bool:
    """Whether a record is no request's. Ray passes each line of a replica's console on to the
    console of the launcher, which takes longer than the rest of what a request is observed with."""
    return not hasattr(record, "event")


def log_request(logger: logging.Logger, request_id: str, event: str, **fields: object) -> None:
    """Write one record, at INFO, that says what happened to a request.

    As JSON it has `request_id`, `event` and the fields as keys of their own; as text, the fields
    are in its message. A field is a name, a code or a number, never a text.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    given = {name: value for name, value in fields.items() if value is not None}
    text = ", ".join(f"{name} {value}" for name, value in given.items())
    extra = {"request_id": request_id, "event": event, **given}
    logger.info("%s: %s", event, text, extra=extra, stacklevel=2)
