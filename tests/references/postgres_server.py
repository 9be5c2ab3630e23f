"""A PostgreSQL server with pgvector for a test: Debian's packages, or those of a Python package."""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN_VARIABLE = "POLYCLINIC_TEST_POSTGRES"  # a folder with initdb and pg_ctl


def binaries() -> Path:
    """Return the folder of a server's programs; skips the test where there are none."""
    given = os.environ.get(BIN_VARIABLE)
    folders = [Path(given)] if given else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if spec := importlib.util.find_spec("pgserver"):
        folders.append(Path(str(spec.origin)).parent / "pginstall" / "bin")
    for folder in folders:
        if (folder / "initdb").is_file() and _has_vectors(folder):
            return folder
    pytest.skip(
        "no PostgreSQL with pgvector: apt-get install postgresql postgresql-NN-pgvector (or pip "
        f"install pgserver), or name its folder in {BIN_VARIABLE}"
    )


def _has_vectors(folder: Path) -> bool:
    shared = subprocess.run(
        [folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (Path(shared) / "extension" / "vector.control").is_file()


class Server:
    """A server on 127.0.0.1 with a folder of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"postgresql://clinic:secret@127.0.0.1:{port}/postgres"
        self._folder, self._port, self._bin = folder, port, binaries()
        self._user = _user() if os.geteuid() == 0 else None  # the server refuses root
        if self._user:
            shutil.chown(folder, self._user)
        password = folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        named = ("-U", "clinic", "--pwfile", password, "-A", "scram-sha-256", "-E", "UTF8")
        self._run("initdb", *named, "--no-sync", "--locale", "C.UTF-8")

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self._folder}"
        self._run("pg_ctl", "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *more: object) -> None:
        done = subprocess.run(
            [self._bin / program, "-D", self._folder / "data", *map(str, more)],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def running() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = Server(folder, port)
    server.start()
    try:
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
