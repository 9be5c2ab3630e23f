"""How a base model is prompted, tried on every shape of a conversation before any is served."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from adapters.bases.models import BaseModelError
from adapters.catalog import CATALOG_FILE, BaseModelEntry, Catalog
from adapters.prompting import Message, PromptFormat, encode_prompt, render

logger = logging.getLogger(__name__)

_SYSTEM = Message("system", "Answer as a nurse would.")
_USER = Message("user", "What is eczema?")
_ASSISTANT = Message("assistant", "A disease of the skin.")
# What the API accepts; a conversation that ends with the assistant's turn is refused there.
SHAPES: dict[str, tuple[Message, ...]] = {
    "one question": (_USER,),
    "a follow-up": (_USER, _ASSISTANT, _USER),
    "a system message": (_SYSTEM, _USER),
    "several system messages": (_SYSTEM, _SYSTEM, _USER, _ASSISTANT, _SYSTEM, _USER),
    "two user turns in a row": (_USER, _USER, _ASSISTANT, _USER, _USER),
    "two assistant turns in a row": (_USER, _ASSISTANT, _ASSISTANT, _USER),
    "the assistant first": (_ASSISTANT, _USER),
    "an empty turn": (_USER, Message("assistant", ""), _USER),
}


def checked_entry(
    catalog: Catalog, name: str, family: Literal["causal", "seq2seq"], tokenizer: Any
) -> BaseModelEntry:
    """Return how the base model `name` is prompted. A causal model that the catalogue does not
    list and that has no chat template is prompted in plain text.

    Raises:
        BaseModelError: its chat template cannot write a conversation; names the template, the
            conversation and what to do.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    entry = catalog.base_model(name, family=family, has_chat_template=has_template)
    if family == "causal" and not has_template and entry.prompt_format == "plain":
        logger.info("base model %s has no chat template: its prompt format is plain", name)
    check_prompts(entry, tokenizer)
    return entry


def check_prompts(entry: BaseModelEntry, tokenizer: Any) -> None:
    """Raise what `checked_entry` raises."""
    if found := unwritable(encoder_of(entry, tokenizer)):
        raise BaseModelError(_refusal(entry, tokenizer, *found))


class EncodePrompt(Protocol):
    """Write a conversation for a base model, or for an adapter with a prompt format of its own;
    `encode_prompt` says how."""

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        answer_language: str | None,
        prompt_format: PromptFormat | None = None,
    ) -> list[int]: ...


def encoder_of(entry: BaseModelEntry, tokenizer: Any) -> EncodePrompt:
    """Return how conversations are written for this base model."""

    def encode(
        messages: Sequence[Message],
        *,
        answer_language: str | None,
        prompt_format: PromptFormat | None = None,
    ) -> list[int]:
        return encode_prompt(
            prompt_format or entry.prompt_format,
            messages,
            tokenizer=tokenizer,
            system_line=entry.system_line,
            answer_language=answer_language,
        )

    return encode


def unwritable(
    encode: EncodePrompt, prompt_format: PromptFormat | None = None
) -> tuple[str, str] | None:
    """Return the first shape that cannot be written and why; None if all can."""
    for shape, messages in SHAPES.items():
        for language in (None, "English"):
            try:
                ids = encode(messages, answer_language=language, prompt_format=prompt_format)
            except ValueError as error:
                return shape, str(error)
            if not ids:
                return shape, "the prompt has no token"
    return None


def not_in_vocabulary(encode: EncodePrompt, num_token_ids: int) -> tuple[str, int] | None:
    """Return the first shape with a token that the base model has not, and its id; None if it has
    all: a tokenizer may have been given more tokens than the model.

    Args:
        encode: what `unwritable` found nothing against.
    """
    for shape, messages in SHAPES.items():
        largest = max(encode(messages, answer_language=None))
        if largest >= num_token_ids:
            return shape, largest
    return None


def goes_on(tokenizer: Any, eos_ids: Collection[int]) -> str | None:
    """Return why answers in the tokenizer's chat template may not end where they should. None: the
    token that it writes behind an answer ends one.

    Args:
        eos_ids: the tokens that end an answer.
    """
    if not getattr(tokenizer, "chat_template", None) or (token := _end_of_turn(tokenizer)) is None:
        return None
    id_ = tokenizer.convert_tokens_to_ids(token)
    if id_ in eos_ids:
        return None
    return (
        f"{_template_of(tokenizer)} writes {token!r} (id {id_}) behind an answer, and that token "
        f"does not end one (eos_token_id is {sorted(eos_ids)}): answers may go on behind it; add "
        "it to eos_token_id in the base model's generation_config.json"
    )


def _end_of_turn(tokenizer: Any) -> str | None:
    """Return the token that the chat template writes behind an assistant's turn. None: none, or the
    template can write no conversation."""
    talk = [_USER, Message("assistant", "Because."), _USER]
    try:
        text = render("chat", talk, tokenizer=tokenizer, system_line="")
    except ValueError:
        return None
    behind = text.partition("Because.")[2].lstrip()
    tokens = (token.content for token in tokenizer.added_tokens_decoder.values())
    return max(filter(behind.startswith, tokens), key=len, default=None)


def _refusal(entry: BaseModelEntry, tokenizer: Any, shape: str, problem: str) -> str:
    place = f"for '{entry.name}' under base_models of {CATALOG_FILE}"
    if entry.prompt_format != "chat":
        return (
            f"base_model: the prompt format '{entry.prompt_format}' cannot write {shape} for "
            f"'{entry.name}': {problem}; set another prompt_format {place}"
        )
    if not getattr(tokenizer, "chat_template", None):
        return (
            f"base_model: prompt_format is 'chat' {place}, and its tokenizer in "
            f"{tokenizer.name_or_path} has no chat template: set prompt_format: plain there, or "
            "put the template into the model's folder as chat_template.jinja"
        )
    return (
        f"base_model: {_template_of(tokenizer)} cannot write {shape}: {problem}; put a "
        "template that can into the model's folder as chat_template.jinja, or set prompt_format: "
        f"plain {place}"
    )


def _template_of(tokenizer: Any) -> str:
    """Return where the template is written."""
    folder = Path(str(tokenizer.name_or_path))
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    file = next((folder / name for name in names if (folder / name).is_file()), folder)
    return f"the chat template of {file}"
