"""API keys: how one looks, how it is kept, and how a presented one is recognised.

A key is `pc-ID-SECRET`: ID is public (12 hex digits, it names the key in lists and limits), SECRET
is 32 random bytes. What is kept is the SHA-256 of the whole key. A slow, salted hash (bcrypt,
Argon2) protects passwords, which can be guessed: 256 random bits cannot, however fast the hash, so
it would only cost every request a tenth of a second.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

KeyKind = Literal["user", "admin"]

_SHAPE = re.compile(r"pc-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_NUM_SECRET_BYTES = 32
# What an unknown id is compared with, so that it takes as long as a known one.
_NO_HASH = "0" * 64


class KeyRecord(BaseModel):
    """One key as the key file keeps it. `None` limits: the router's own default applies."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    kind: KeyKind
    name: Annotated[str, Field(max_length=80)] = ""
    created: Annotated[str, Field(max_length=40)]  # ISO 8601, UTC
    revoked: Annotated[str, Field(max_length=40)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def is_active(self) -> bool:
        return self.revoked is None


class KeyTable:
    """The keys in force. Never changed; a new file is a new table."""

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
        """The active key that `presented` is, or None. The secret is compared in constant time."""
        shaped = _SHAPE.fullmatch(presented)
        if shaped is None:
            return None
        record = self._active.get(shaped.group(1))
        expected = record.sha256 if record else _NO_HASH
        return record if hmac.compare_digest(hash_key(presented), expected) else None


def new_key(
    kind: KeyKind,
    *,
    name: str = "",
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    max_concurrent: int | None = None,
) -> tuple[str, KeyRecord]:
    """(the key, shown to its owner once; the record to keep).

    Raises:
        pydantic.ValidationError: a limit or the name is out of bounds.
    """
    key_id = secrets.token_hex(6)
    key = f"pc-{key_id}-{secrets.token_urlsafe(_NUM_SECRET_BYTES)}"
    record = KeyRecord(
        id=key_id,
        sha256=hash_key(key),
        kind=kind,
        name=name,
        created=now(),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
    )
    return key, record


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
