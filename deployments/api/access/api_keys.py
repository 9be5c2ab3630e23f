"""API keys, and the file that holds them, `<state_dir>/keys.json`.

A key is `pc-ID-SECRET`: ID is public (12 hex digits, it names the key in lists and limits), SECRET
is 32 random bytes. The file holds the SHA-256 of the whole key. A slow, salted hash (bcrypt,
Argon2) protects passwords, which can be guessed: 256 random bits cannot, however fast the hash, so
it would only cost every request a tenth of a second.

The file is JSON because a JSON file that was cut off never parses, while half a YAML list is a
shorter list. A change takes the lock (`keys.lock`), reads, writes a temporary file, syncs it and
renames it: a reader sees the old file or the new one, and no change of two writers is lost.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.storage.atomic import FileCalls, locked, write_atomically
from adapters.storage.bounded import Bounded
from adapters.storage.last_good import last_good_folder
from adapters.storage.protocol import StorageError

KeyKind = Literal["user", "admin"]

_SHAPE = re.compile(r"pc-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_NUM_SECRET_BYTES = 32
# What an unknown id is compared with, so that it takes as long as a known one.
_NO_HASH = "0" * 64


class KeyRecord(BaseModel):
    """One key in the file. Limits that are None: the router's defaults apply."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    kind: KeyKind
    name: str = Field(default="", max_length=80)
    created: str = Field(max_length=40)
    revoked: Annotated[str, Field(max_length=40)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def is_active(self) -> bool:
        return self.revoked is None


class KeyTable:
    """The valid keys. Never changed: a new file is a new table."""

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self._active = {record.id: record for record in records if record.is_active}

    def __len__(self) -> int:
        return len(self._active)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self._active)

    @property
    def num_admins(self) -> int:
        return sum(record.kind == "admin" for record in self._active.values())

    def find(self, presented: str) -> KeyRecord | None:
        """Return the active key that `presented` is, or None. Compares in constant time."""
        shaped = _SHAPE.fullmatch(presented)
        if shaped is None:
            return None
        record = self._active.get(shaped.group(1))
        expected = record.sha256 if record else _NO_HASH
        return record if hmac.compare_digest(hash_key(presented), expected) else None


def new_key(kind: KeyKind, **fields: Any) -> tuple[str, KeyRecord]:
    """Return the key, to be shown to its owner once, and the record to keep.

    Args:
        fields: name and limits, as in KeyRecord.

    Raises:
        pydantic.ValidationError: a limit or the name is out of bounds.
    """
    key_id = secrets.token_hex(6)
    key = f"pc-{key_id}-{secrets.token_urlsafe(_NUM_SECRET_BYTES)}"
    return key, KeyRecord(id=key_id, sha256=hash_key(key), kind=kind, created=now(), **fields)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


FILE_NAME = "keys.json"
MAX_KEYS = 10_000
_MAX_FILE_BYTES = 16 * 2**20

Etag = tuple[int, int, int]


class KeyFileError(ValueError):
    """The key file cannot be used. The message names what is wrong, never what it holds."""


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    keys: list[KeyRecord] = Field(max_length=MAX_KEYS)


class KeyStore:
    """Args: folder: the state directory, made on the first change with access for its owner."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._bounded = Bounded(folder)

    def etag(self) -> Etag | None:
        """Return what changes whenever the file is replaced or written; None without a file.

        Raises:
            OSError: the folder cannot be looked at.
        """
        try:
            found = self._bounded(lambda: os.stat(self.path))
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def read(self) -> tuple[KeyRecord, ...]:
        """Return all records, revoked ones too; an empty tuple when there is no file.

        Raises:
            KeyFileError: unreadable, cut off, or not a key file.
        """
        try:
            content = self._bounded(self._content)
        except FileNotFoundError:
            return ()
        except StorageError:
            raise KeyFileError(f"{FILE_NAME}: the folder does not answer") from None
        except OSError as error:
            raise KeyFileError(f"{FILE_NAME}: cannot be read ({error.strerror})") from None
        if len(content) > _MAX_FILE_BYTES:
            raise KeyFileError(f"{FILE_NAME}: is larger than {_MAX_FILE_BYTES} bytes")
        return _parsed(content)

    def _content(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read(_MAX_FILE_BYTES + 1)

    def change(
        self, edit: Callable[[tuple[KeyRecord, ...]], Sequence[KeyRecord]]
    ) -> tuple[KeyRecord, ...]:
        """Replace the records by `edit(records)`, with no other writer in between.

        Raises:
            KeyFileError: the file is corrupt, and is left as it is; or there are too many keys.
            OSError: the folder cannot be written, or the lock is not to be had.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")):
            changed = tuple(edit(self.read()))
            if len(changed) > MAX_KEYS:
                raise KeyFileError(
                    f"{FILE_NAME}: {len(changed)} keys; at most {MAX_KEYS} are kept: use another "
                    "state_dir, or remove revoked ones from the file"
                )
            document = {"format": 1, "keys": [record.model_dump() for record in changed]}
            content = json.dumps(document, indent=1).encode() + b"\n"
            write_atomically(self.path, content, _OwnersOnly())
        return changed

    def replace(self, records: tuple[KeyRecord, ...]) -> None:
        """Make these the records, whatever there was; nothing is written if they are there."""
        try:
            if self.read() == records:
                return
        except KeyFileError:
            self.path.unlink(missing_ok=True)  # `change` would leave it as it is
        self.change(lambda _: records)


class _OwnersOnly(FileCalls):
    def write(self, file: Path, content: bytes) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
        with open(descriptor, "wb") as opened:
            opened.write(content)


def is_another_file(records: Iterable[KeyRecord], known: Iterable[KeyRecord]) -> bool:
    """Return whether `records` are no later or earlier state of the file that held `known`: keys
    are revoked, not removed, so one of them at least would be in both."""
    ids = {record.id for record in known}
    return bool(ids) and ids.isdisjoint(record.id for record in records)


def check_not_lost(state_path: Path) -> None:
    """Refuse to begin a new key file where this node has followed one that is gone: routers would
    take it for the old one's successor, and nobody's key would be valid.

    Raises:
        KeyFileError: names the copy that is to be removed if a new beginning is meant.
    """
    store, kept = KeyStore(state_path), kept_keys(state_path)
    known = kept_records(state_path)
    if known and store.etag() is None:
        raise KeyFileError(
            f"{store.path}: is gone, and {len(known)} keys were followed from it here: put the "
            f"state back; to begin again without them, remove {kept.path} on every node"
        )


def kept_keys(state_path: Path) -> KeyStore:
    """Open this node's copy of the keys, for the time in which the state directory is away."""
    return KeyStore(last_good_folder(str(state_path)))


def kept_records(state_path: Path) -> tuple[KeyRecord, ...]:
    """Return what this node's copy holds; nothing where there is none that can be read."""
    with contextlib.suppress(KeyFileError):
        return kept_keys(state_path).read()
    return ()


def _parsed(content: bytes) -> tuple[KeyRecord, ...]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise KeyFileError(f"{FILE_NAME}: is cut off, or is not JSON{place}") from None
    try:
        records = _KeyFile.model_validate(document).keys
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        lines = [f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}" for p in problems[:5]]
        raise KeyFileError(f"{FILE_NAME}: {'; '.join(lines)}") from None
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        raise KeyFileError(f"{FILE_NAME}: an id is there twice; keep one of each")
    return tuple(records)
