"""Counts of work that do not depend on how fast a machine is."""

import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host waits for a value of the device. In inference mode the last two are seen, not the first.
SYNCHRONISES = (
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"),
    *("aten::item", "aten::is_nonzero"),
)


class Operators(TorchDispatchMode):
    """Counts the operators that torch is asked for inside a `with`, by name, and the tensors that
    they allocate: results that lie in the memory of none of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.num_allocated = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts[func.name()] += 1
        result = func(*args, **(kwargs or {}))
        self.num_allocated += len(_memories(result) - _memories((args, kwargs)))
        return result

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def num_synchronising(self) -> int:
        return sum(self.counts[name] for name in SYNCHRONISES)


def _memories(values: Any) -> set[int]:
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    strided = [leaf for leaf in leaves if leaf.layout == torch.strided]  # others: packed weights
    return {tensor.untyped_storage().data_ptr() for tensor in strided}


class Calls:
    """Counts the calls of Python functions on this thread inside a `with`."""

    def __init__(self) -> None:
        self.total = 0

    def __enter__(self) -> "Calls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        self.total += event == "call"


def calls_of(work: Callable[[], object]) -> int:
    with Calls() as calls:
        work()
    return calls.total


def blocks_kept_by(work: Callable[[], object]) -> int:
    """Return by how many blocks of memory Python holds more after `work`."""
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    return sys.getallocatedblocks() - before


# A module counts once, whether its source, its cached bytecode or both were opened: a cache may be
# new, and is then written under a name with a number behind it.
_REPORT = """
import importlib.util
import sys
opened = set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.add(arguments[0])
def source(path):
    stem, cached, _ = path.partition(".pyc")
    return importlib.util.source_from_cache(stem + cached) if cached else path
# Ray and requests import these where they are there: the long suite's clients bring them.
sys.modules.update(dict.fromkeys(("pandas", "chardet")))
sys.addaudithook(note)
{statement}
modules = [name for name, module in sys.modules.items() if module is not None]
print(len(modules), len({{source(path) for path in opened if ".dist-info" not in path}}))
"""


def modules_and_files(statement: str) -> tuple[int, int]:
    """Return how many modules a fresh interpreter holds after `statement`, and how many different
    files it has opened, but for what installed packages say of themselves."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    )
    modules, files = done.stdout.split()[-2:]
    return int(modules), int(files)
