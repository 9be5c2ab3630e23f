"""The keys in force on this replica, followed as the key file changes.

A thread of its own looks at the file's stamp twice a second, so a key that was created or revoked
counts within a second on every router replica, without a restart and off the event loop.
"""

import logging
import threading

from deployments.api.api_keys import FILE_NAME, KeyFileError, KeyStore, KeyTable

logger = logging.getLogger(__name__)

PERIOD_S = 0.5


class KeyWatch:
    """`current` is replaced whole. A file that cannot be used, or that is gone, changes nothing:
    the last good keys stay in force and `problem` says why. Before a first good file no key is
    valid. Keys are taken back with `python -m deployments.keys revoke`, not by deleting the file.
    """

    def __init__(self, store: KeyStore, period_s: float = PERIOD_S) -> None:
        self.current = KeyTable()
        self.problem: str | None = None
        self._store = store
        self._period_s = period_s
        self._stamp: object = None  # that of a folder without a file
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="key-watch", daemon=True)
        self.refresh()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def refresh(self) -> None:
        """Look now. Never raises."""
        try:
            found = self._store.etag()
            if found == self._stamp and self.problem is None:
                return
            if found is None and self._stamp is not None:
                raise KeyFileError(f"{FILE_NAME}: is gone")
            table = KeyTable(self._store.read())
        except (KeyFileError, OSError) as error:
            self._keep(error)
            return
        if found != self._stamp or self.problem is not None:
            logger.info("%d keys in force, %d of them admin keys", len(table), table.num_admins)
        self.current, self._stamp, self.problem = table, found, None

    def _keep(self, error: KeyFileError | OSError) -> None:
        # An OSError's text holds the path, which /readyz would show to anybody.
        cause = str(error) if isinstance(error, KeyFileError) else type(error).__name__
        problem = f"{cause}; {len(self.current)} keys from before stay in force"
        if problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem

    def _follow(self) -> None:
        while not self._stopped.wait(self._period_s):
            self.refresh()
