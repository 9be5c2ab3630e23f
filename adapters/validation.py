"""Is this folder an adapter that we may load? Format, checksum, features, shapes, finite values.

Only safetensors are read. Every problem is listed, not just the first.
"""

import json
import math
from pathlib import Path
from typing import Any

from adapters.base_models import sha256_of
from adapters.catalog import AdapterEntry
from adapters.safetensors_file import NotSafetensors, open_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MAX_RANK = 256
MAX_BYTES = 2 * 2**30
MAX_CONFIG_BYTES = 2**20
# A base model's other names in adapters of third parties.
OTHER_NAMES = {"smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct",)}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Features of PEFT's LoRA that change the forward pass in ways that a multi-LoRA bank cannot
# express; refused by name rather than half applied. Key -> values that mean "not used".
_REFUSED = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "megatron_config": (None, {}),
}


def check_adapter(
    directory: Path, entry: AdapterEntry, *, max_rank: int = MAX_RANK, tensors: bool = True
) -> list[str]:
    """What is wrong with the adapter in `directory`; empty: nothing.

    Each line names the file, what was found, and what is allowed or how to mend it. With
    `tensors=False` the weights are only checked by size and sha256, which needs no torch.
    """
    if not directory.is_dir():
        return [f"{directory}: the folder is missing; {_mend(directory)}"]
    problems = [
        f"{path}: pickled weights are never loaded; convert them to safetensors"
        for pattern in _PICKLES
        for path in sorted(directory.glob(pattern))
    ]
    config, config_problems = _read_config(directory / CONFIG_FILE)
    problems += config_problems
    if config is not None:
        problems += _check_config(directory / CONFIG_FILE, config, entry, max_rank)
    weights = directory / WEIGHTS_FILE
    weight_problems = _check_file(weights, entry)
    if tensors and not weight_problems:
        weight_problems = _check_tensors(weights, config)
    return problems + weight_problems


def _mend(path: Path) -> str:
    return (
        f"restore it (`git checkout -- {path.name}` in {path.parent}), or train the adapter again "
        "(`python -m scripts.train_lora_adapter --help`)"
    )


def _read_config(file: Path) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        size = file.stat().st_size
        if size > MAX_CONFIG_BYTES:
            return None, [f"{file}: {size} bytes; at most {MAX_CONFIG_BYTES} are allowed"]
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{file}: missing; {_mend(file)}"]
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{file}: cannot be read as JSON ({error}); {_mend(file)}"]
    if not isinstance(config, dict):
        return None, [f"{file}: holds no JSON object; {_mend(file)}"]
    return config, []


def _check_config(
    file: Path, config: dict[str, Any], entry: AdapterEntry, max_rank: int
) -> list[str]:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(
            f"{file}: peft_type is {_shown(config.get('peft_type'))}; only LORA is served"
        )
    base = config.get("base_model_name_or_path")
    if base != entry.base_model and base not in OTHER_NAMES.get(entry.base_model, ()):
        problems.append(
            f"{file}: trained on {_shown(base)}, and the catalogue says {entry.base_model!r}"
        )
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        return [*problems, f"{file}: rank_pattern is {_shown(pattern)}; a mapping is expected"]
    ranks = [config.get("r"), *pattern.values()]
    if not all(_is_int(rank) and 1 <= rank <= max_rank for rank in ranks):
        problems.append(f"{file}: ranks {_shown(ranks)}; allowed are 1 to {max_rank}")
    elif config["r"] != entry.rank:
        problems.append(f"{file}: r is {config['r']}, and the catalogue says {entry.rank}")
    refused = [key for key, unused in _REFUSED.items() if config.get(key) not in unused]
    if refused:
        problems.append(f"{file}: features that are not served: {', '.join(refused)}")
    return problems + _check_types(file, config)


def _check_types(file: Path, config: dict[str, Any]) -> list[str]:
    """The values from which PEFT computes the scale and picks the layers."""
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        return [f"{file}: alpha_pattern is {_shown(alphas)}; a mapping is expected"]
    named = {"lora_alpha": config.get("lora_alpha", 8)}
    named |= {f"alpha_pattern {key[:80]!r}": alpha for key, alpha in alphas.items()}
    problems = [
        f"{file}: {name} is {_shown(alpha)}; a finite number is expected"
        for name, alpha in named.items()
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _is_finite(alpha)
    ]
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(key)
        items = value if isinstance(value, list) else [value or ""]
        if not all(isinstance(item, str) for item in items):
            problems.append(
                f"{file}: {key} is {_shown(value)}; text or a list of texts is expected"
            )
    return problems


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float holds
        return False


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_file(file: Path, entry: AdapterEntry) -> list[str]:
    if not file.is_file():
        return [f"{file}: missing; {_mend(file)}"]
    size = file.stat().st_size
    if size > MAX_BYTES:
        return [f"{file}: {size} bytes; at most {MAX_BYTES} are allowed"]
    found = sha256_of(file)
    if found != entry.sha256:
        return [
            f"{file}: sha256 is {found}, and the catalogue says {entry.sha256}: the file is "
            f"damaged, or the catalogue is not up to date; {_mend(file)}"
        ]
    return []


def _check_tensors(file: Path, config: dict[str, Any] | None) -> list[str]:
    problems = []
    shapes: dict[str, tuple[int, ...]] = {}
    speaks = False
    try:
        with open_tensors(file) as tensors:
            for tensor in tensors:
                shapes[tensor.name] = tensor.shape
                speaks = speaks or (".lora_B." in tensor.name and not tensor.is_zero)
                if not tensor.is_finite:
                    problems.append(f"{file}: {tensor.name} holds NaN or infinity")
    except (NotSafetensors, OSError) as error:
        return [f"{file}: cannot be read as safetensors ({error}); {_mend(file)}"]
    if not shapes:
        problems.append(f"{file}: holds no tensor")
    elif not speaks:
        problems.append(f"{file}: every lora_B is zero, so the adapter would change nothing")
    ranks = _ranks_allowed(config)
    for name, shape in shapes.items():
        problems += _check_pair(file, name, shape, shapes, ranks)
    return problems


def _ranks_allowed(config: dict[str, Any] | None) -> set[int] | None:
    pattern = (config or {}).get("rank_pattern") or {}
    if config is None or not isinstance(pattern, dict):
        return None
    ranks = [config.get("r"), *pattern.values()]
    return set(ranks) if all(map(_is_int, ranks)) else None  # named with the config otherwise


def _check_pair(
    file: Path,
    name: str,
    shape: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    ranks: set[int] | None,
) -> list[str]:
    """A tensor is lora_A (r, in) or lora_B (out, r), and its partner is there."""
    for this, other, rank_axis in ((".lora_A.", ".lora_B.", 0), (".lora_B.", ".lora_A.", 1)):
        if this not in name:
            continue
        if len(shape) != 2:
            return [f"{file}: {name} has the shape {shape}; two dimensions are expected"]
        partner = shapes.get(name.replace(this, other))
        if partner is None:
            return [f"{file}: {name} has no partner {other.strip('.')}"]
        if len(partner) == 2 and partner[1 - rank_axis] != shape[rank_axis]:
            return [f"{file}: {name} {shape} and its partner {partner} differ in rank"]
        if ranks is not None and shape[rank_axis] not in ranks:
            return [f"{file}: {name} has rank {shape[rank_axis]}; the config says {sorted(ranks)}"]
        return []
    return [f"{file}: {name} is no LoRA weight (lora_A or lora_B)"]
