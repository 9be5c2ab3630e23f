"""The base model that a command names, and how a question is written for it, as in serving."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from adapters.bases.models import Family, resolve_base_model
from adapters.catalog import BaseModelEntry, load_catalog
from adapters.prompt_check import check_prompts, checked_entry
from adapters.prompting import Message, PromptFormat, encode_example, encode_prompt
from scripts.lora.batches import TokenizedPair

CATALOG_DIR = Path(__file__).resolve().parent.parent.parent / "adapters"


@dataclass(frozen=True, slots=True)
class ChosenBase:
    """A base model's folder, its name in the catalogue, its tokenizer and prompt format."""

    name: str
    path: Path
    family: Family
    entry: BaseModelEntry
    tokenizer: Any

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def prompted(self, prompt_format: PromptFormat | None) -> "ChosenBase":
        """Return the same base in another prompt format; None: its own.

        Raises:
            BaseModelError: it cannot write a conversation.
        """
        if prompt_format is None:
            return self
        entry = self.entry.model_copy(update={"prompt_format": prompt_format})
        check_prompts(entry, self.tokenizer)
        return replace(self, entry=entry)

    def prompt(self, question: str, instruction: str = "") -> list[int]:
        """Return the token ids of a question; `instruction` is added to the system line."""
        line = self.entry.system_line
        return encode_prompt(
            self.entry.prompt_format,
            [Message("user", question)],
            tokenizer=self.tokenizer,
            system_line=f"{line} {instruction}".lstrip() if instruction else line,
        )

    def pair(self, question: str, answer: str) -> TokenizedPair:
        """Return the token ids of a question and its answer, the end-of-sequence id included."""
        prompt, ids = encode_example(
            self.entry.prompt_format,
            question,
            answer,
            tokenizer=self.tokenizer,
            system_line=self.entry.system_line,
        )
        return TokenizedPair(prompt, ids)


def chosen_base(args: argparse.Namespace) -> ChosenBase:
    """Find the model of --base_model and --base_model_name.

    Raises:
        BaseModelError, CatalogError: there is no such model, or it cannot be used or prompted.
    """
    found = resolve_base_model(args.base_model)
    name = args.base_model_name or args.base_model
    tokenizer = AutoTokenizer.from_pretrained(found.path, trust_remote_code=False)
    entry = checked_entry(load_catalog(CATALOG_DIR), name, found.family, tokenizer)
    return ChosenBase(name, found.path, found.family, entry, tokenizer)
