"""Served T5, Flan-like and tied ReLU: over HTTP, each answer equals PEFT's for its own adapter."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.prompting import Message, encode_prompt
from tests.conftest import TINY_ADAPTERS
from tests.e2e.conftest import Deploy
from tests.oracle import Oracle

SYSTEM_LINE = "You are a medical assistant."  # of the tiny catalogues
QUESTIONS = (
    "What is eczema?",
    "How is high blood pressure treated?",
    "What causes migraine?",
    "My heart races, and the treatment of my rash did not help.",
)
MAX_TOKENS = 16


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flan_t5", pytest.param("relu_t5", marks=pytest.mark.long)])
def test_sixteen_mixed_requests_each_get_their_own_adapter(
    family: str, tiny_catalogs: dict[str, tuple[Path, Path]], deploy: Deploy
) -> None:
    from deployments.app import build_application
    from deployments.settings import parse_settings

    base, catalog = tiny_catalogs[family]
    tokenizer = AutoTokenizer.from_pretrained(base)
    oracle = Oracle(base, {name: catalog / "weights" / name for name in TINY_ADAPTERS})
    sides = ("base", *TINY_ADAPTERS)

    def expected(question: str, side: str) -> dict[str, Any]:
        prompt = encode_prompt(
            "plain", [Message("user", question)], tokenizer=tokenizer, system_line=SYSTEM_LINE
        )
        answer = oracle.generate(prompt, None if side == "base" else side, MAX_TOKENS)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        return {"text": text, "completion_tokens": len(answer), "prompt_tokens": len(prompt)}

    wanted = {(q, side): expected(q, side) for q in QUESTIONS for side in sides}
    for question in QUESTIONS:
        texts = {wanted[question, side]["text"] for side in sides}
        assert len(texts) == len(sides), "the oracle's answers do not differ: nothing is tested"

    settings = parse_settings(
        {
            "base_model": str(base),
            "adapters": str(catalog),
            "device": "cpu",
            "engine": {"dtype": "float32", "max_rows": 4, "max_input_tokens": 200},
        }
    )
    with deploy(build_application(settings), family.replace("_", "-")) as client:
        report = client.get("/readyz").json()
        assert [a["name"] for a in report["adapters"]] == list(TINY_ADAPTERS)

        def ask(case: tuple[str, str]) -> dict[str, Any]:
            question, side = case
            body = {
                "model": side,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": MAX_TOKENS,
            }
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            reply = response.json()
            assert reply["model"] == side
            return {
                "text": reply["choices"][0]["message"]["content"],
                "completion_tokens": reply["usage"]["completion_tokens"],
                "prompt_tokens": reply["usage"]["prompt_tokens"],
            }

        cases = [(q, side) for q in QUESTIONS for side in sides] + [(q, "derm") for q in QUESTIONS]
        assert len(cases) == 16
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, cases))
        for case, answer in zip(cases, answers, strict=True):
            assert answer == wanted[case], case

        # the same words token by token, and a prompt that cannot fit is refused before it waits
        body = {
            "model": "derm",
            "messages": [{"role": "user", "content": QUESTIONS[0]}],
            "max_tokens": MAX_TOKENS,
        }
        streamed = streamed_text(client, body)
        assert streamed == wanted[QUESTIONS[0], "derm"]["text"]
        too_long = client.post("/ask", json={"question": "red itchy skin " * 300})
        assert too_long.status_code == 400
        assert too_long.json()["error"]["code"] == "prompt_too_long"
        assert "at most 200" in too_long.json()["error"]["message"]


def streamed_text(client: Any, body: dict[str, Any]) -> str:
    import json

    pieces = []
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                pieces.append(chunk["choices"][0]["delta"].get("content", ""))
    assert len(pieces) > 3, "it did not stream"
    return "".join(pieces)
