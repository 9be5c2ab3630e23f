"""Operate the adapters of a running clinic.

    python -m adapters ls
    python -m adapters add dermatology --source /srv/new/dermatology --version 3
    python -m adapters add dermatology --source org/name --version 4 --canary 0.1
    python -m adapters update dermatology --promote
    python -m adapters update dermatology --pin       # it always stays on the device
    python -m adapters rollback dermatology
    python -m adapters rm dermatology
    python -m adapters verify            # does every replica hold what the catalogue says?
    python -m adapters verify FOLDER     # would this adapter be taken? (offline)

The address is --url or POLYCLINIC_URL, an admin key is read from POLYCLINIC_ADMIN_KEY. A change
returns when every replica has it. Exit code: 0 done, 1 made but not confirmed everywhere (or
`verify` found something), 2 refused.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.client import AdminClient, ApiRefused
from adapters.prompting import PROMPT_FORMATS
from adapters.validation import MAX_RANK
from adapters.verify import verify_folder

URL_VARIABLE = "POLYCLINIC_URL"
KEY_VARIABLE = "POLYCLINIC_ADMIN_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"


def main(
    argv: Sequence[str] | None = None,
    *,
    make_client: Callable[[str, str | None], AdminClient] = AdminClient,
) -> int:
    args = _parser().parse_args(argv)
    client = make_client(args.url, os.environ.get(KEY_VARIABLE))
    try:
        status = int(args.run(args, client))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ApiRefused as error:
        for problem in error.problems:
            print(f"adapters: {problem}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default=os.environ.get(URL_VARIABLE, DEFAULT_URL))
    commands = parser.add_subparsers(required=True, metavar="command")

    listing = commands.add_parser("ls", help="every adapter, and what each replica holds")
    listing.add_argument("--json", action="store_true", help="the API's answer")
    listing.set_defaults(run=_ls)

    # Names of the API's fields; what is not given is not sent.
    add = commands.add_parser(
        "add", help="a new adapter, or a new version of one", argument_default=argparse.SUPPRESS
    )
    add.add_argument("name")
    add.add_argument("--source", required=True, help="folder, org/name of the hub, or URL")
    add.add_argument("--version", required=True)
    add.add_argument("--specialty", help="needed for a new adapter")
    add.add_argument(
        "--prompt_format",
        choices=PROMPT_FORMATS,
        help="that it was trained with; default: what its files record, else the base model's",
    )
    how = add.add_mutually_exclusive_group()
    _share(how, help="try it out on these sessions")
    _constant(how, "--disabled", "state", "disabled", help="keep it, and do not serve it yet")
    _constant(add, "--pin", "pinned", True, help="it always stays on the device")
    add.set_defaults(run=_add)

    update = commands.add_parser(
        "update", help="change what is in service", argument_default=argparse.SUPPRESS
    )
    update.add_argument("name")
    what = update.add_mutually_exclusive_group(required=True)
    _constant(what, "--promote", "promote", True, help="the version on trial takes over")
    what.add_argument("--version", help="let this one serve")
    _share(what, help="0 ends the trial")
    _constant(what, "--disable", "state", "disabled")
    _constant(what, "--activate", "state", "active")
    _constant(what, "--pin", "pinned", True, help="it always stays on the device")
    _constant(what, "--unpin", "pinned", False)
    update.add_argument("--canary_version", help="with --canary: which version to try out")
    update.add_argument("--reason", help="with --disable")
    update.set_defaults(run=lambda args, client: _changed(client.update(**_fields(args))))

    rollback = commands.add_parser("rollback", help="end a trial, or return to the version before")
    rollback.add_argument("name")
    rollback.set_defaults(run=lambda args, client: _changed(client.roll_back(args.name)))
    rm = commands.add_parser("rm", help="take an adapter out")
    rm.add_argument("name")
    rm.set_defaults(run=lambda args, client: _changed(client.remove(args.name)))

    verify = commands.add_parser("verify", help="ask every replica, or look at a folder")
    verify.add_argument("folder", nargs="?", type=Path)
    verify.add_argument("--base_model", help="with a folder: the base it must be trained on")
    verify.add_argument(
        "--max_rank", type=int, default=MAX_RANK, help="with a folder: engine.max_adapter_rank"
    )
    verify.set_defaults(run=_verify)
    return parser


def _constant(parser: Any, flag: str, field: str, value: Any, **options: Any) -> None:
    parser.add_argument(flag, action="store_const", dest=field, const=value, **options)


def _share(parser: Any, **options: Any) -> None:
    parser.add_argument("--canary", dest="canary_weight", type=float, metavar="SHARE", **options)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("url", "run")}


def _ls(args: argparse.Namespace, client: AdminClient) -> int:
    listed = client.listed()
    if args.json:
        print(json.dumps(listed, indent=1))
        return 0
    print(f"revision {listed['revision']}, {len(listed['replicas'])} model replicas")
    for adapter in listed["adapters"]:
        canary = adapter["canary"]
        trial = f", {canary['version']} on trial for {canary['weight']:.0%}" if canary else ""
        print(f"{adapter['name']}: {adapter['specialty']}, {adapter['state']}, ", end="")
        pinned = ", pinned" if adapter["pinned"] else ""
        print(f"version {adapter['version']}{trial}{pinned}{_prompt_formats(adapter)}")
        for replica, held in adapter["replicas"].items():
            print(f"  {replica}: {_held(held)}")
    return _unconfirmed(listed["unconfirmed"])


def _prompt_formats(adapter: Mapping[str, Any]) -> str:
    """Return the formats of the versions in service, if they are not the base model's."""
    serving = (adapter["version"], (adapter["canary"] or {}).get("version"))
    versions = adapter.get("versions", [])  # and the formats: an older server sends neither
    found = {v.get("prompt_format") for v in versions if v["version"] in serving}
    named = sorted(found - {None})
    return f", prompt format {' and '.join(named)}" if named else ""


def _held(held: Mapping[str, Mapping[str, Any]]) -> str:
    places = {"device": "on the device", "host": "in memory", "disk": "on disk"}
    shown = []
    for version, state in held.items():
        problem = f" ({state['error']})" if state["error"] else ""
        shown.append(f"{version} {places[state['tier']]}, {state['answers']} answers{problem}")
    return "; ".join(shown) or "nothing"


def _add(args: argparse.Namespace, client: AdminClient) -> int:
    fields = _fields(args)
    if "canary_weight" in fields:
        fields["state"] = "canary"
    if "://" not in args.source and Path(args.source).is_dir():  # the server's folder is another
        fields["source"] = os.path.abspath(args.source)
    return _changed(client.add(**fields))


def _changed(outcome: Mapping[str, Any]) -> int:
    adapter = outcome["adapter"]
    what = f"{adapter['state']}, version {adapter['version']}" if adapter else "removed"
    print(f"revision {outcome['revision']}: {what}; {outcome['replicas']} model replicas")
    return _unconfirmed(outcome["unconfirmed"])


def _unconfirmed(replicas: Mapping[str, str]) -> int:
    for replica, why in replicas.items():
        print(f"adapters: not confirmed by {replica}: {why}", file=sys.stderr)
    return 1 if replicas else 0


def _verify(args: argparse.Namespace, client: AdminClient) -> int:
    if args.folder is None:
        listed = client.listed()
        print(f"revision {listed['revision']}: {len(listed['replicas'])} model replicas answered")
        return _unconfirmed(listed["unconfirmed"])
    return verify_folder(args.folder, args.base_model, args.max_rank)


if __name__ == "__main__":
    raise SystemExit(main())
