"""Every conversation is written by every real kind of chat template, or refused before serving."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from adapters.bases.models import BaseModelError
from adapters.catalog import Catalog
from adapters.prompt_check import SHAPES, check_prompts, checked_entry, goes_on
from adapters.prompting import Message, encode_example, encode_prompt, render
from tests.chat_templates import CONTROL, TEMPLATES, UNUSABLE
from tests.tiny_tokenizers import byte_fallback_tokenizer, byte_pair_tokenizer

LINE = "You are a medical assistant."
QUESTION = [Message("user", "What is eczema?")]
KINDS = {
    "byte-level": byte_pair_tokenizer(),
    "SentencePiece": byte_fallback_tokenizer(),
    "SentencePiece, not legacy": byte_fallback_tokenizer(legacy=False),
}
# What the template cannot say, and so is written in other words.
WITHOUT_SYSTEM = {"Gemma 2", "Mistral 0.1", "Phi-3"}
SYSTEM_ANYWHERE = {"Granite 3", "Llama 3", "OLMo 2", "Phi-4-mini", "Qwen3", "Zephyr"} | {
    "no empty turns"
}
STRICT = {"Gemma 2", "Gemma 3", "Mistral 0.1", "Mistral 0.3", "Llama 2"}


def with_template(name: str, kind: str) -> Any:
    tokenizer = copy.deepcopy(KINDS[kind])
    rstrip = name == "Phi-3"  # as its tokenizer has it: the line break behind them is theirs
    control = [AddedToken(token, special=True, rstrip=rstrip) for token in CONTROL.get(name, [])]
    tokenizer.add_tokens(control, special_tokens=True)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def own_ids(tokenizer: Any, turns: list[Message]) -> list[int]:
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids
    return list(ids)


def ids_of(tokenizer: Any, *turns: Message) -> list[int]:
    return encode_prompt("chat", turns, tokenizer=tokenizer, system_line=LINE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_shape_is_written_with_all_its_words(name: str, kind: str) -> None:
    tokenizer = with_template(name, kind)
    check_prompts(Catalog(revision=0).base_model("b"), tokenizer)
    for shape, messages in SHAPES.items():
        marked = [
            Message(turn.role, f"{turn.content} {number}." if turn.content else "")
            for number, turn in enumerate(messages)
        ]
        text = render("chat", marked, tokenizer=tokenizer, system_line=LINE)
        said = [turn.content for turn in marked if turn.content]
        assert all(text.count(content) == 1 for content in said), shape
        order = [text.index(turn.content) for turn in marked if turn.content]
        if name not in ("Mistral 0.3",):  # its system message stands before the last question
            assert order == sorted(order), shape
        assert (LINE in text) == (marked[0].role != "system"), shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("question", ["What is eczema?", "  two\n\nlines \n", "caf\u00e9 \u6f22"])
def test_ids_are_those_of_the_template_where_it_can_say_it(
    name: str, kind: str, question: str
) -> None:
    tokenizer = with_template(name, kind)
    asked, answered = Message("user", question), Message("assistant", "A skin disease.")
    talk = [asked, answered, Message("user", "And now?")]
    if name in WITHOUT_SYSTEM:
        folded = Message("user", f"{LINE}\n\n{question}")
        expected = own_ids(tokenizer, [folded, *talk[1:]])
    else:
        expected = own_ids(tokenizer, [Message("system", LINE), *talk])
    assert ids_of(tokenizer, *talk) == expected


@pytest.mark.parametrize("name", sorted(STRICT))
def test_neighbours_are_merged_where_roles_must_alternate(name: str) -> None:
    tokenizer = with_template(name, "SentencePiece")
    first, second = Message("user", "One."), Message("user", "Two.")
    assert ids_of(tokenizer, first, second) == ids_of(tokenizer, Message("user", "One.\n\nTwo."))
    a, b = Message("assistant", "A."), Message("assistant", "B.")
    both = Message("assistant", "A.\n\nB.")
    assert ids_of(tokenizer, first, a, b, second) == ids_of(tokenizer, first, both, second)


@pytest.mark.parametrize("name", sorted(STRICT))
def test_an_assistants_greeting_follows_the_system_line(name: str) -> None:
    tokenizer = with_template(name, "byte-level")
    greeting, question = Message("assistant", "Hello!"), Message("user", "What is eczema?")
    expected = own_ids(tokenizer, [Message("user", LINE), greeting, question])
    assert ids_of(tokenizer, greeting, question) == expected


def test_a_later_system_message_is_said_as_far_as_the_template_can() -> None:
    turns = [*QUESTION, Message("assistant", "A rash."), Message("system", "Be brief."), *QUESTION]
    system = Message("system", LINE)
    chatml = with_template("ChatML", "byte-level")
    assert ids_of(chatml, *turns) == own_ids(chatml, [system, *turns])
    joined = Message("user", "Be brief.\n\nWhat is eczema?")
    for name in ("system first", "Llama 2", "Mistral 0.3"):
        tokenizer = with_template(name, "byte-level")
        assert ids_of(tokenizer, *turns) == own_ids(tokenizer, [system, *turns[:2], joined])


@pytest.mark.parametrize("name", TEMPLATES)
def test_several_system_messages_first(name: str) -> None:
    tokenizer = with_template(name, "byte-level")
    two = [Message("system", "Be kind."), Message("system", "Be brief.")]
    text = render("chat", [*two, *QUESTION], tokenizer=tokenizer, system_line=LINE)
    assert LINE not in text
    assert text.index("Be kind.") < text.index("Be brief.") < text.index("What is eczema?")
    if name != "ChatML":
        one = render(
            "chat",
            [Message("system", "Be kind.\n\nBe brief."), *QUESTION],
            tokenizer=tokenizer,
            system_line=LINE,
        )
        assert name in SYSTEM_ANYWHERE or text == one


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_that_ends_with_the_assistant_is_refused_alike(name: str) -> None:
    with pytest.raises(ValueError, match="the last message must be the user's"):
        ids_of(with_template(name, "byte-level"), *QUESTION, Message("assistant", "A rash."))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_becomes_a_control_token(name: str, kind: str) -> None:
    tokenizer = with_template(name, kind)
    tokens = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}

    def control_ids(text: str) -> list[int]:
        turns = [Message("system", text), Message("user", text), Message("assistant", text)]
        ids = ids_of(tokenizer, *turns, Message("user", text))
        return [id_ for id_ in ids if id_ in tokens.values()]

    for token in tokens:
        assert control_ids(f"Hi {token} you") == control_ids("Hi you"), token
        assert control_ids(f"{token}") == control_ids("Hi you"), token


def test_an_added_token_that_marks_turns_is_a_control_token() -> None:
    """Some tokenizers list the tokens of their turns without `special`."""
    tokenizer = copy.deepcopy(KINDS["byte-level"])
    tokenizer.add_tokens([AddedToken("<turn>", special=False), AddedToken("<tag>", special=False)])
    tokenizer.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}<turn>"
    turn, tag = tokenizer.convert_tokens_to_ids(["<turn>", "<tag>"])
    ids = ids_of(tokenizer, Message("user", "a <turn> b <tag> c"))
    assert (ids.count(turn), ids.count(tag)) == (3, 1)


def test_an_example_is_trained_as_it_is_served() -> None:
    for name in TEMPLATES:
        tokenizer = with_template(name, "SentencePiece")
        prompt, _ = encode_example(
            "chat", "What is eczema?", "A rash.", tokenizer=tokenizer, system_line=LINE
        )
        assert prompt == ids_of(tokenizer, *QUESTION)


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_that_cannot_is_refused_with_a_way_out(
    name: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "base")
    template, reason = UNUSABLE[name]
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(BaseModelError) as refusal:
        checked_entry(Catalog(revision=0), str(folder), "causal", tokenizer)
    message = str(refusal.value)
    assert reason in message
    assert f"the chat template of {folder}/chat_template.jinja cannot write" in message
    assert f"set prompt_format: plain for '{folder}' under base_models of catalog.yaml" in message


def test_bos_token_that_the_tokenizer_does_not_name() -> None:
    tokenizer = with_template("Gemma 2", "byte-level")
    tokenizer.chat_template = "{{ bos_token + '\n' }}" + TEMPLATES["ChatML"]
    check_prompts(Catalog(revision=0).base_model("b"), tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(BaseModelError, match="'bos_token' is undefined"):
        check_prompts(Catalog(revision=0).base_model("b"), tokenizer)


def test_several_named_templates() -> None:
    tokenizer = copy.deepcopy(KINDS["byte-level"])
    tokenizer.chat_template = {"default": TEMPLATES["ChatML"], "tool_use": "{{ 1 }}"}
    check_prompts(Catalog(revision=0).base_model("b"), tokenizer)
    tokenizer.chat_template = {"rag": TEMPLATES["ChatML"]}
    with pytest.raises(BaseModelError, match="rag"):
        check_prompts(Catalog(revision=0).base_model("b"), tokenizer)


def without_template(tmp_path: Path, tiny_llama_dir: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))
    return folder


def test_a_base_without_a_template_is_prompted_in_plain_text(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = without_template(tmp_path, tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    entry = checked_entry(Catalog(revision=0), str(folder), "causal", tokenizer)
    assert entry.prompt_format == "plain"
    listed = Catalog(revision=0, base_models=[entry.model_copy(update={"prompt_format": "chat"})])
    with pytest.raises(BaseModelError, match=r"has no chat template: set prompt_format: plain"):
        checked_entry(listed, str(folder), "causal", tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt_format", ["plain", "raw"])
def test_plain_text_has_the_tokenizers_own_start(prompt_format: Any, kind: str) -> None:
    """A causal model's prompt begins as its tokenizer begins any text, and never ends in `</s>`."""
    tokenizer = copy.deepcopy(KINDS[kind])
    text = render(prompt_format, QUESTION, tokenizer=tokenizer, system_line=LINE)
    ids = encode_prompt(prompt_format, QUESTION, tokenizer=tokenizer, system_line=LINE)
    assert ids == tokenizer(text).input_ids
    assert tokenizer.eos_token_id not in ids


ENDS = {
    "ChatML": "<|im_end|>",
    "Gemma 2": "<end_of_turn>",
    "Granite 3": "<|end_of_text|>",
    "Llama 2": "</s>",
    "Llama 3": "<|eot_id|>",
    "Mistral 0.3": "</s>",
    "OLMo 2": "</s>",
    "Phi-3": "<|end|>",
    "Phi-4-mini": "<|end|>",
    "Qwen3": "<|im_end|>",
}


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_that_would_go_on_behind_its_end_is_told(name: str) -> None:
    """As with fine-tunes of Llama 3 whose eos_token_id is the base's, <|end_of_text|> alone."""
    tokenizer = with_template(name, "byte-level" if "im_end" in ENDS[name] else "SentencePiece")
    end = tokenizer.convert_tokens_to_ids(ENDS[name])
    assert goes_on(tokenizer, {end, 5}) is None
    said = str(goes_on(tokenizer, {7, 5}))
    assert f"writes {ENDS[name]!r} (id {end}) behind an answer" in said
    assert "eos_token_id is [5, 7]" in said


def test_a_template_that_ends_answers_with_plain_text_says_nothing_of_their_end() -> None:
    tokenizer = copy.deepcopy(KINDS["byte-level"])
    assert tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert goes_on(tokenizer, {0}) is None
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert goes_on(tokenizer, {0}) is None
    tokenizer.chat_template = None
    assert goes_on(tokenizer, {0}) is None
