"""The command line for keys: what it prints, and what it never prints."""

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.api.access.api_keys import KeyStore, KeyTable, kept_keys
from deployments.keys import main


def run(capsys: Any, folder: Path, *command: str) -> tuple[int, str, str]:
    code = main(["--state_dir", str(folder), *command])
    captured = capsys.readouterr()
    records = KeyStore(folder).read() if code == 0 else ()
    for record in records:
        assert record.sha256 not in captured.out + captured.err
    return code, captured.out, captured.err


def test_create_prints_a_key_that_works_and_list_does_not_show_it(
    tmp_path: Path, capsys: Any
) -> None:
    code, out, _ = run(
        capsys, tmp_path, "create", "--name", "ward 3", "--requests_per_minute", "60"
    )
    key = out.strip()
    (record,) = KeyStore(tmp_path).read()
    assert (code, KeyTable([record]).find(key)) == (0, record)
    assert (record.kind, record.name, record.requests_per_minute) == ("user", "ward 3", 60)
    code, out, _ = run(capsys, tmp_path, "list")
    assert code == 0
    assert out.splitlines()[1].split()[:2] == [record.id, "user"]
    assert "ward 3" in out
    assert key not in out


def test_revoke_and_rotate(tmp_path: Path, capsys: Any) -> None:
    _, first, _ = run(capsys, tmp_path, "create", "--kind", "admin", "--tokens_per_minute", "9")
    old = KeyStore(tmp_path).read()[0]
    code, second, _ = run(capsys, tmp_path, "rotate", old.id)
    table = KeyTable(KeyStore(tmp_path).read())
    new = table.find(second.strip())
    assert code == 0
    assert new is not None
    assert (new.kind, new.tokens_per_minute, new.id != old.id) == ("admin", 9, True)
    assert table.find(first.strip()) is None
    assert run(capsys, tmp_path, "revoke", new.id)[0] == 0
    assert len(KeyTable(KeyStore(tmp_path).read())) == 0
    code, _, err = run(capsys, tmp_path, "revoke", new.id)
    assert code == 2
    assert "was revoked already" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()])
@pytest.mark.parametrize("what", ["create", "rotate"])
def test_a_key_that_nobody_could_read_is_not_kept_and_the_old_one_stays(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, what: str, error: OSError
) -> None:
    """`rotate ID > FILE` on a full disk would lock the last admin out."""

    class Full(io.StringIO):
        def flush(self) -> None:
            raise error

    _, key, _ = run(capsys, tmp_path, "create", "--kind", "admin")
    (old,) = KeyStore(tmp_path).read()
    monkeypatch.setattr("sys.stdout", Full())
    assert main(["--state_dir", str(tmp_path), what, *([old.id] if what == "rotate" else [])]) == 2
    assert KeyTable(KeyStore(tmp_path).read()).find(key.strip()) == old
    assert KeyStore(tmp_path).read() == (old,)


def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, tmp_path, "revoke", "0" * 12)
    assert (code, out) == (2, "")
    assert "no key has the id '000000000000'; there are no active keys" in err
    code, out, err = run(capsys, tmp_path, "create", "--requests_per_minute", "0")
    assert (code, out) == (2, "")
    assert "--requests_per_minute" in err
    (tmp_path / "keys.json").write_text("{")
    code, _, err = run(capsys, tmp_path, "create")
    assert (code, (tmp_path / "keys.json").read_text()) == (2, "{")
    assert "cut off" in err


def test_the_folder_is_that_of_the_configuration(tmp_path: Path, capsys: Any) -> None:
    state = tmp_path / "state"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"args": {"state_dir": str(state)}}]}))
    assert main(["--config", str(config), "create"]) == 0
    assert len(KeyStore(state).read()) == 1
    config.write_text(yaml.safe_dump({"applications": [{"args": {"state_dir": "relative"}}]}))
    assert main(["--config", str(config), "create"]) == 2
    assert "an absolute path is expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["create"], ["list"], ["revoke", "0" * 12], ["rotate", "0" * 12]]
)
def test_keys_that_are_gone_are_not_begun_anew(
    tmp_path: Path, capsys: Any, command: list[str]
) -> None:
    state = tmp_path / "state"
    assert run(capsys, state, "create")[0] == 0
    kept = kept_keys(state)
    kept.replace(KeyStore(state).read())  # as a router on this node does
    state.rename(tmp_path / "away")
    code, out, err = run(capsys, state, *command)
    assert (code, out, state.exists()) == (2, "", False)
    assert "is gone, and 1 keys were followed from it here: put the state back" in err
    assert f"remove {kept.path} on every node" in err
    kept.path.unlink()
    assert run(capsys, state, "create")[0] == 0
