"""Values of labels that stay bounded, since Ray keeps a series for as long as its node runs."""

OTHER = "other"
MAX_NAMES = 128


class BoundedNames:
    """The values that one label has had. Any thread may call it.

    A catalogue may hold thousands of adapters, and they come and go; a series can never be taken
    back. So the first `limit` names keep their own series, and those after them share `other`.
    """

    def __init__(self, limit: int = MAX_NAMES) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def of(self, name: str) -> str:
        """Return the label's value for `name`."""
        if name in self._seen:
            return name
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(name)
        return name
