"""Tiny models for the whole session: built once, never downloaded."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before torch is imported. There is a worker for each core: with a pool of threads in each
    # of them, the threads spin for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before anything starts a process: the copies of one run are not those of the next.
os.environ["POLYCLINIC_LAST_GOOD_DIR"] = tempfile.mkdtemp(prefix="polyclinic-last-good-")
atexit.register(shutil.rmtree, os.environ["POLYCLINIC_LAST_GOOD_DIR"], ignore_errors=True)

TINY_ADAPTERS = {"derm": "dermatology", "cardio": "cardiology"}


def pytest_configure() -> None:
    gc.disable()  # until pytest_collection_finish


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers get the files with slow tests first, then those with many: whoever begins a long one
    at the end keeps the others waiting."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    num_tests = Counter(item.path for item in items)
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-num_slow[item.path], -num_tests[item.path]))


def pytest_collection_finish() -> None:
    """No garbage collection goes through what is imported by now: a million objects."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def restored_interpreter() -> Iterator[None]:
    """Replicas tune the interpreter of this process as they do in production; each module undoes
    it, since a garbage collection would never reach what hundreds of frozen replicas leave."""
    before = sys.getswitchinterval()
    yield
    if sys.getswitchinterval() != before:
        sys.setswitchinterval(before)
        gc.unfreeze()
    gc.collect()
    gc.freeze()  # what this module has imported, too


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_flan_t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import make_tiny_flan_t5

    return make_tiny_flan_t5(tmp_path_factory.mktemp("models") / "tiny-flan-t5")


@pytest.fixture(scope="session")
def tiny_relu_t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import make_tiny_relu_t5

    return make_tiny_relu_t5(tmp_path_factory.mktemp("models") / "tiny-relu-t5")


@pytest.fixture(scope="session")
def tiny_router_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact of the router, trained on tests/router/small_questions.py. Not to be changed."""
    from tests.tiny_encoder import tiny_artefact

    return tiny_artefact(tmp_path_factory.mktemp("router"))


@pytest.fixture(scope="session")
def tiny_encoder_dir(tiny_router_dir: Path) -> Path:
    """encoder.onnx and tokenizer.json of `tiny_router_dir`."""
    return tiny_router_dir.parent / "encoder"


@pytest.fixture
def router_copy(tiny_router_dir: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_router_dir`, to be changed."""
    return Path(shutil.copytree(tiny_router_dir, tmp_path / "router-copy"))


@pytest.fixture(scope="session")
def tiny_catalogs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_dir: Path,
    tiny_flan_t5_dir: Path,
    tiny_relu_t5_dir: Path,
) -> dict[str, tuple[Path, Path]]:
    """Family -> (base model folder, catalogue folder) with the adapters of TINY_ADAPTERS."""
    from tests.tiny_models import make_catalog

    bases = {
        "llama": (tiny_llama_dir, "chat"),
        "flan_t5": (tiny_flan_t5_dir, "plain"),
        "relu_t5": (tiny_relu_t5_dir, "plain"),
    }
    catalogs = {}
    for family, (base, prompt_format) in bases.items():
        folder = tmp_path_factory.mktemp(f"catalog-{family}")
        make_catalog(folder, base, prompt_format=prompt_format, adapters=TINY_ADAPTERS)
        catalogs[family] = (base, folder)
    return catalogs
