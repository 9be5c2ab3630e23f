"""What `serve run` needs of the machine: free ports, no stale cluster file, disk space.

Each check returns its problems, one line for each; the notes are worth a line and no more.

Whether a server may be started where others can reach it: the preflight asks.
"""

import ipaddress
import os
import shutil
import socket
from pathlib import Path

from deployments.api.api_keys import KeyFileError, KeyStore, KeyTable
from deployments.settings import Settings

DASHBOARD_PORT = 8265
MIN_FREE_BYTES = 2 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30


def check_machine(host: str, port: int) -> list[str]:
    """Every problem of this machine for a server on `host`:`port`."""
    return [
        *check_port(host, port, "http_options.port", "choose another port, or end that server"),
        *check_port(
            "127.0.0.1",
            DASHBOARD_PORT,
            "Ray's dashboard",
            "another Ray cluster may run on this machine: end it first",
        ),
        *check_cluster_file(cluster_file()),
        *check_disk(ray_temp_dir(), "Ray's temporary folder"),
        *check_disk(_cache_dir(), "the cache of base models"),
    ]


def machine_notes() -> list[str]:
    """What an operator should know, though Serve can start."""
    notes = []
    memory = available_memory_bytes()
    if memory is not None:
        short = ": less than the 4 GiB of the default model" if memory < MIN_MEMORY_BYTES else ""
        notes.append(f"{memory / 2**30:.1f} GiB of memory available{short}")
    address = _read(cluster_file())
    if address and answers(address):
        notes.append(f"another Ray cluster runs at {address}; ours will be a second one")
    return notes


def ray_temp_dir() -> Path:
    """Where Ray keeps sessions and logs, by Ray's own rules."""
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(given) / "ray"


def cluster_file() -> Path:
    """Where `ray start` notes the address of the cluster that it started."""
    return ray_temp_dir() / "ray_current_cluster"


def connectable(host: str) -> str:
    """The address at which a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def check_port(host: str, port: int, what: str, mend: str) -> list[str]:
    """A problem when something listens on the port, also if it shares it (SO_REUSEPORT)."""
    if answers(f"{connectable(host)}:{port}", timeout_s=1):
        return [f"{what}: {host}:{port} is in use: {mend}"]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held up by TIME_WAIT
        try:
            probe.bind((host, port))
        except OSError as error:
            return [f"{what}: {host}:{port} cannot be bound ({error.strerror}): {mend}"]
    return []


def check_cluster_file(file: Path) -> list[str]:
    """A problem when the file names a cluster that does not answer: Ray would wait for it."""
    address = _read(file)
    if address is None or answers(address):
        return []
    return [
        f"{file}: names a local cluster ({address!r}) that does not answer, and Ray would "
        f"wait for it: delete the file (rm {file})"
    ]


def answers(address: str, timeout_s: float = 2) -> bool:
    """Whether something accepts a TCP connection at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def check_disk(folder: Path, what: str) -> list[str]:
    """A problem when less than MIN_FREE_BYTES are free."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= MIN_FREE_BYTES:
        return []
    return [
        f"{what} ({there}): {free // 2**20} MiB free, {MIN_FREE_BYTES // 2**20} MiB are needed: "
        "free some space"
    ]


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """None where the system does not tell (it is not Linux)."""
    for line in (_read(meminfo) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cache_dir() -> Path:
    from adapters.base_models import default_cache_dir

    return default_cache_dir()


def exposure_problems(host: str, settings: Settings) -> list[str]:
    """A server that anybody may use, on an address that anybody may reach. Looks at no file."""
    auth = settings.auth
    if auth.mode == "keys" or auth.allow_open or is_loopback(host):
        return []
    return [
        f"auth.mode: 'open' on http_options.host '{host}', which is not loopback: whoever reaches "
        "this machine could ask without a key. Set args.auth.mode: keys and make one with "
        "python -m deployments.keys create; or http_options.host: 127.0.0.1; or, behind a gateway "
        "that checks who asks, args.auth.allow_open: true"
    ]


def key_file_problems(settings: Settings) -> list[str]:
    """With mode: keys, a key file that lets nobody in."""
    if settings.auth.mode == "open":
        return []
    store = KeyStore(settings.state_path)
    try:
        table = KeyTable(store.read())
    except KeyFileError as error:
        return [f"auth.mode: 'keys', and {store.path.parent} has a bad key file: {error}"]
    if len(table):
        return []
    return [
        f"auth.mode: 'keys', and {store.path} has no active key, so nobody could ask: make one "
        "with python -m deployments.keys create"
    ]


def is_loopback(host: str) -> bool:
    """`localhost`, 127.0.0.0/8 or ::1; a name that would have to be looked up is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
