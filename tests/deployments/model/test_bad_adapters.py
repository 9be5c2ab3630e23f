"""Bad adapters and bad requests through the API: refused with every reason, and nothing is left."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import sources
from tests.deployments.clinic_in_process import ClinicInProcess

Catalogs = dict[str, tuple[Path, Path]]
Spoil = Callable[[Path], None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def clinic(tiny_catalogs: Catalogs, tmp_path_factory: pytest.TempPathFactory) -> ClinicInProcess:
    """Nothing succeeds in changing it, so the module's tests share it."""
    return ClinicInProcess(*tiny_catalogs["llama"], tmp_path_factory.mktemp("bad") / "state")


@pytest.fixture
def source(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_catalogs["llama"][1] / "weights" / "derm", tmp_path / "derm"))


def kept(clinic: ClinicInProcess) -> list[str]:
    """Every file of the live state."""
    state = Path(clinic.settings.adapter_state)
    files = [p for p in state.rglob("*") if p.is_file() and p.name != "catalog.lock"]
    return sorted(str(p.relative_to(state)) for p in files)


async def add(clinic: ClinicInProcess, source: Path | str, **more: Any) -> Any:
    body = {"name": "derm", "source": str(source), "version": "2", **more}
    return await clinic.http.post("/v1/adapters", json=body)


def in_config(**fields: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return spoil


def config_text(text: str) -> Spoil:
    return lambda folder: void((folder / CONFIG).write_text(text))


def void(_: object) -> None:
    return None


def in_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return spoil


def nan_everywhere(state: dict[str, torch.Tensor]) -> None:
    for tensor in state.values():
        tensor[0, 0] = torch.nan


def in_header(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """The header alone is changed, the tensors' bytes stay."""

    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        raw = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])

    return spoil


def first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(item for name, item in header.items() if name != "__metadata__")
    return found


def overlapping(header: dict[str, Any]) -> None:
    item = first(header)
    item["data_offsets"] = [n + 4 for n in item["data_offsets"]]


def huge_shape(header: dict[str, Any]) -> None:
    first(header)["shape"] = [10**30, 10**30]


def list_dtype(header: dict[str, Any]) -> None:
    first(header)["dtype"] = ["F32"]


def surrogate_name(header: dict[str, Any]) -> None:
    name = next(n for n in header if n != "__metadata__")
    header["\ud800" + name] = header.pop(name)


def terminal_name(header: dict[str, Any]) -> None:
    name = next(n for n in header if n != "__metadata__")
    header["\x1b[2J" + name] = header.pop(name)


def bad_metadata(header: dict[str, Any]) -> None:
    header["__metadata__"] = {"format": 1}


def four_gigabytes(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**32) + content[8:])


def doubled_name(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + length].decode().rstrip()
    header = json.loads(text)
    name = next(n for n in header if n != "__metadata__")
    extra = f'{json.dumps(name)}: {{"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}}, '
    raw = ("{" + extra + text[1:]).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def pickled(folder: Path) -> None:
    torch.save({"x": torch.ones(2)}, folder / WEIGHTS)


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


CASES: dict[str, tuple[Spoil, int, str]] = {
    "cut": (cut, 422, "cut off"),
    "nan": (in_weights(nan_everywhere), 422, "NaN"),
    "rank_too_high": (in_config(r=128), 422, "allowed are 1 to 64"),
    "rank_not_the_files": (in_config(r=5), 422, "has rank 4; the config says [5]"),
    "other_base": (in_config(base_model_name_or_path="other/base"), 422, "'other/base'"),
    "pickle": (pickled, 422, "a pickle"),
    "overlap": (in_header(overlapping), 422, "invalid offset for tensor"),
    "huge_shape": (in_header(huge_shape), 422, "expected usize"),
    "list_dtype": (in_header(list_dtype), 422, "invalid type: sequence"),
    "surrogate_name": (in_header(surrogate_name), 422, "hex escape"),
    "bad_metadata": (in_header(bad_metadata), 422, "invalid type: integer `1`, expected a string"),
    "four_gigabytes": (four_gigabytes, 422, "header too large"),
    "control_characters": (in_header(terminal_name), 422, "not printable"),
    "doubled_name": (doubled_name, 422, "twice"),
    "huge_number": (config_text('{"r": ' + "9" * 5000 + "}"), 422, "JSON"),
    "long_number": (in_config(r=10**4000), 422, "allowed are 1 to 64"),
    "deep": (config_text("[" * 100_000), 422, "JSON"),
    "deep_value": (config_text('{"r":' + '{"a":' * 50_000 + "1" + "}" * 50_001), 422, "JSON"),
    "alpha_inf": (in_config(lora_alpha=float("inf")), 422, "lora_alpha"),
    "alpha_huge": (in_config(lora_alpha=1e30), 422, "lora_alpha is 1e+30; a number of at most"),
    "alpha_nan": (in_config(lora_alpha=float("nan")), 422, "lora_alpha"),
    "alpha_text": (in_config(lora_alpha="x"), 422, "lora_alpha"),
    "rank_pattern_list": (in_config(rank_pattern={"q_proj": [4]}), 422, "rank"),
    "rank_pattern_text": (in_config(rank_pattern={"q_proj": "4"}, r=5), 422, "rank"),
    "targets_number": (in_config(target_modules=7), 422, "target_modules"),
    "targets_bad_regex": (in_config(target_modules="(((q"), 422, "target_modules"),
    "surrogate_base": (in_config(base_model_name_or_path="\ud800"), 422, "trained on"),
    "peft_type_list": (in_config(peft_type=["LORA"]), 422, "peft_type"),
    "dora": (in_config(use_dora=True), 422, "use_dora"),
    "bias": (in_config(bias="all"), 422, "bias"),
    "modules_to_save": (in_config(modules_to_save=["lm_head"]), 422, "modules_to_save"),
    "unknown_field": (in_config(shiny=1), 422, "shiny"),
}


@pytest.mark.parametrize("case", CASES)
async def test_files(case: str, clinic: ClinicInProcess, source: Path) -> None:
    spoil, status, part = CASES[case]
    spoil(source)
    before = kept(clinic)
    reply = await add(clinic, source, version=f"v-{case}")
    assert kept(clinic) == before
    assert reply.status_code == status, reply.text
    assert part in reply.json()["error"]["message"]


async def test_a_pattern_that_never_ends_is_refused_before_a_replica_tries_it(
    clinic: ClinicInProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's `re` lets no other thread run meanwhile: it would stop the replica for good."""
    monkeypatch.setattr("adapters.checks.patterns.TIMEOUT_S", 1.0)
    in_config(target_modules="(.*)*(.*)*q_projx", rank_pattern={"(.+)+z": 4, "((": 4})(source)
    reply = await add(clinic, source, version="slow")
    assert reply.status_code == 422, reply.text
    first, second = reply.json()["error"]["problems"]
    assert "rank_pattern '((': no regular expression" in first
    assert "target_modules '(.*)*(.*)*q_projx': takes more than 1 s to match" in second


async def test_a_pattern_that_ends_is_served(tiny_catalogs: Catalogs, source: Path) -> None:
    in_config(target_modules=r"model\.layers\.\d+\.self_attn\.(q|v)_proj")(source)
    clinic = ClinicInProcess(*tiny_catalogs["llama"], source.parent / "state")
    reply = await add(clinic, source)
    await clinic.close()
    assert reply.status_code == 201, reply.text


SOURCES = [
    ("/srv/../etc", "'..' is not allowed"),
    ("file://../etc", "file:// goes with an absolute path"),
    ("file://host/srv/x", "file:// goes with an absolute path"),
    ("hf://../x", "'..' is not allowed"),
    ("/srv/a\x00b", "printable characters"),
    ("/dev/null", "adapter_config.json"),
    ("/proc", "adapter_config.json is missing"),
    ("/" + "n" * 300, "source_unreadable"),
]


@pytest.mark.parametrize(("named", "part"), SOURCES)
async def test_sources(named: str, part: str, clinic: ClinicInProcess) -> None:
    body = {"name": "derm", "source": named, "version": "2"}
    reply = await clinic.http.post(
        "/v1/adapters", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 422, reply.text
    assert part in reply.text
    assert kept(clinic) == []


async def test_links_are_not_followed(clinic: ClinicInProcess, source: Path) -> None:
    (source.parent / "link").symlink_to(source)
    reply = await add(clinic, source.parent / "link")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "source_unreadable")
    (source / CONFIG).rename(source / "other.json")
    (source / CONFIG).symlink_to(source / "other.json")
    reply = await add(clinic, source)
    assert reply.status_code == 422
    assert "is a symbolic link" in reply.json()["error"]["message"]
    assert kept(clinic) == []


async def test_a_source_that_changes_while_it_is_read(
    clinic: ClinicInProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the old weights and half of the new ones would be a file that looks good."""

    def changing(opened: Any, name: str, *limits: Any) -> Iterator[bytes]:
        yield from chunks(opened, name, *limits)
        if name == WEIGHTS:
            content = bytearray((source / WEIGHTS).read_bytes())
            content[-1] ^= 1
            (source / WEIGHTS).write_bytes(content)

    chunks = sources._chunks
    monkeypatch.setattr(sources, "_chunks", changing)
    reply = await add(clinic, source)
    assert reply.status_code == 422, reply.text
    assert "changed while it was read" in reply.json()["error"]["message"]
    assert kept(clinic) == []


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["scratch", "no_scratch", "files"])
async def test_a_full_disk(
    where: str, clinic: ClinicInProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is this side's trouble, so 503; the files that were refused are gone."""
    target = {
        "scratch": ("adapters.sources._chunks", no_room),
        "no_scratch": ("tempfile.mkdtemp", no_room),
        "files": ("adapters.storage.local.FileCalls.copy", no_room),
    }[where]
    monkeypatch.setattr(*target)
    reply = await add(clinic, source)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "state_unavailable")
    assert "No space left on device" in reply.json()["error"]["message"]
    assert kept(clinic) == []


async def test_a_disk_that_is_full_at_the_last_step(
    clinic: ClinicInProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.storage.local.FileCalls.write", no_room)
    reply = await add(clinic, source)
    assert reply.status_code == 503, reply.text
    assert clinic.store.read().revision == 0
    seeds = {v.digest for a in clinic.store.read().adapters for v in a.versions}
    assert {name.split("/")[1] for name in kept(clinic)} == seeds, "a later change needs those"
