"""The classifier in force on this replica, followed as its folder changes.

A thread asks every few seconds whether another artefact is in force (router/versions.py: a new
version, a roll-back, or files replaced in place) and loads it beside the traffic. An artefact that
does not load changes nothing: the one before serves on, and /readyz says why.
"""

import logging
import threading
from collections.abc import Callable

from deployments.settings import Settings
from router.artefact import ArtefactError
from router.classifier import Classifier
from router.versions import etag, resolve

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0  # how often to look whether following was switched on


def load_classifier(settings: Settings) -> Classifier:
    """The artefact that is in force now.

    Raises:
        ArtefactError: naming the file, what was found, and the mend.
    """
    return Classifier.load(
        resolve(settings.router_dir),
        encoder=settings.router_encoder,
        threads=settings.router.threads,
    )


class FollowedClassifier:
    """`current` is replaced as a whole, so whoever took it may go on with it.

    Args:
        period_s: seconds between two looks at the folder; 0 pauses.

    Raises:
        ArtefactError: the first one does not load.
    """

    def __init__(self, settings: Settings, period_s: Callable[[], float]) -> None:
        self._settings = settings
        self._period_s = period_s
        self._stamp = etag(settings.router_dir)
        self.current = load_classifier(settings)
        self.problem: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="router-reload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def refresh(self) -> bool:
        """Look now; True when another artefact came into force. Never raises."""
        try:
            found = etag(self._settings.router_dir)
            if found == self._stamp:
                self.problem = None
                return False
            fresh = load_classifier(self._settings)
        except (ArtefactError, OSError) as error:
            if self.problem != str(error):
                logger.error("kept router %s: %s", self.current.version, error)
            self.problem = str(error)
            return False
        logger.info("router %s replaces %s", fresh.version, self.current.version)
        self.current, self._stamp, self.problem = fresh, found, None
        return True

    def _follow(self) -> None:
        while not self._stopped.wait(self._period_s() or PAUSED_CHECK_S):
            if self._period_s():
                self.refresh()
