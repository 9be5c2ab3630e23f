"""What a replica does to its process. In a separate one: it changes the whole interpreter."""

import logging
import subprocess
import sys
import threading

import pytest

from deployments import replica

PROGRAM = """
import gc, sys
from deployments.interpreter import tune_interpreter
tune_interpreter()
print(sys.getswitchinterval(), gc.get_freeze_count() > 1000, gc.isenabled())
"""


def test_turns_are_short_and_what_is_loaded_is_left_out_of_collections() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == ["0.0005", "True", "True"]


CONCURRENT_COMPILE = """
import ast, gc, sys, threading
from deployments.interpreter import tune_interpreter
tune_interpreter()
source = open(ast.__file__).read()
failed = []

class Garbage:
    def __init__(self):
        self.me = self
    def __del__(self):
        for _ in range(200):
            pass

def work():
    for _ in range(6):
        for _ in range(300):
            Garbage()
        try:
            compile(source, "x", "exec")
        except BaseException as error:
            failed.append(repr(error))

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failed)
"""


def test_modules_are_compiled_rightly_in_several_threads() -> None:
    """CPython 3.11.7's `ast.parse` fails now and then when a garbage collection switches threads in
    the middle of it ("AST constructor recursion depth mismatch", gh-106905), whatever the switch
    interval is. What a replica does in its threads, importing modules, uses `compile`, which does
    not."""
    run = subprocess.run(
        [sys.executable, "-c", CONCURRENT_COMPILE], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_a_full_disk_does_not_end_the_writing_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_WRITTEN_WITHIN_S", 0.01)
    written = threading.Event()

    class Full(logging.NullHandler):
        num_tries = 0

        def flush(self) -> None:
            self.num_tries += 1
            if self.num_tries < 3:
                raise OSError(28, "No space left on device")
            written.set()

    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [Full()])
    replica._flusher.__wrapped__()
    assert written.wait(5)
