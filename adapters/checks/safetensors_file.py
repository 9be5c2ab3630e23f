"""The tensors of a safetensors file, without torch and without reading it whole.

The format's own library checks the header: gaps, overlaps, shapes, cut files. Here other formats
are named, and dtypes that LoRA weights do not have, repeated and unprintable names refused.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# dtype -> (numpy's unsigned integer of that size, the bits of the exponent: all set if not finite)
_DTYPES = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (torch.save writes those: a pickle)",
    **{bytes([0x80, protocol]): "a pickle" for protocol in (2, 3, 4, 5)},
    b"\x1f\x8b": "gzip data",
    b"GGUF": "a GGUF file",
    LFS_POINTER: "a Git LFS pointer (`git lfs pull` fetches the file)",
}


class NotSafetensors(ValueError):
    """The file is not what it should be; says what it looks like."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """`values`: the bits as unsigned integers, flat."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: "np.ndarray[Any, Any]"

    @property
    def is_finite(self) -> bool:
        mask = self.values.dtype.type(_DTYPES[self.dtype][1])
        return not bool(((self.values & mask) == mask).any())

    @property
    def is_zero(self) -> bool:
        """Say whether all values are positive or negative zeros."""
        all_but_sign = np.iinfo(self.values.dtype).max >> 1
        return not bool((self.values & self.values.dtype.type(all_but_sign)).any())


@contextmanager
def open_tensors(file: Path) -> Iterator[Iterator[TensorEntry]]:
    """Yield the file's tensors, in the header's order.

    Raises:
        NotSafetensors: a pickle or archive under this name, a damaged or cut file, a dtype that is
            not a float.
        OSError: it cannot be read.
    """
    with open(file, "rb") as opened:
        start = opened.read(len(LFS_POINTER))
        try:
            with safe_open(file, framework="np"):
                pass
        except SafetensorError as error:  # only then: a header's length may look like a pickle
            for magic, meaning in _OTHER_FORMATS.items():
                if start.startswith(magic):
                    raise NotSafetensors(f"it is {meaning}, not safetensors") from None
            raise NotSafetensors(f"cut off, damaged, or not safetensors: {error}") from None
        begin = 8 + int.from_bytes(start[:8], "little")
        opened.seek(8)
        header = _header(opened.read(begin - 8))
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = _entries(header, content, begin)
            try:
                yield entries
            finally:
                entries.close()


def _entries(header: dict[str, Any], content: mmap.mmap, begin: int) -> Any:
    for name, item in header.items():
        start, stop = item["data_offsets"]
        data = content[begin + start : begin + stop]
        values = np.frombuffer(data, _DTYPES[item["dtype"]][0])
        yield TensorEntry(name, item["dtype"], tuple(item["shape"]), values)


def _header(raw: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(raw, object_pairs_hook=_without_repeats)
    header.pop("__metadata__", None)
    for name, item in header.items():
        if not name.isprintable():
            raise NotSafetensors("a tensor's name has characters that are not printable")
        if item["dtype"] not in _DTYPES:
            dtypes = ", ".join(_DTYPES)
            raise NotSafetensors(f"{name[:80]} has dtype {item['dtype']!r}; allowed are {dtypes}")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotSafetensors("its header lists a name twice")
    return found
