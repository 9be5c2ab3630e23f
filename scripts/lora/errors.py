"""Why a step of an adapter's life was refused: what was found and what to do."""


class LoraError(Exception):
    """The root: a command prints its text and exits with 2."""


class AdapterMismatch(LoraError):
    """The adapter is damaged, or of another base model."""


class TrainingError(LoraError):
    """Training cannot start or continue."""


class MergeError(LoraError):
    """An input does not fit, or a check of the merged model failed."""


class HubError(LoraError):
    """The hub refused or could not be reached."""


def expected_errors() -> tuple[type[Exception], ...]:
    """Return what a command on an adapter answers with one line and exit code 2."""
    from safetensors import SafetensorError

    from adapters.bases.models import BaseModelError
    from adapters.catalog import CatalogError
    from scripts.datasets.record import DataError

    return (BaseModelError, CatalogError, DataError, LoraError, OSError, SafetensorError)
