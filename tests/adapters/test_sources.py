"""Where adapters come from: what is read of a source, within a size and a time, and what is not."""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapters.sources import SourceError, SourceLimits, check_source, fetch

Catalogs = dict[str, tuple[Path, Path]]
LIMITS = SourceLimits(max_bytes=2**20, timeout_s=5)


@pytest.fixture
def source(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_catalogs["llama"][1] / "weights" / "derm", tmp_path / "derm"))


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("/srv/../etc", "'..' is not allowed"),
        ("s3://bucket/a/../b", "'..' is not allowed"),
        ("relative/with/three", "an absolute path"),
        ("", "1 to 2048"),
        ("/x" * 5000, "1 to 2048"),
        ("/a\nb", "printable"),
        ("https://user:secret@host/x", "without user, password"),
        ("https://host/x?token=secret", "without user, password, query"),
        ("gopher://host/x", "scheme 'gopher'"),
    ],
)
def test_sources_that_are_not_taken(source: str, part: str) -> None:
    [problem] = check_source(source)
    assert part in problem
    assert "secret" not in problem


def test_links_and_folders_are_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (source / "adapter_config.json").unlink()
    os.symlink(secret, source / "adapter_config.json")
    with pytest.raises(SourceError, match="is a symbolic link"):
        fetch(str(source), tmp_path / "into", LIMITS)
    os.symlink(source, tmp_path / "link")
    with pytest.raises(SourceError, match="is a symbolic link"):
        fetch(str(tmp_path / "link"), tmp_path / "into", LIMITS)
    (source / "adapter_config.json").unlink()
    os.mkfifo(source / "adapter_config.json")
    with pytest.raises(SourceError, match="not a regular file"):
        fetch(str(source), tmp_path / "into", LIMITS)


def test_a_legacy_adapter_names_the_converter(source: Path, tmp_path: Path) -> None:
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    (tmp_path / "into").mkdir()
    with pytest.raises(SourceError, match=r"scripts\.convert_adapter"):
        fetch(str(source), tmp_path / "into", LIMITS)


class Half(io.BytesIO):
    """Answers a little, then fails, or answers no more."""

    def __init__(self, then: Callable[[], bytes]) -> None:
        super().__init__()
        self._then, self._num_reads = then, 0

    def read(self, size: int | None = -1) -> bytes:
        self._num_reads += 1
        return b"{" if self._num_reads == 1 else self._then()


def breaks() -> bytes:
    raise ConnectionResetError("gone")


def hangs() -> bytes:
    time.sleep(30)
    return b""


def drips() -> bytes:
    time.sleep(0.05)
    return b" "


@pytest.mark.parametrize(
    ("then", "part"),
    [(breaks, "ConnectionResetError"), (hangs, "not complete after"), (drips, "not complete")],
)
def test_a_source_that_answers_half_or_slowly_leaves_nothing(
    then: Callable[[], bytes], part: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(SourceError, match=part):
        fetch(
            "https://host/x",
            tmp_path,
            SourceLimits(timeout_s=0.3),
            open_url=lambda url: Half(then),
        )
    assert time.monotonic() - started < 3


def test_the_hub_is_asked_for_two_files(source: Path, tmp_path: Path) -> None:
    asked = []

    def open_url(url: str) -> Any:
        asked.append(url)
        return open(source / url.rsplit("/", 1)[1], "rb")

    named = ("org/name", "hf://org/name@v1", "org/name@v1", "org/name@refs/pr/1")
    for number, name in enumerate(named):
        into = tmp_path / str(number)
        into.mkdir()
        fetch(name, into, LIMITS, open_url=open_url)
        assert len(list(into.iterdir())) == 2
    files = ("adapter_config.json", "adapter_model.safetensors")
    revisions = ("", "@v1", "@v1", "@refs%2Fpr%2F1")
    assert asked == [f"hf://org/name{r}/{f}" for r in revisions for f in files]


def test_any_url_of_fsspec(source: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    fetch(f"file://{source}", tmp_path / "into", LIMITS)

    for file in source.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/far/{file.name}", file.read_bytes())
    (tmp_path / "far").mkdir()

    def open_url(url: str) -> Any:
        return fsspec.open(url.replace("s3://bucket", "memory://"), "rb")

    fetch("s3://bucket/far", tmp_path / "far", LIMITS, open_url=open_url)
    name = "adapter_model.safetensors"
    assert (tmp_path / "far" / name).read_bytes() == (source / name).read_bytes()


class FarFile(io.BytesIO):
    """A remote file; counts what was read of it."""

    def __init__(self, content: bytes, size: int | None) -> None:
        super().__init__(content)
        self.num_read = 0
        self.size = size

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.num_read += len(found)
        return found


@pytest.mark.parametrize("tells_size", [True, False])
@pytest.mark.parametrize("named", ["org/name", "org/name@main", "hf://org/name", "s3://b/x"])
def test_a_far_source_that_is_too_large_is_not_read_on(
    named: str, tells_size: bool, tmp_path: Path
) -> None:
    content = b"x" * (30 * 2**20)
    file = FarFile(content, len(content) if tells_size else None)

    def open_url(url: str) -> Any:
        return io.BytesIO(b"{}") if url.endswith(".json") else file

    with pytest.raises(SourceError, match="more than the 1048576 bytes allowed"):
        fetch(named, tmp_path, SourceLimits(max_bytes=2**20, timeout_s=5), open_url=open_url)
    assert file.num_read <= 2**20 + 1
    read = file.num_read
    time.sleep(0.2)
    assert file.num_read == read, "nothing goes on after the refusal"


class FakeHub(MemoryFileSystem):
    """Files in memory under hf://, read in blocks as huggingface_hub's file system reads them."""

    protocol = ("hf",)
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    real = fsspec.get_filesystem_class("hf")
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    yield FakeHub()
    fsspec.register_implementation("hf", real, clobber=True)


def test_the_hub_is_read_through_fsspec(source: Path, tmp_path: Path, hub: FakeHub) -> None:
    for file in source.iterdir():
        hub.pipe_file(f"hf://org/name@v1/{file.name}", file.read_bytes())
    (tmp_path / "into").mkdir()
    fetch("org/name@v1", tmp_path / "into", LIMITS)
    name = "adapter_model.safetensors"
    assert (tmp_path / "into" / name).read_bytes() == (source / name).read_bytes()
    hub.pipe_file(f"hf://org/name@v1/{name}", b"x" * (30 * 2**20))
    (tmp_path / "large").mkdir()
    with pytest.raises(SourceError, match="31457280 bytes, more than the 1048576 bytes allowed"):
        fetch("org/name@v1", tmp_path / "large", LIMITS)
    with pytest.raises(SourceError, match="FileNotFoundError"):
        fetch("org/name@v2", tmp_path / "large", LIMITS)


def test_the_time_limit_holds_for_the_hub_too(tmp_path: Path) -> None:
    drip = Half(drips)
    with pytest.raises(SourceError, match="not complete"):
        fetch("org/name", tmp_path, SourceLimits(timeout_s=0.3), open_url=lambda url: drip)
    time.sleep(0.2)
    reads = drip._num_reads
    time.sleep(0.2)
    assert drip._num_reads == reads, "nothing goes on after the refusal"


def test_a_relative_folder_that_exists_is_not_asked_of_the_hub(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(url: str) -> Any:
        raise AssertionError(f"{url} was asked for")

    monkeypatch.chdir(source.parent.parent)
    named = str(source.relative_to(source.parent.parent))
    (tmp_path / "into").mkdir()
    fetch(named, tmp_path / "into", LIMITS, open_url=no_hub)
    assert len(list((tmp_path / "into").iterdir())) == 2


def hub_cache(source: Path, cache: Path) -> Path:
    """What huggingface_hub.snapshot_download makes and returns of the files in `source`."""
    snapshot = cache / "models--org--name" / "snapshots" / "0123abc"
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, blobs / f"of {file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"of {file.name}")
    return snapshot


def test_links_inside_a_hub_cache_are_followed(source: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(source, tmp_path / "cache")
    (tmp_path / "into").mkdir()
    fetch(str(snapshot), tmp_path / "into", LIMITS)
    name = "adapter_model.safetensors"
    assert (tmp_path / "into" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("escape", ["file", "blob", "blobs"])
def test_links_out_of_a_hub_cache_are_not(escape: str, source: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(source, tmp_path / "cache")
    blobs = snapshot.parent.parent / "blobs"
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / "of adapter_config.json"
    secret.write_text("{}")
    if escape == "file":
        (snapshot / "adapter_config.json").unlink()
        (snapshot / "adapter_config.json").symlink_to(secret)
    elif escape == "blob":
        (blobs / secret.name).unlink()
        (blobs / secret.name).symlink_to(secret)
    else:
        shutil.rmtree(blobs)
        blobs.symlink_to(tmp_path / "secrets")
    (tmp_path / "into").mkdir()
    with pytest.raises(SourceError, match="is a symbolic link: copy the folder with `cp -rL`"):
        fetch(str(snapshot), tmp_path / "into", LIMITS)
