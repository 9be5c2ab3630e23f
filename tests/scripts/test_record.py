"""Files of records: packed or not, they are read alike."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.datasets.record import DataError, read_jsonl

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("suffix", PACKINGS)
def test_a_packed_file_is_read_like_one_that_is_not(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"pairs.jsonl{suffix}"
    file.write_bytes(PACKINGS[suffix]('{"input": "eczéma"}\n\n{"input": "toux"}\n'.encode()))
    assert list(read_jsonl(file)) == [(1, {"input": "eczéma"}), (3, {"input": "toux"})]
    file.write_bytes(PACKINGS[suffix](b'{"a": 1}\n[2]\n'))
    with pytest.raises(DataError, match="line 2: a JSON object is expected"):
        list(read_jsonl(file))


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_what_is_not_packed_as_its_name_says_is_an_error(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"pairs.jsonl{suffix}"
    file.write_text('{"input": "toux"}\n')
    with pytest.raises(OSError, match="Not a gzipped file|Invalid data stream"):
        list(read_jsonl(file))
