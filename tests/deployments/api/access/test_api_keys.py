"""Keys: one is recognised, everything that is almost one is not."""

import pytest
from pydantic import ValidationError

from deployments.api.access import api_keys
from deployments.api.access.api_keys import KeyTable, hash_key, new_key, now


def test_a_key_is_recognised_and_its_secret_is_not_kept() -> None:
    key, record = new_key("user", name="ward 3", requests_per_minute=60)
    other, other_record = new_key("admin")
    table = KeyTable([record, other_record])
    assert table.find(key) == record
    assert table.find(other) == other_record
    assert (len(table), table.num_admins) == (2, 1)
    secret = key.split("-", 2)[2]
    assert secret not in record.model_dump_json()
    assert record.sha256 not in repr(record)
    assert len(secret) == 43  # 32 bytes


def test_what_is_almost_a_key_is_refused() -> None:
    key, record = new_key("user")
    table = KeyTable([record])
    for position in range(len(key)):
        changed = "B" if key[position] == "A" else "A"
        assert table.find(key[:position] + changed + key[position + 1 :]) is None
    for wrong in ("", key + " ", key[:-1], key + "A", key.upper(), f"{key}\n", record.sha256, "é"):
        assert table.find(wrong) is None


def test_a_revoked_key_is_refused() -> None:
    key, record = new_key("user")
    assert KeyTable([record.model_copy(update={"revoked": now()})]).find(key) is None


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def spy(presented: str, expected: str) -> bool:
        compared.append((presented, expected))
        return presented == expected

    monkeypatch.setattr(api_keys.hmac, "compare_digest", spy)
    key, record = new_key("user")
    stranger, _ = new_key("user")
    table = KeyTable([record])
    assert table.find(key) == record
    assert table.find(stranger) is None  # an unknown id is compared as well
    assert [presented for presented, _ in compared] == [hash_key(key), hash_key(stranger)]


def test_limits_have_bounds() -> None:
    with pytest.raises(ValidationError, match="requests_per_minute"):
        new_key("user", requests_per_minute=0)
