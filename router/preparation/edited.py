"""A text with some spans replaced, and where each of its characters comes from."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edit:
    """Puts `replacement` in the place of the characters `start` to `end`; "" deletes them."""

    start: int
    end: int
    replacement: str


@dataclass(frozen=True, slots=True)
class EditedText:
    """`text` came from `source` by edits; character i from `source[starts[i]:ends[i]]`."""

    text: str
    source: str
    starts: Offsets  # (characters of text,)
    ends: Offsets

    @classmethod
    def of(cls, source: str) -> "EditedText":
        positions = np.arange(len(source), dtype=np.int64)
        return cls(source, source, positions, positions + 1)

    def apply(self, edits: Iterable[Edit]) -> "EditedText":
        """Return the text after edits of its spans; of two that overlap the first counts."""
        texts: list[str] = []
        starts: list[Offsets] = []
        ends: list[Offsets] = []
        done = 0
        for edit in sorted(edits, key=lambda e: (e.start, e.end)):
            if edit.start < done or edit.end <= edit.start:
                continue
            count = len(edit.replacement)
            texts += [self.text[done : edit.start], edit.replacement]
            first, last = self.starts[edit.start], self.ends[edit.end - 1]
            starts += [self.starts[done : edit.start], np.full(count, first)]
            ends += [self.ends[done : edit.start], np.full(count, last)]
            done = edit.end
        if not done:
            return self
        return EditedText(
            "".join([*texts, self.text[done:]]),
            self.source,
            np.concatenate([*starts, self.starts[done:]]),
            np.concatenate([*ends, self.ends[done:]]),
        )

    def original(self, start: int, end: int) -> str:
        """Return what the user wrote where the text now has the characters `start` to `end`."""
        if start >= end:
            return ""
        return self.source[int(self.starts[start]) : int(self.ends[end - 1])]
