"""Settings of Python itself that every process of the service takes."""

import gc
import sys

_SWITCH_INTERVAL_S = 0.0005


def tune_interpreter() -> None:
    """Keep Python's own pauses short, once everything is loaded in a replica's process.

    Reading or checking an adapter while answers are generated is Python too, and the interpreter
    changes threads every 5 ms by default: two or three steps of a GPU, each time that the engine's
    thread comes back from the device. A full garbage collection goes through every object of torch,
    transformers and Ray, which takes 0.1 to 1 s and stops all threads; so what exists now is left
    out of later collections.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
