"""List every field of PEFT's LoraConfig and say which the decoders can serve. The only such list.

The fast decoder adds B(A(x)) * scale to linear layers, and rescales their outputs (DoRA). PEFT's
injection resolves which layers, ranks and scales (peft_reader.py); everything else that could
change the forward pass is refused by name. The reference decoder runs PEFT itself, so it refuses
only what changes the base model that all adapters share.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from deployments.engine.errors import AdapterNotSupported

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# PEFT's injection turns these into layers, ranks and scales. fan_in_fan_out says how a Conv1D
# stores its weight; PEFT ignores it on nn.Linear.
RESOLVED_BY_INJECTION = frozenset(
    "peft_type task_type r target_modules exclude_modules lora_alpha use_rslora rank_pattern "
    "alpha_pattern layers_to_transform layers_pattern fan_in_fan_out ensure_weight_tying "
    "use_dora use_bdlora".split()
)
# Kinds of training, whose adapters are plain LoRA once trained -> the tensors that they leave
# beside A and B.
TRAINING_ONLY = {
    "velora_config": ".lora_velora_embed",
    "monteclora_config": ".lora_monteclora_sampler.",
}
# These act in training only, or say where an adapter comes from. init_lora_weights is checked by
# its value, below.
WITHOUT_EFFECT = frozenset(
    "auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout "
    "runtime_config loftq_config eva_config corda_config lora_ga_config init_lora_weights "
    "megatron_core qalora_group_size".split()
).union(TRAINING_ONLY)
# These change the forward pass in a way that neither expresses.
UNSUPPORTED_BY_FAST = frozenset(
    "bias lora_bias modules_to_save layer_replication trainable_token_indices "
    "target_parameters alora_invocation_tokens use_qalora megatron_config arrow_config "
    "kasa_config".split()
)
_UNUSED: tuple[Any, ...] = (None, False, [], {}, "none")

# Initialisations that leave the base model's weights as they are: the trained A and B say it all.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# Initialisations that subtract from the base model's weights. PEFT does so again when it loads the
# adapter, which changes the answers of every other adapter of that model.
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields that neither decoder serves -> the values that ask for nothing, what PEFT does with others,
# and what to do. An empty object asks for PEFT's defaults.
_SERVED_BY_NEITHER: Mapping[str, tuple[tuple[Any, ...], str, str]] = {
    "layer_replication": (
        _UNUSED,
        "is set, which adds layers to the base model",
        "train it without",
    ),
    "kasa_config": (
        (None,),
        "is set, with which PEFT changes the base model for all adapters",
        "train it without",
    ),
    "arrow_config": (
        (None,),
        "is set, which routes between several adapters that this folder does not hold",
        "add those adapters one by one",
    ),
    "megatron_config": (
        _UNUSED,
        "is set, which is for layers of Megatron, and the base has none",
        f"remove it from {CONFIG_FILE} if the adapter's layers are plain ones",
    ),
}

# lora_alpha / r, or lora_alpha / sqrt(r). Adapters use 0.5 to about 100; far above that float32
# leaves nothing of the base model in the sum.
MAX_SCALE = 10_000.0


def read_config(directory: Path) -> dict[str, Any]:
    """Return the object in adapter_config.json.

    Raises:
        OSError, ValueError: the file is missing, or holds no JSON object.
    """
    file = directory / CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; a JSON object is expected")
    return config


def unsupported_features(directory: Path) -> list[str]:
    """Return what in adapter_config.json the fast decoder cannot express; empty if nothing."""
    config = read_config(directory)
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')!r}; only LORA is plain LoRA"]
    defaults = {f.name: getattr(LoraConfig(), f.name) for f in dataclasses.fields(LoraConfig)}
    supported = RESOLVED_BY_INJECTION | WITHOUT_EFFECT
    problems = []
    for key, value in config.items():
        if key in supported or value in _UNUSED or value == defaults.get(key):
            continue
        unknown = "" if key in UNSUPPORTED_BY_FAST else ", a field that is not known here"
        problems.append(f"{key} is {value!r}{unknown}")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        effect = ", which changes the base model's weights" if changes_base(config) else ""
        problems.append(f"init_lora_weights is {init!r}{effect}")
    return problems


def changes_base(config: Mapping[str, Any]) -> bool:
    """Return whether PEFT changes the base model's weights when it loads this adapter."""
    init = config.get("init_lora_weights")
    return isinstance(init, str) and init.lower().startswith(_INITS_THAT_CHANGE_THE_BASE)


def check_is_servable(directory: Path) -> None:
    """Refuse an adapter that neither decoder serves: one with which PEFT changes the base model's
    weights when it loads it, or that needs more than its folder.

    Raises:
        AdapterNotSupported: naming the field or the initialisation, and what to do.
    """
    config = read_config(directory)
    for field, (unused, effect, hint) in _SERVED_BY_NEITHER.items():
        if config.get(field) not in unused:
            raise AdapterNotSupported(directory, [f"{field} {effect}"], hint)
    if changes_base(config):
        problem = f"init_lora_weights is {config['init_lora_weights']!r}"
        raise AdapterNotSupported(
            directory,
            [f"{problem}, which changes the base model for all adapters"],
            "save it as plain LoRA with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...)",
        )


def check_scales(directory: Path, scales: Mapping[str, float]) -> None:
    """Refuse an adapter with an absurd scale in any layer; `scales` are by module path.

    Raises:
        AdapterNotSupported: naming the layer, the scale and the limit.
    """
    for path, scale in scales.items():
        if not abs(scale) <= MAX_SCALE:  # not finite either
            found = f"{path} has the scale {scale:g} (lora_alpha over r)"
            why = f"above {MAX_SCALE:g} nothing of the base model is left in the logits"
            hint = f"correct lora_alpha or alpha_pattern in {CONFIG_FILE}"
            raise AdapterNotSupported(directory, [found, why], hint)
