"""Do two names mean the same base model? The one that is served, and the one of an adapter.

A base is named by hub id, by folder, or not at all; trainers also name quantised copies. Names
that cannot tell two models apart are taken as the same: the shape check and the probe on a model
replica decide then.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

# unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit is a copy of Llama-3.2-1B-Instruct.
_QUANTISED = re.compile(r"(-unsloth)?-bnb-[48]bit$")
_REVISION = re.compile(r"@[\w.-]+$")
# No owners: one of copies, and folders. ModelScope writes Qwen/Qwen2___5-7B for Qwen/Qwen2.5-7B.
_ANYONE = frozenset((".", "..", "~", "unsloth", "models", "model", "checkpoints"))
# What a config.json says of how a copy was stored, not of the model.
_OF_STORAGE = frozenset(
    "_name_or_path transformers_version torch_dtype dtype quantization_config use_cache".split()
)
_SAMPLE = 2**20  # bytes at each end of a weight file; whole ones have gigabytes


@functools.lru_cache(maxsize=1024)
def is_same_base(named: str | None, served: str) -> bool:
    """Say whether an adapter of the base `named` may belong to the base `served`.

    Args:
        named: a hub id, a folder here or on another machine; None if the adapter names no base.
        served: a folder, the built-in name, or a hub id.
    """
    if named is None:
        return True
    (owner, model), (other_owner, other_model) = _parts(named), _parts(served)
    if model == other_model:
        return owner == other_owner or None in (owner, other_owner)
    folder, other_folder = Path(named), Path(served)
    if not (folder.is_dir() and other_folder.is_dir()):
        return False
    fingerprint = _fingerprint(folder)
    return fingerprint is not None and fingerprint == _fingerprint(other_folder)


def _parts(name: str) -> tuple[str | None, str]:
    """Return owner and model of a hub id. The owner is None if any may have the model."""
    name = name.strip().replace("\\", "/")  # a folder of a trainer on Windows
    name = hub_id_of_snapshot(name) or _REVISION.sub("", name).removesuffix("/.").rstrip("/")
    owner, _, model = name.rpartition("/")
    plain, is_quantised = _QUANTISED.subn("", model)
    is_hub_id = owner and "/" not in owner and owner.lower() not in _ANYONE
    plain = plain.lower().replace("___", ".")
    plain = plain.replace("meta-llama-", "llama-", 1)  # Meta has renamed them
    return owner.lower() if is_hub_id and not is_quantised else None, plain


def hub_id_of_snapshot(name: str) -> str | None:
    """Return the id of `.../models--org--name/snapshots/<revision>`, the hub cache's folder."""
    found = re.search(r"/models--([^/]+)--([^/]+)/snapshots/[^/]+/?$", name)
    return f"{found[1]}/{found[2]}" if found else None


def _fingerprint(folder: Path) -> str | None:
    """Return a checksum of a model's configuration and of the ends of its weight files."""
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _OF_STORAGE}
        digest.update(json.dumps(kept, sort_keys=True).encode())
        for file in sorted(folder.glob("*.safetensors")):
            size = file.stat().st_size
            with file.open("rb") as opened:
                digest.update(f"{file.name} {size}".encode() + opened.read(_SAMPLE))
                opened.seek(max(0, size - _SAMPLE))
                digest.update(opened.read())
    except (OSError, ValueError, AttributeError):
        return None
    return digest.hexdigest()
