"""The classifier as a router replica follows it: the package's, or the newest of its folder."""

from collections.abc import Callable
from pathlib import Path

from adapters.storage.bounded import Bounded
from adapters.store import AdapterStore
from deployments.reloader import Reloader
from deployments.settings import SHIPPED_ROUTER, Settings
from router.artefact import ArtefactError
from router.classifier import Classifier
from router.versions import etag, is_to_come, resolve


def load_classifier(settings: Settings, artefact: Path | None = None) -> Classifier:
    """Load an artefact, or the one that is current.

    Raises:
        ArtefactError: naming the file, what was found, and what to do about it.
    """
    return Classifier.load(
        artefact or served_router(settings),
        encoder=settings.router_encoder,
        threads=settings.router.threads,
    )


def served_router(settings: Settings) -> Path:
    """Return the artefact to serve: of `settings.router_dir`, or until it has one, the package's.

    Raises:
        ArtefactError: the folder's current version cannot be told.
    """
    folder = settings.router_dir
    return SHIPPED_ROUTER if is_to_come(folder) else resolve(folder)


def follow_classifier(
    settings: Settings, period_s: Callable[[], float], store: AdapterStore | None = None
) -> Reloader[Classifier]:
    """Follow the artefact's folder: a new version, a roll-back, or files replaced in place.

    Args:
        store: lies in the same state; while that is away, the package's artefact may serve, which
            is then a problem.

    Raises:
        ArtefactError: the first one does not load.
    """
    has_own = False  # whether the folder has had a version; then nothing there is no beginning
    bounded = Bounded(settings.router_dir)

    def place() -> Path:
        found = bounded(lambda: served_router(settings))
        if found == SHIPPED_ROUTER and (has_own or _is_away(store)):
            why = "its versions are gone" if has_own else "cannot be followed: the state is away"
            raise ArtefactError(f"router artefact: {settings.router_dir}: {why}: put it back")
        return found

    def load() -> Classifier:
        nonlocal has_own
        found = place()
        classifier = load_classifier(settings, found)
        has_own = has_own or found != SHIPPED_ROUTER
        return classifier

    first: Classifier | None = None
    if _is_away(store):
        try:
            place()
        except (ArtefactError, OSError):
            first = load_classifier(settings, SHIPPED_ROUTER)
    return Reloader(
        lambda: etag(place()),
        load,
        period_s,
        first=first,
        describe=lambda classifier: f"router {classifier.version}",
    )


def _is_away(store: AdapterStore | None) -> bool:
    try:
        if store is not None:
            store.read()
    except OSError:
        return True
    except ValueError:  # damaged, and there
        return False
    return False
