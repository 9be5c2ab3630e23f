"""Convert a legacy adapter (adapter_model.bin, a pickle) to safetensors, which the server reads.

    python -m scripts.convert_adapter --adapter old/ --out new/

Works offline. torch.load runs with weights_only=True, which refuses code in the pickle. The result
is checked as the server will check it, except against its base model's layers. The last line of
stdout is one JSON object.
"""

import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.ingest import IngestRefused, VersionRequest, inspect_adapter
from adapters.prompting import PROMPT_FORMATS
from adapters.validation import CONFIG_FILE, MAX_BYTES, WEIGHTS_FILE
from scripts.arguments import CommandParser

LEGACY_FILE = "adapter_model.bin"


class ConversionRefused(ValueError):
    """Nothing was written; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    errors = (ConversionRefused, IngestRefused, OSError)
    return _parser().run(
        argv, lambda: errors, lambda args, _: convert(args.adapter, args.out, args.prompt_format)
    )


def _parser() -> CommandParser:
    parser = CommandParser("convert_adapter", __doc__)
    parser.add_argument("--adapter", type=Path, required=True, help=f"folder with {LEGACY_FILE}")
    parser.add_argument(
        "--prompt_format",
        choices=PROMPT_FORMATS,
        help="that it was trained with, to be recorded; raw: on the bare question",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    return parser


def convert(adapter: Path, out: Path, prompt_format: str | None = None) -> dict[str, Any]:
    """Write `out`, and return its figures.

    Raises:
        ConversionRefused: `out` exists, or the file is not a plain dictionary of tensors.
        IngestRefused: listing what the server would refuse.
    """
    if out.exists():
        raise ConversionRefused(f"{out}: exists already: name a new folder")
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = _read(adapter / LEGACY_FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        shutil.copyfile(adapter / CONFIG_FILE, folder / CONFIG_FILE)
        _save(tensors, folder / WEIGHTS_FILE, prompt_format)
        base = str(config.get("base_model_name_or_path"))
        record = inspect_adapter(
            folder, VersionRequest("converted", "converted", base, "1", str(adapter))
        )
        folder.rename(out)
    return {"out": str(out), "tensors": len(tensors), "rank": record.rank, "sha256": record.sha256}


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
