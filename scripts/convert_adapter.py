"""Convert an adapter to what the server reads: a pickle, or one of a model that reads images.

    python -m scripts.convert_adapter --adapter old/ --out new/
    python -m scripts.convert_adapter --adapter whole/ --base_model gemma-3-4b-text --out new/

Works offline. A pickle (adapter_model.bin) is read by torch.load with weights_only=True, which
refuses code in it. An adapter that was trained on a whole model that reads images too (Gemma 3 from
4B up) becomes one of the text part that scripts.save_text_part writes: what only images reach is
left out, and counted. The result is checked as the server will check it, except against its base
model's layers. The last line of stdout is one JSON object.
"""

import json
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.checks.lora_tensors import is_of_whole_model
from adapters.ingest import IngestRefused, VersionRequest, inspect_adapter
from adapters.prompting import PROMPT_FORMATS
from adapters.validation import CONFIG_FILE, MAX_BYTES, WEIGHTS_FILE, recorded_prompt_format
from scripts.arguments import CommandParser

LEGACY_FILE = "adapter_model.bin"


class ConversionRefused(ValueError):
    """Nothing was written; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    errors = (ConversionRefused, IngestRefused, OSError)
    return _parser().run(
        argv,
        lambda: errors,
        lambda args, _: convert(args.adapter, args.out, args.prompt_format, args.base_model),
    )


def _parser() -> CommandParser:
    parser = CommandParser("convert_adapter", __doc__)
    parser.add_argument("--adapter", type=Path, required=True, help="folder that PEFT wrote")
    parser.add_argument("--base_model", help="that it will be served on, to be recorded")
    parser.add_argument(
        "--prompt_format",
        choices=PROMPT_FORMATS,
        help="that it was trained with, to be recorded; raw: on the bare question",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    return parser


def convert(
    adapter: Path, out: Path, prompt_format: str | None = None, base_model: str | None = None
) -> dict[str, Any]:
    """Write `out`, and return its figures.

    Raises:
        ConversionRefused: `out` exists, there is nothing to convert, or the file is not a plain
            dictionary of tensors.
        IngestRefused: listing what the server would refuse.
    """
    from scripts.lora.text_part import text_part_of

    if out.exists():
        raise ConversionRefused(f"{out}: exists already: name a new folder")
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    file = adapter / WEIGHTS_FILE
    if file.is_file():
        prompt_format = prompt_format or recorded_prompt_format(file)
        tensors = _read_safetensors(file)
    else:
        tensors = _read(adapter / LEGACY_FILE)
    left_out: Sequence[str] = ()
    if any(map(is_of_whole_model, tensors)):
        part = text_part_of(config, tensors)
        config, tensors, left_out = part.config, part.tensors, part.left_out
    elif file.is_file():
        raise ConversionRefused(f"{file}: safetensors, of no model that reads images: serve it so")
    if base_model is not None:
        config["base_model_name_or_path"] = base_model
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save(tensors, folder / WEIGHTS_FILE, prompt_format)
        base = str(config.get("base_model_name_or_path"))
        record = inspect_adapter(
            folder, VersionRequest("converted", "converted", base, "1", str(adapter))
        )
        folder.rename(out)
    return {
        "out": str(out),
        "tensors": len(tensors),
        "left_out": len(left_out),
        "rank": record.rank,
        "sha256": record.sha256,
    }


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ConversionRefused(f"{file}: {error}") from None


def _read(file: Path) -> dict[str, Any]:
    import torch

    if file.stat().st_size > MAX_BYTES:
        raise ConversionRefused(f"{file}: more than the {MAX_BYTES} bytes allowed")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConversionRefused(
            f"{file}: is no plain file of tensors ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise ConversionRefused(f"{file}: holds a {type(found).__name__}, not named tensors")
    return found


def _save(tensors: dict[str, Any], file: Path, prompt_format: str | None) -> None:
    from scripts.lora.saved_adapter import save_weights

    # Copies: pickled tensors may share memory, which safetensors does not write.
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_weights(whole, file, prompt_format)


if __name__ == "__main__":
    raise SystemExit(main())
