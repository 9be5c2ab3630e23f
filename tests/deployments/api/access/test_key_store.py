"""The key file: atomic, locked, for its owner only, and never half of one."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.api.access.api_keys import KeyFileError, KeyStore, new_key
from deployments.settings import PROJECT_ROOT

WRITER = """
import sys
from pathlib import Path
from deployments.api.access.api_keys import KeyStore
from deployments.api.access.api_keys import new_key
store = KeyStore(Path(sys.argv[1]))
for number in range(25):
    record = new_key("user", name=f"{sys.argv[2]}-{number}")[1]
    store.change(lambda records: [*records, record])
"""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "state")
    assert store.read() == ()
    assert store.etag() is None
    _, record = new_key("user", name="é", tokens_per_minute=5)
    store.change(lambda records: [*records, record])
    first = store.etag()
    assert store.read() == (record,)
    store.change(lambda records: [*records, new_key("admin")[1]])
    assert [r.kind for r in store.read()] == ["user", "admin"]
    assert store.etag() != first


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "state")
    store.change(lambda records: [new_key("user")[1]])
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(store.path.parent).st_mode) == 0o700


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], cwd=PROJECT_ROOT) for name in ("a", "b")]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        found = len(KeyStore(tmp_path).read())  # a reader never meets half a file
        assert found >= seen
        seen = found
    assert [writer.returncode for writer in writers] == [0, 0]
    names = {record.name for record in KeyStore(tmp_path).read()}
    assert names == {f"{writer}-{number}" for writer in "ab" for number in range(25)}


def test_a_write_that_fails_leaves_the_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(tmp_path)
    store.change(lambda records: [new_key("user")[1]])
    before = store.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deployments.api.access.api_keys.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.change(lambda records: [*records, new_key("user")[1]])
    assert store.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"keys.json", "keys.lock"}


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.change(lambda records: [new_key("user")[1], new_key("admin")[1]])
    content = store.path.read_bytes().rstrip()
    for length in range(len(content)):
        store.path.write_bytes(content[:length])
        with pytest.raises(KeyFileError, match=r"keys\.json"):
            store.read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: {**record, "kind": "root"}, r"keys\.0\.kind"),
        (lambda record: {**record, "sha256": "0"}, r"keys\.0\.sha256"),
        (lambda record: {**record, "rate": 1}, r"keys\.0\.rate"),
        (lambda record: [record], r"keys\.0"),
    ],
)
def test_a_wrong_record_is_named_without_its_hash(
    tmp_path: Path, change: object, words: str
) -> None:
    record = new_key("user")[1].model_dump()
    document = {"format": 1, "keys": [change(record)]}  # type: ignore[operator]
    (tmp_path / "keys.json").write_text(json.dumps(document))
    with pytest.raises(KeyFileError, match=words) as caught:
        KeyStore(tmp_path).read()
    assert record["sha256"] not in str(caught.value)


def test_an_id_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    record = new_key("user")[1]
    store = KeyStore(tmp_path)
    store.change(lambda records: [record, record])
    with pytest.raises(KeyFileError, match="twice"):
        store.read()
    with pytest.raises(KeyFileError, match="twice"):  # and so it cannot be changed
        store.change(lambda records: [])
