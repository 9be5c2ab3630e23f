"""Would a model replica be able to load this base? Asked before anything that serves is replaced.

The files are looked at without torch: all shards there and whole, a tokenizer, an architecture that
transformers has. What only a GPU can tell (whether it fits) is not asked.
"""

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from adapters.bases.models import (
    BUILT_IN,
    BaseModelError,
    ResolvedBaseModel,
    family_of,
    is_hub_name,
    resolve_base_model,
)

StoredKind = Literal["int8", "nf4"]

_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
# Any of them is enough for transformers to make a tokenizer, which ByT5's needs none of.
_TOKENIZERS = (
    "tokenizer.json tokenizer.model spiece.model sentencepiece.bpe.model vocab.json vocab.txt"
).split()
_WITHOUT_FILES = "ByT5Tokenizer"
_PLAIN = frozenset(("F64", "F32", "F16", "BF16"))  # as safetensors files call them
# Models that need no look at transformers' own list, whose import takes seconds.
_COMMON = frozenset({"llama", "qwen2", "t5"})
_TIMEOUT_S = 15.0


def check_base_model(name: str) -> ResolvedBaseModel:
    """Resolve a base model and look at its files, downloading it if need be.

    Raises:
        BaseModelError: it cannot be resolved or loaded; says what is wrong and what to do.
    """
    resolved = resolve_base_model(name, progress=False)
    if name != BUILT_IN:  # its checksums were compared just now
        check_folder(resolved.path)
    return resolved


def check_folder(path: Path) -> None:
    """Look at a base model's folder.

    Raises:
        BaseModelError
    """
    family = family_of(path)
    config = _json(path / "config.json")
    _check_weights(path, is_plain=stored_quantization(path) is None)
    _check_tokenizer(path, config)
    if config.get("model_type") not in _COMMON:
        _check_known(path, config, family)


def find_base_model(name: str) -> None:
    """Say whether a base model could be resolved, without downloading it.

    Raises:
        BaseModelError: it is no folder, nothing that the hub has, or a folder that cannot be used.
    """
    folder = Path(name).expanduser()
    if name == BUILT_IN:
        return
    if folder.is_dir():
        check_folder(folder)
    elif not is_hub_name(name):
        resolve_base_model(name)  # raises: it is of no known form
    elif not _is_cached(name):
        _check_hub_has(name)


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold a base model's weights. There may be others: Mistral publishes the
    same weights a second time, as consolidated.safetensors.

    Raises:
        BaseModelError: the index lists none, or cannot be read.
    """
    index = path / _INDEX
    if not index.is_file():
        return [path / _WEIGHTS]
    listed = _json(index).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names:
        raise BaseModelError(f"base_model: {index} lists no weights: copy the folder again")
    return [path / name for name in sorted(map(str, names))]


def _check_weights(path: Path, *, is_plain: bool) -> None:
    for file in weight_files(path):
        if not file.is_file():
            raise BaseModelError(f"base_model: {file} is missing: copy the folder again")
        try:
            packed = _packed(file)
        except (SafetensorError, OSError) as error:
            raise BaseModelError(
                f"base_model: {file} is cut off, damaged, or not safetensors ({error}): copy it "
                "again"
            ) from None
        if is_plain and packed is not None:
            raise BaseModelError(
                f"base_model: {file} holds {packed}, and {path / 'config.json'} has no "
                "quantization_config that says how to read it: name a folder of the plain weights"
            )


def _packed(file: Path) -> str | None:
    """Return a weight of a file whose dtype is none of plain ones, with it. None: all are plain."""
    with safe_open(file, framework="np") as opened:
        weights = [name for name in opened.keys() if "weight" in name.rpartition(".")[2]]  # noqa: SIM118
        for name in weights:
            dtype = opened.get_slice(name).get_dtype()
            if dtype not in _PLAIN:
                return f"{name} in {dtype}"
    return None


def _check_tokenizer(path: Path, config: dict[str, Any]) -> None:
    found = [path / name for name in _TOKENIZERS if (path / name).is_file()]
    if not found:
        if _tokenizer_class(path, config) == _WITHOUT_FILES:
            return
        raise BaseModelError(
            f"base_model: {path} has no tokenizer (one of {', '.join(_TOKENIZERS)}): save it there "
            "with the tokenizer's save_pretrained"
        )
    if found[0].suffix == ".json":
        _json(found[0])


def _tokenizer_class(path: Path, config: dict[str, Any]) -> Any:
    file = path / "tokenizer_config.json"
    named = _json(file).get("tokenizer_class") if file.is_file() else None
    return named or config.get("tokenizer_class")


def _check_known(path: Path, config: dict[str, Any], family: str) -> None:
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto import configuration_auto, modeling_auto

    kind, code = config.get("model_type"), config.get("auto_map")
    if code and kind not in configuration_auto.CONFIG_MAPPING_NAMES:
        raise BaseModelError(
            f"base_model: {path} has the model_type {kind!r}, whose classes are programs in that "
            "folder (auto_map), and those are never run: name a base that transformers has classes "
            "for"
        )
    try:
        loaded = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a strange config.json makes it raise
        rope = config.get("rope_scaling")
        is_su = isinstance(rope, dict) and rope.get("type") == "su"  # Phi-3, in its first months
        mend = "set rope_scaling.type to longrope there" if is_su else "correct it there"
        raise BaseModelError(
            f"base_model: {path}: transformers {transformers.__version__} cannot read its "
            f"config.json ({error}): {mend}"
        ) from None
    known = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if family == "causal"
        else modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )
    if loaded.model_type not in known:
        raise BaseModelError(
            f"base_model: {path} has the model_type {config.get('model_type')!r}, and the "
            "installed transformers has no such language model: correct base_model"
        )


def stored_quantization(path: Path) -> StoredKind | None:
    """Return how bitsandbytes quantised the weights of a folder. Returns None if they are plain.

    Raises:
        BaseModelError: they are quantised in another way.
    """
    fields = _json(path / "config.json").get("quantization_config")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise BaseModelError(f"base_model: {path}: quantization_config is {fields!r}, no object")
    if fields.get("load_in_8bit") and not fields.get("llm_int8_has_fp16_weight"):
        return "int8"
    if fields.get("load_in_4bit") and fields.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    raise BaseModelError(
        f"base_model: {path} holds weights quantised with {_method(fields)}, which no decoder here "
        "reads; those of bitsandbytes, int8 and nf4, are read: name a folder of the plain weights, "
        "and set quantization: int8, nf4 or fp8 on a GPU, int8 or int4 on a CPU"
    )


def _method(fields: dict[str, Any]) -> str:
    """Return what a config says of how its weights were quantised, as people call it."""
    unnamed = "MLX" if {"bits", "group_size"} <= set(fields) else "an unnamed method"
    method = str(fields.get("quant_method") or unnamed)
    if fields.get("load_in_4bit"):
        return f"bitsandbytes {fields.get('bnb_4bit_quant_type', 'fp4')}"
    if fields.get("load_in_8bit"):
        return "bitsandbytes int8 with float16 weights (llm_int8_has_fp16_weight)"
    known = {"gptq": "GPTQ", "awq": "AWQ", "gguf": "GGUF", "hqq": "HQQ", "aqlm": "AQLM"}
    bits = fields.get("bits") or fields.get("w_bit")
    return known.get(method, method) + (f", {bits} bits" if bits else "")


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _check_hub_has(name: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_TIMEOUT_S)
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"base_model: the Hugging Face hub has no model '{name}', or does not show it to this "
            "user: correct base_model"
        ) from None
    except Exception as error:
        raise BaseModelError(
            f"base_model: '{name}' is not in the Hugging Face cache, and the hub cannot be asked "
            f"({type(error).__name__}): check the network, or give a directory"
        ) from None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base_model: {file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BaseModelError(f"base_model: {file} is not a JSON object")
    return found
