"""Create, list, revoke and rotate API keys. Running routers follow within 2 s.

    python -m deployments.keys create --name "ward 3" --requests_per_minute 60
    python -m deployments.keys create --kind admin
    python -m deployments.keys list
    python -m deployments.keys revoke 1f0c2a9b7d3e
    python -m deployments.keys rotate 1f0c2a9b7d3e    # a new key with the same settings

The keys are in the state_dir of serve_config.yaml (--config), or in --state_dir. A key is printed
once, alone on stdout; only its hash is stored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from deployments.api.access.api_keys import (
    KeyFileError,
    KeyRecord,
    KeyStore,
    check_not_lost,
    new_key,
    now,
)
from deployments.settings import PROJECT_ROOT, parse_settings
from deployments.strict_model import SettingsError

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent")


class KeyCommandError(Exception):
    """The command cannot be done; the message says why, and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        state_path = _state_path(args)
        check_not_lost(state_path)
        args.run(KeyStore(state_path), args)
    except (KeyCommandError, KeyFileError, SettingsError, OSError) as error:
        print(f"keys: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deployments.keys", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, default=PROJECT_ROOT / "serve_config.yaml")
    where.add_argument("--state_dir", type=Path, help="instead of the file's args.state_dir")
    commands = parser.add_subparsers(dest="what", required=True)
    create = commands.add_parser("create", help="make a key, printed once")
    create.set_defaults(run=_create)
    create.add_argument("--kind", choices=["user", "admin"], default="user")
    create.add_argument("--name", default="", help="whose key it is; shown by list")
    for limit in _LIMITS:
        create.add_argument(f"--{limit}", type=int, help="default: the router's")
    commands.add_parser("list", help="list all keys, without secrets").set_defaults(run=_list)
    for name, run, text in (
        ("revoke", _revoke, "make a key invalid for good"),
        ("rotate", _rotate, "revoke a key, and print a new one with the same settings"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("id", help="12 hex digits, as list shows them")
    return parser


def _state_path(args: argparse.Namespace) -> Path:
    if args.state_dir is not None:
        chosen: Path = args.state_dir.resolve()
        return chosen
    from deployments.startup.config_file import args_of, read_config

    content, problems = read_config(args.config)
    if problems:
        raise KeyCommandError("; ".join(problems))
    return parse_settings(args_of(content)).state_path


def _create(store: KeyStore, args: argparse.Namespace) -> None:
    try:
        key, record = new_key(
            args.kind, name=args.name, **{limit: getattr(args, limit) for limit in _LIMITS}
        )
    except ValidationError as error:
        problems = [f"--{p['loc'][0]}: {p['msg']} (got {p['input']!r})" for p in error.errors()]
        raise KeyCommandError("; ".join(problems)) from None

    def edit(records: tuple[KeyRecord, ...]) -> list[KeyRecord]:
        _show_once(store, key, record)
        return [*records, record]

    store.change(edit)


def _list(store: KeyStore, args: argparse.Namespace) -> None:
    rows: list[tuple[str, ...]] = [
        ("id", "kind", "created", "revoked", "req/min", "tok/min", "at once", "name")
    ]
    rows += [
        (
            record.id,
            record.kind,
            record.created,
            record.revoked or "-",
            *(str(getattr(record, limit) or "-") for limit in _LIMITS),
            ascii(record.name)[1:-1] or "-",
        )
        for record in store.read()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _revoke(store: KeyStore, args: argparse.Namespace) -> None:
    store.change(lambda records: _revoked(records, args.id))
    print(f"keys: {args.id} is revoked; routers follow within 2 s", file=sys.stderr)


def _rotate(store: KeyStore, args: argparse.Namespace) -> None:
    def edit(records: tuple[KeyRecord, ...]) -> list[KeyRecord]:
        old = _active(records, args.id)
        limits = {limit: getattr(old, limit) for limit in _LIMITS}
        key, record = new_key(old.kind, name=old.name, **limits)
        _show_once(store, key, record)
        return [*_revoked(records, args.id), record]

    store.change(edit)
    print(f"keys: {args.id} is revoked", file=sys.stderr)


def _revoked(records: tuple[KeyRecord, ...], key_id: str) -> list[KeyRecord]:
    ended = _active(records, key_id).model_copy(update={"revoked": now()})
    return [ended if record.id == key_id else record for record in records]


def _active(records: tuple[KeyRecord, ...], key_id: str) -> KeyRecord:
    for record in records:
        if record.id != key_id:
            continue
        if record.is_active:
            return record
        raise KeyCommandError(f"key {key_id} was revoked already, on {record.revoked}")
    known = [record.id for record in records if record.is_active]
    shown = f"active: {', '.join(known)}" if known else "there are no active keys"
    raise KeyCommandError(f"no key has the id {ascii(key_id[:40])}; {shown}")


def _show_once(store: KeyStore, key: str, record: KeyRecord) -> None:
    """Print the key before it is kept: where nobody can read it (a full disk, a closed pipe), the
    keys stay as they are."""
    print(
        f"keys: {record.kind} key {record.id} for {store.path}; it is shown this once:",
        file=sys.stderr,
    )
    print(key, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
