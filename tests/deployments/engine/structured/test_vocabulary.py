"""What a grammar asks for, in a tokenizer whose special tokens have names that are texts too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher
from transformers import AutoTokenizer

from deployments.engine.structured.grammar import GrammarCompiler, json_grammar
from deployments.engine.structured.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("around", ["{}", "x{}y", "{}{}"])
def test_the_name_of_a_special_token_is_written_in_letters(
    tokenizer: Any, name: str, around: str
) -> None:
    """Its token would end the answer, or leave no text."""
    text = around.replace("{}", name)
    pattern = text.replace("|", "\\|")
    eos_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    compiler = GrammarCompiler(Vocabulary(tokenizer, len(tokenizer), [eos_id]))
    patterned = {"type": "string", "pattern": f"^{pattern}$"}
    for schema in ({"const": text}, {"enum": [text]}, patterned):
        matcher = compiler.fresh_matcher(json_grammar(schema)).matcher
        assert _likeliest(matcher, tokenizer) == json.dumps(text)


def _likeliest(matcher: LLMatcher, tokenizer: Any) -> str:
    """What a model writes that takes the first token that may follow."""
    written: list[int] = []
    while not matcher.is_accepting():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        written.append(int(bits.argmax()))
        assert matcher.consume_token(written[-1])
    return str(tokenizer.decode(written, skip_special_tokens=True))
