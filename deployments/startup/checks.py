"""What Serve needs of the machine: a free port, no stale cluster file, disk space, a state folder.

Each check returns its problems, one line for each.
"""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from deployments.settings import Settings, project_path

MIN_FREE_BYTES = 2 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30


def check_machine(host: str, port: int) -> list[str]:
    """Return every problem of this machine for a server on `host`:`port`."""
    return [
        *check_port(host, port, "http_options.port", "choose another port, or end that server"),
        *check_cluster_file(cluster_file()),
        *check_disk(ray_temp_dir(), "Ray's temporary folder"),
    ]


def check_folders(settings: Settings) -> list[str]:
    """Return the problems of the folders that the application writes to on this machine."""
    problems = []
    if settings.auth.mode == "keys" or "://" not in (settings.state_dir or ""):
        problems += check_state_folder(settings.state_path)
    if not project_path(settings.base_model_or_dir).is_dir():  # it may have to be downloaded
        problems += check_disk(_cache_dir(), "the cache of base models")
    return problems


def check_state_folder(folder: Path) -> list[str]:
    """Return a problem if files cannot be written in `folder`, or where it would be made."""
    there = _nearest_that_exists(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return []
    except OSError as error:
        return [
            f"args.state_dir: {folder} cannot be written ({error.strerror}: {there}): make it "
            "writable for this user, or set state_dir to a folder that is"
        ]


def machine_notes() -> list[str]:
    """Return what an operator should know although Serve can start."""
    notes = []
    memory = psutil.virtual_memory().available
    short = ": less than the 4 GiB of the default model" if memory < MIN_MEMORY_BYTES else ""
    notes.append(f"{memory / 2**30:.1f} GiB of memory available{short}")
    address = _read(cluster_file())
    if address and answers(address):
        notes.append(f"another Ray cluster runs at {address}; ours will be a second one")
    return notes


def ray_temp_dir() -> Path:
    """Return where Ray keeps sessions and logs, by Ray's rules."""
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(given) / "ray"


def cluster_file() -> Path:
    """Return the file in which `ray start` notes the address of its cluster."""
    return ray_temp_dir() / "ray_current_cluster"


def connectable(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def check_port(host: str, port: int, what: str, hint: str) -> list[str]:
    """Return a problem if something listens on the port, even if it shares it (SO_REUSEPORT)."""
    if answers(f"{connectable(host)}:{port}", timeout_s=1):
        return [f"{what}: {host}:{port} is in use: {hint}"]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held up by TIME_WAIT
        try:
            probe.bind((host, port))
        except OSError as error:
            return [f"{what}: {host}:{port} cannot be bound ({error.strerror}): {hint}"]
    return []


def check_cluster_file(file: Path) -> list[str]:
    """Return a problem if the file names a cluster that does not answer: Ray would wait for it."""
    address = _read(file)
    if address is None or answers(address):
        return []
    return [
        f"{file}: names a local cluster ({address!r}) that does not answer, and Ray would "
        f"wait for it: delete the file (rm {file})"
    ]


def answers(address: str, timeout_s: float = 2) -> bool:
    """Return whether something accepts a TCP connection at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def check_disk(folder: Path, what: str) -> list[str]:
    """Return a problem if less than MIN_FREE_BYTES are free."""
    there = _nearest_that_exists(folder)
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return [f"{what} ({there}): cannot be looked at ({error.strerror}): mend or change it"]
    if free >= MIN_FREE_BYTES:
        return []
    return [
        f"{what} ({there}): {free // 2**20} MiB free, {MIN_FREE_BYTES // 2**20} MiB are needed: "
        "free some space"
    ]


def _nearest_that_exists(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no right to look, a file server that is gone: whoever uses it says why
        return True


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cache_dir() -> Path:
    from adapters.bases.models import default_cache_dir

    return default_cache_dir()
