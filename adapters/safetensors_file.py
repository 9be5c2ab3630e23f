"""A safetensors file read by hand: its header is checked before anything is believed.

8 bytes little-endian header length, a JSON header, then the tensors. Needs numpy alone, so that a
router replica can check an adapter without torch.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_HEADER_BYTES = 16 * 2**20
# dtype -> (bytes of a value, bits of the exponent as an unsigned mask; None: always finite)
_DTYPES: dict[str, tuple[str, int | None]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_MAGIC = {
    b"PK\x03\x04": "a zip archive (torch.save writes those: a pickle)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "gzip data",
    b"GGUF": "a GGUF file",
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
        mask = _DTYPES[self.dtype][1]
        return not bool(((self.values & self.values.dtype.type(mask)) == mask).any())

    @property
    def is_zero(self) -> bool:
        """Positive or negative zeros only."""
        sign = np.iinfo(self.values.dtype).max >> 1
        return not bool((self.values & self.values.dtype.type(sign)).any())


@contextmanager
def open_tensors(file: Path) -> Iterator[Iterator[TensorEntry]]:
    """The file's tensors, in the header's order, without reading it whole.

    Raises:
        NotSafetensors: a pickle or archive under this name, a header or an offset that is wrong,
            bytes that are missing or left over, a dtype that is not a float.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(8)
        for magic, meaning in _MAGIC.items():
            if start.startswith(magic):
                raise NotSafetensors(f"it is {meaning}, not safetensors")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
            raise NotSafetensors(
                f"it has {size} bytes and a header of {length}: cut off, or not safetensors"
            )
        header = _header(opened.read(length))
        begin = 8 + length
        _check_offsets(header, size - begin)
        if size == begin:
            yield iter(())
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = _entries(header, content, begin)
            try:
                yield entries
            finally:
                entries.close()


def _entries(header: dict[str, Any], content: mmap.mmap, begin: int) -> Any:
    for name, item in header.items():
        start, stop = item["data_offsets"]
        dtype = _DTYPES[item["dtype"]][0]
        data = content[begin + start : begin + stop]
        yield TensorEntry(name, item["dtype"], tuple(item["shape"]), np.frombuffer(data, dtype))


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw, object_pairs_hook=_no_repeated_names)
    except NotSafetensors:
        raise
    except (ValueError, RecursionError):
        raise NotSafetensors("its header is not JSON: cut off, or not safetensors") from None
    if not isinstance(header, dict):
        raise NotSafetensors("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise NotSafetensors("its header's __metadata__ is no mapping of text to text")
    if not all(name.isprintable() for name in header):
        raise NotSafetensors("a tensor's name in its header has characters that are not printable")
    return header


def _no_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotSafetensors("its header lists a name twice")
    return found


def _check_offsets(header: dict[str, Any], num_bytes: int) -> None:
    """Tensors lie side by side and fill the file: nothing is hidden between or behind them."""
    spans = []
    for name, item in header.items():
        shown = repr(name)[:80]
        try:
            start, stop = item["data_offsets"]
            shape, dtype = item["shape"], item["dtype"]
            if not isinstance(dtype, str) or not isinstance(shape, list):
                raise TypeError
            count = 1
            for axis in shape:
                if not isinstance(axis, int) or isinstance(axis, bool) or axis < 0:
                    raise TypeError
                count *= axis
            if not isinstance(start, int) or not isinstance(stop, int):
                raise TypeError
        except (TypeError, KeyError, ValueError):
            raise NotSafetensors(f"its header's entry {shown} is malformed") from None
        if dtype not in _DTYPES:
            raise NotSafetensors(
                f"{shown} has dtype {str(dtype)[:20]!r}; LoRA weights are {', '.join(_DTYPES)}"
            )
        if stop - start != count * np.dtype(_DTYPES[dtype][0]).itemsize:
            raise NotSafetensors(
                f"{shown}: shape {str(shape)[:80]} and offsets {start}-{stop} differ"
            )
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise NotSafetensors(f"its tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != num_bytes:
        raise NotSafetensors(
            f"its header asks for {end} bytes and {num_bytes} are there: cut off, or damaged"
        )
