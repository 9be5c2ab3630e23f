"""Do `quantization` and `kv_cache_dtype` fit the device, the decoder, and the base's folder?"""

import importlib.util
from typing import TYPE_CHECKING

from deployments.settings import Settings

if TYPE_CHECKING:  # a bad file is refused within a second
    from adapters.bases.check import StoredKind

_ON_GPU = ("nf4", "fp8")


def quantization_problems(
    settings: Settings, device: str, stored: "StoredKind | None" = None
) -> list[str]:
    """Return what cannot be served, and what to set instead.

    Args:
        device: "cuda" or "cpu"; "auto" while it is not known.
        stored: how the weights in the folder are quantised already.
    """
    kind, said = settings.quantization, f"(device: {settings.device})"
    problems = []
    if device == "cpu" and kind in _ON_GPU:
        problems.append(
            f"quantization: {kind!r} needs a GPU, and the device is the CPU {said}: set "
            "quantization: auto, int8, int4 or none, or add a GPU"
        )
    if device == "cuda" and kind == "int4":
        problems.append(
            f"quantization: 'int4' is a CPU's, and the device is a GPU {said}: set quantization: "
            "nf4, int8, fp8 or none, or device: cpu"
        )
    if kind == "fp8" and settings.engine.decoder == "reference":
        problems.append(
            "quantization: 'fp8' is the fast decoder's, and engine.decoder is 'reference': set "
            "engine.decoder: auto or fast, or quantization: int8 or nf4"
        )
    if settings.engine.kv_cache_dtype == "int8" and device == "cpu":
        problems.append(
            f"engine.kv_cache_dtype: 'int8' needs a GPU, and the device is the CPU {said}: set it "
            "to auto, or add a GPU"
        )
    if settings.engine.kv_cache_dtype == "int8" and settings.engine.decoder == "reference":
        problems.append(
            "engine.kv_cache_dtype: 'int8' is the fast decoder's, and engine.decoder is "
            "'reference': set engine.decoder: auto or fast, or engine.kv_cache_dtype: auto"
        )
    return problems or _of_folder(settings, device, stored)


def _of_folder(settings: Settings, device: str, stored: "StoredKind | None") -> list[str]:
    kind = settings.quantization
    if stored is not None and device == "cpu":
        return [
            f"base_model: its weights are quantised to {stored} by bitsandbytes, which needs a GPU "
            f"here, and the device is the CPU (device: {settings.device}): name a folder of the "
            "plain weights, of which a CPU makes its own int8 or int4"
        ]
    if stored is not None and kind not in ("auto", stored):
        return [
            f"quantization: {kind!r}, but the weights of base_model are in {stored} already: set "
            f"quantization: auto or {stored}, or name a folder of the plain weights"
        ]
    is_theirs = kind in ("int8", "nf4") or stored is not None
    if device != "cuda" or settings.engine.decoder != "reference" or not is_theirs:
        return []
    if importlib.util.find_spec("bitsandbytes") is not None:
        return []
    return [
        f"quantization: '{stored or kind}' with engine.decoder: reference needs bitsandbytes, "
        "which is not installed: install it on every node, or set engine.decoder: auto"
    ]
