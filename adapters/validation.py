"""Is this folder an adapter that may be served? Format, base model, rank, finite values.

What PEFT features a decoder can serve is its own to say: a model replica tries each new version.
Only safetensors are read. Every problem is listed, not just the first.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adapters.bases.models import sha256_of
from adapters.bases.names import is_same_base
from adapters.checks.lora_fields import check_fields, num_blocks, shown
from adapters.checks.lora_tensors import check_tensors
from adapters.checks.safetensors_file import LFS_POINTER

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BUNDLE_FILES = (CONFIG_FILE, WEIGHTS_FILE)
PROMPT_FORMAT_KEY = "prompt_format"  # in the metadata of the weights
NO_FILE = "0" * 64  # a checksum that no file has
MAX_RANK = 256
MAX_BYTES = 2 * 2**30
MAX_CONFIG_BYTES = 2**20
# PEFT's scale is lora_alpha / r or lora_alpha / sqrt(r); trained adapters have an alpha of at most
# some times their rank. Far above, the answers are noise or empty.
MAX_ALPHA = 65_536
# Fields of PEFT's configuration that bring whole weights with them -> values without effect.
_MORE_WEIGHTS = {
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# The state of a training, as transformers' Trainer leaves it beside an adapter: no weights.
_OF_TRAINERS = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth"
)
_BIASES = ("none", "all", "lora_only")


def file_record(folder: Path) -> dict[str, Any]:
    """Return what the catalogue records of an adapter's two files, as fields of AdapterVersion.

    A missing file counts as empty, with the checksum NO_FILE: reading it fails later.
    """
    config, weights = (folder / name for name in BUNDLE_FILES)
    return {
        "prompt_format": recorded_prompt_format(weights),
        "sha256": sha256_of(weights) if weights.is_file() else NO_FILE,
        "config_sha256": sha256_of(config) if config.is_file() else NO_FILE,
        "num_bytes": sum(file.stat().st_size for file in (config, weights) if file.is_file()),
    }


def recorded_prompt_format(weights: Path) -> str | None:
    """Return the prompt format in the metadata of a weight file; None if it names none."""
    try:
        with safe_open(weights, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):  # its checks name the problem
        return None
    return metadata.get(PROMPT_FORMAT_KEY)


def check_adapter(
    directory: Path, base_model: str, *, rank: int | None = None, max_rank: int = MAX_RANK
) -> list[str]:
    """Return what is wrong with the adapter in `directory`; empty if nothing is.

    Each line names the file, what was found, and what is allowed or how to fix it.

    Args:
        base_model: the one that it must be trained on.
        rank: what the catalogue says; None if it lists no rank yet.
    """
    if not directory.is_dir():
        return [f"{directory}: the folder is missing; {fix_of(directory)}"]
    problems = [
        f"{path}: pickled weights are never loaded; convert them to safetensors"
        for pattern in _PICKLES
        for path in sorted(directory.glob(pattern))
        if not _OF_TRAINERS.fullmatch(path.name)
    ]
    config_file, weights = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    config, config_problems = _read_config(config_file)
    problems += config_problems
    if config is not None:
        found = _check_config(config, base_model, rank, max_rank)
        problems += [f"{config_file}: {problem}" for problem in found]
    problems += [f"{weights}: {problem}" for problem in _check_weights(weights, config)]
    return problems


def fix_of(path: Path) -> str:
    """Return how to get a missing or damaged file back."""
    return (
        f"restore it (`git checkout -- {path.name}` in {path.parent}), or train the adapter again "
        "(`python -m scripts.train_lora_adapter --help`)"
    )


def seen_instead(folder: Path) -> str:
    """Return what a folder without an adapter's file holds instead, and what to do; "" if nothing
    of it looks like an adapter."""
    if (folder / "adapter_model.bin").is_file():
        return "; it holds adapter_model.bin: `python -m scripts.convert_adapter` first"
    files = sorted(file.name for file in folder.glob("*.safetensors") if file.name != WEIGHTS_FILE)
    if len(files) == 1:
        return f"; it holds {ascii(files[0][:80])}: rename it to {WEIGHTS_FILE}, if it is that"
    if files:
        return f"; it holds {len(files)} other .safetensors files: save the adapter as one file"
    inner = sorted(file.parent.name for file in folder.glob(f"*/{WEIGHTS_FILE}"))
    return f"; its folder {ascii(inner[-1][:80])} holds one: name that folder" if inner else ""


def _read_config(file: Path) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        size = file.stat().st_size
        if size > MAX_CONFIG_BYTES:
            return None, [f"{file}: {size} bytes; at most {MAX_CONFIG_BYTES} are allowed"]
        text = file.read_text(encoding="utf-8")
        if text.startswith(LFS_POINTER.decode()):
            return None, [f"{file}: is a Git LFS pointer, not the file: run `git lfs pull`"]
        config = json.loads(text)
    except FileNotFoundError:
        return None, [f"{file}: missing{seen_instead(file.parent)}; {fix_of(file)}"]
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{file}: cannot be read as JSON ({error}); {fix_of(file)}"]
    if not isinstance(config, dict):
        return None, [f"{file}: does not hold a JSON object; {fix_of(file)}"]
    return config, []


def _check_config(
    config: dict[str, Any], base_model: str, rank: int | None, max_rank: int
) -> list[str]:
    problems = []
    if config.get("peft_type") != "LORA":
        found = shown(config.get("peft_type"))
        problems.append(f"peft_type is {found}; only LORA is served: train it as LoRA")
    base = config.get("base_model_name_or_path")
    if not (base is None or isinstance(base, str)) or not is_same_base(base, base_model):
        problems.append(
            f"trained on {shown(base)}, and the base model is {base_model!r}: if they are the "
            "same model, write that name into base_model_name_or_path"
        )
    if config.get("peft_type") != "LORA":
        return problems  # the other fields are not LoRA's
    pattern = _pattern(config, "rank_pattern")
    if not isinstance(pattern, dict):
        return [*problems, f"rank_pattern is {shown(pattern)}; a mapping is expected"]
    ranks = [config.get("r"), *pattern.values()]
    if not all(_is_int(found) and 1 <= found <= max_rank for found in ranks):
        problems.append(f"ranks {shown(ranks)}; allowed are 1 to {max_rank}")
    elif rank is not None and config["r"] != rank:
        problems.append(f"r is {config['r']}, and the catalogue says {rank}")
    return problems + _check_types(config)


def _check_types(config: dict[str, Any]) -> list[str]:
    """Check the values from which PEFT computes the scale and picks the layers, and those without
    which it cannot read the rest."""
    alphas = _pattern(config, "alpha_pattern")
    if not isinstance(alphas, dict):
        return [f"alpha_pattern is {shown(alphas)}; a mapping is expected"]
    nulls = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key, {}) is None]
    if nulls:
        return [
            f"{key} is null, which PEFT cannot read: write {{}}, or leave it out" for key in nulls
        ]
    named = {"lora_alpha": config.get("lora_alpha", 8)}
    named |= {f"alpha_pattern {key[:80]!r}": alpha for key, alpha in alphas.items()}
    problems = [
        f"{name} is {shown(alpha)}; a number of at most {MAX_ALPHA} is expected"
        for name, alpha in named.items()
        if not _is_alpha(alpha)
    ]
    problems += check_fields(config)
    bias, dropout = config.get("bias", "none"), config.get("lora_dropout", 0.0)
    if bias not in _BIASES:
        problems.append(f"bias is {shown(bias)}; one of {', '.join(_BIASES)} is expected")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        problems.append(f"lora_dropout is {shown(dropout)}; a number from 0 to 1 is expected")
    return problems


def _pattern(config: dict[str, Any], key: str) -> Any:
    """Return a field that holds a mapping; null is named by itself."""
    value = config.get(key, {})
    return {} if value is None else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_alpha(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_ALPHA  # False for NaN


def _check_weights(file: Path, config: dict[str, Any] | None) -> list[str]:
    if not file.is_file():
        return [f"missing{seen_instead(file.parent)}; {fix_of(file)}"]
    if (size := file.stat().st_size) > MAX_BYTES:
        return [f"{size} bytes; at most {MAX_BYTES} are allowed"]
    has_more = any((config or {}).get(key) not in unused for key, unused in _MORE_WEIGHTS.items())
    blocks = num_blocks(config or {})
    return check_tensors(file, _ranks_allowed(config), only_lora=not has_more, num_blocks=blocks)


def _ranks_allowed(config: dict[str, Any] | None) -> set[int] | None:
    """Return the ranks that the configuration names; None if it names none that can be used, or if
    experts, each with that rank, are stacked in a weight's."""
    if (config or {}).get("target_parameters"):
        return None
    pattern = (config or {}).get("rank_pattern") or {}
    if config is None or not isinstance(pattern, dict):
        return None
    ranks = [config.get("r"), *pattern.values()]
    return set(ranks) if all(map(_is_int, ranks)) else None  # the config's problems name it
