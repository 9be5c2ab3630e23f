"""Download adapters from the Hugging Face hub and upload them."""

from pathlib import Path
from typing import Any

from scripts.lora.errors import HubError

ALLOWED = ["*.safetensors", "*.json", "*.jsonl", "*.md"]  # never a pickle


def pull(name: str, folder: Path) -> Path:
    """Download `org/name` or `org/name@revision` into a folder of the adapter's name.

    Raises:
        HubError: not found, not allowed, or no network.
    """
    repository, _, revision = name.partition("@")
    target = folder / repository.rpartition("/")[2]
    try:
        _api().snapshot_download(
            repository, revision=revision or None, local_dir=target, allow_patterns=ALLOWED
        )
    except Exception as error:  # its kinds depend on the transport
        raise HubError(f"--from_hub {name}: {_explained(error)}") from None
    return target


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload an adapter's files to `org/name`, made when needed; return the commit's address.

    Raises:
        HubError: not allowed, or no network.
    """
    hub = _api()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=ALLOWED)
    except Exception as error:
        raise HubError(f"--push_to_hub {name}: {_explained(error)}") from None
    return str(done)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _explained(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {error}; check the name, the network, and that you are logged in "
        "(`hf auth login`)"
    )
