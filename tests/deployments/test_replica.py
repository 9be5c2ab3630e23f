"""In a process of its own: it changes the whole interpreter."""

import subprocess
import sys

PROGRAM = """
import gc, sys
from deployments.replica import tune_interpreter
tune_interpreter()
print(sys.getswitchinterval(), gc.get_freeze_count() > 1000, gc.isenabled())
"""


def test_turns_are_short_and_what_is_loaded_is_left_out_of_collections() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == ["0.0005", "True", "True"]
