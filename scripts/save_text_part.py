"""Save the text part of a model that reads images too, as a base that is served.

    python -m scripts.save_text_part --base_model google/gemma-3-4b-it --out gemma-3-4b-it-text

For Gemma 3 from 4B up, MedGemma 4B, Mistral Small 3.1, and others whose language model is one that
transformers has by itself. Its logits on a fixed prompt must be those of the whole model, or
nothing is written; dtype and tokenizer stay as they are. Adapters of the whole model are converted
by scripts.convert_adapter: its layers have other names. The last line of stdout is one JSON object.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.bases.models import BaseModelError, folder_of
from scripts.arguments import CommandParser

_PROMPT_TOKENS = 12


class NoTextPart(ValueError):
    """Nothing was written; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    errors = (NoTextPart, BaseModelError, OSError, ValueError)
    return _parser().run(argv, lambda: errors, lambda args, _: save(args.base_model, args.out))


def _parser() -> CommandParser:
    parser = CommandParser("save_text_part", __doc__)
    parser.add_argument("--base_model", required=True, help="directory or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    return parser


def save(base_model: str, out: Path) -> dict[str, Any]:
    """Write `out`, and return its figures.

    Raises:
        BaseModelError: there is no such model.
        NoTextPart: `out` exists, or the model has no text part that works by itself.
        ValueError: its files do not hold all of its weights.
    """
    if out.exists():
        raise NoTextPart(f"{out}: exists already: name a new folder")
    path = folder_of(base_model)
    whole = _whole(path)
    text = _text_part(path, whole)
    _check_same(path, whole, text)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".text-part-") as scratch:
        folder = Path(scratch) / "model"
        text.save_pretrained(folder)
        _tokenizer(path).save_pretrained(folder)
        folder.rename(out)
    return {
        "out": str(out),
        "architecture": type(text).__name__,
        "parameters": text.num_parameters(),
        "of": whole.num_parameters(),
    }


def _whole(path: Path) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    from deployments.engine.models.loaded_weights import load_weights

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return load_weights(AutoModelForImageTextToText, path, config, dtype="auto").eval()


def _text_part(path: Path, whole: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config, language = whole.config.get_text_config(), whole.get_decoder()
    problem = f"{path}: transformers has no model of text alone with the layers of"
    try:
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise NoTextPart(f"{problem} {type(whole).__name__}: name another base") from None
    if type(language) is not type(text.model):
        raise NoTextPart(f"{problem} {type(language).__name__}: name another base")
    text.model, text.lm_head = language, whole.lm_head
    text.generation_config = whole.generation_config
    return text.eval()


def _check_same(path: Path, whole: Any, text: Any) -> None:
    import torch

    ids = torch.arange(_PROMPT_TOKENS)[None] * 7 + 5
    with torch.inference_mode():
        difference = (whole(input_ids=ids).logits - text(input_ids=ids).logits).abs().max()
    if not difference == 0:
        raise NoTextPart(
            f"{path}: by itself the text part has other logits than within "
            f"{type(whole).__name__} (largest difference {float(difference)}): name another base"
        )


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    file = path / "chat_template.json"  # as processors had it
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


if __name__ == "__main__":
    raise SystemExit(main())
