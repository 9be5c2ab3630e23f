"""The shipped application on the real base model, over HTTP, on real Ray Serve.

float32 throughout, so that every answer can be compared with PEFT's.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from adapters.bases.models import resolve_base_model
from adapters.catalog import load_catalog
from adapters.prompting import Message, encode_prompt
from scripts.make_specialists import TWELVE
from tests.e2e.conftest import ROOT, Deploy
from tests.oracle import Oracle

pytestmark = pytest.mark.base_model

BASE = "smollm2-135m-instruct"
# Compared with PEFT token by token; all twelve would take minutes.
SPECIALISTS = ("dermatology", "cardiology", "neurology")
QUESTIONS = {
    "dermatology": "I have red itchy patches on my elbows and knees, what could it be?",
    "cardiology": "My heart sometimes races when I climb the stairs, is that dangerous?",
    "neurology": "What are the first signs of Parkinson's disease?",
}
MAX_TOKENS = 12
PARITY_TOKENS = 36  # enough for any two adapters to part ways on each question


@pytest.fixture(scope="module")
def clinic(deploy: Deploy) -> Iterator[httpx.Client]:
    from deployments.app import build_application
    from deployments.settings import parse_settings

    settings = parse_settings({"device": "cpu", "engine": {"dtype": "float32", "max_rows": 8}})
    with deploy(build_application(settings), "clinic") as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(clinic: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{clinic.base_url}v1", api_key="unused", max_retries=0)


def ask(clinic: httpx.Client, question: str, **more: Any) -> dict[str, Any]:
    response = clinic.post("/ask", json={"question": question, "max_tokens": MAX_TOKENS, **more})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


@pytest.mark.parametrize("specialty", SPECIALISTS)
def test_an_english_question_reaches_its_specialist(clinic: httpx.Client, specialty: str) -> None:
    reply = ask(clinic, QUESTIONS[specialty])
    assert (reply["specialty"], reply["adapter"]) == (specialty, specialty)
    assert (reply["reason"], reply["notice"], reply["language"]) == ("confident", None, "en")
    assert reply["alternatives"][0]["specialty"] == specialty
    assert reply["answer"].strip()
    assert reply["usage"]["completion_tokens"] <= MAX_TOKENS
    assert reply["timings_ms"]["first_token"] > 0


@pytest.mark.parametrize(
    ("question", "specialty"),
    [
        ("J'ai des plaques rouges qui démangent sur les coudes, que faire ?", "dermatology"),
        ("Quels sont les premiers signes de la maladie de Parkinson ?", "neurology"),
    ],
)
def test_a_french_question_is_routed_and_answered_in_english(
    clinic: httpx.Client, question: str, specialty: str
) -> None:
    reply = ask(clinic, question)
    assert (reply["specialty"], reply["adapter"]) == (specialty, specialty)
    assert (reply["language"], reply["notice"]) == ("fr", "language_not_supported")


def test_all_twelve_specialists_are_listed_and_answer(clinic: httpx.Client) -> None:
    listed = {model["id"] for model in clinic.get("/v1/models").json()["data"]}
    assert listed == {"auto", "base", *TWELVE}
    question = "What are the first signs, and how is it treated?"
    with ThreadPoolExecutor(len(TWELVE)) as pool:
        replies = list(pool.map(lambda one: ask(clinic, question, specialty=one), TWELVE))
    for specialty, reply in zip(TWELVE, replies, strict=True):
        assert (reply["adapter"], reply["reason"]) == (specialty, "explicit")
        assert reply["answer"].strip()


def test_a_specialty_without_an_adapter(clinic: httpx.Client) -> None:
    reply = ask(clinic, "I feel hopeless every day and nothing gives me joy: is it depression?")
    assert reply["specialty"] == "psychiatry"
    assert (reply["adapter"], reply["reason"]) == (None, "no_adapter")


def test_football_is_out_of_scope(clinic: httpx.Client) -> None:
    reply = ask(clinic, "Who won the football world cup in 2018?")
    assert (reply["specialty"], reply["adapter"]) == (None, None)
    assert (reply["reason"], reply["in_scope"]) == ("out_of_scope", False)


@pytest.mark.slow
def test_sixteen_mixed_requests_equal_peft_alone(clinic: httpx.Client) -> None:
    """Adapters differ from base and from each other; each request got its own.

    Behind each token of an answer, PEFT finds the next one the likeliest: with its adapter alone,
    this is the answer that PEFT would give.
    """
    from transformers import AutoTokenizer

    sides = ("base", *SPECIALISTS)
    questions = list(QUESTIONS.values())[:2]

    def chat(case: tuple[str, str]) -> tuple[tuple[str, ...], str]:
        question, side = case
        body = {
            "model": side,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": PARITY_TOKENS,
            "logprobs": True,
        }
        response = clinic.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        reply = response.json()
        assert reply["model"] == side
        [choice] = reply["choices"]
        tokens = tuple(scored["token"] for scored in choice["logprobs"]["content"])
        assert "".join(tokens).startswith(choice["message"]["content"])
        return tokens, choice["finish_reason"]

    cases = [(question, side) for question in questions for side in sides]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(chat, [*cases, *cases]))
    assert len(answers) == 16
    assert len(set(answers)) == len(cases), "each side has its own answer, the same each time"
    assert answers[:8] == answers[8:]

    resolved = resolve_base_model(BASE)
    entry = load_catalog(ROOT / "adapters").base_model(BASE)
    torch.set_num_threads(1)  # two would wait for each other beside the clinic's own
    folders = {name: ROOT / "adapters" / "weights" / name for name in SPECIALISTS}
    oracle = Oracle(resolved.path, folders)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    decoder = tokenizer.backend_tokenizer.decoder
    id_of = {decoder.decode([token]): token_id for token, token_id in tokenizer.get_vocab().items()}
    for (question, side), (tokens, reason) in zip(cases, answers[:8], strict=True):
        turns = [Message("user", question)]
        prompt = encode_prompt(
            entry.prompt_format, turns, tokenizer=tokenizer, system_line=entry.system_line
        )
        ids = [id_of[token] for token in tokens]
        if reason == "stop" and ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
        assert reason == "stop" or len(ids) == PARITY_TOKENS
        scores = oracle.logprobs(prompt, ids, None if side == "base" else side)
        assert scores[len(prompt) - 1 :].argmax(-1).tolist() == ids, (question, side)


def test_the_openai_client_lists_chats_and_streams(openai_client: openai.OpenAI) -> None:
    assert [m.id for m in openai_client.models.list()] == ["auto", *TWELVE, "base"]
    messages: Any = [{"role": "user", "content": QUESTIONS["neurology"]}]
    whole = openai_client.chat.completions.create(
        model="auto", messages=messages, max_tokens=MAX_TOKENS
    )
    assert whole.model == "neurology"
    assert whole.choices[0].finish_reason in ("stop", "length")
    stream = openai_client.chat.completions.create(
        model="auto",
        messages=messages,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices]
    assert "".join(filter(None, pieces)) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3, "it did not stream"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
    completion = openai_client.completions.create(
        model="base", prompt="What is asthma?", max_tokens=4
    )
    assert completion.choices[0].text


def test_a_follow_up_stays_with_its_specialist(openai_client: openai.OpenAI) -> None:
    first: Any = [{"role": "user", "content": QUESTIONS["dermatology"]}]
    opening = openai_client.chat.completions.create(model="auto", messages=first, max_tokens=8)
    follow_up = [
        *first,
        {"role": "assistant", "content": opening.choices[0].message.content},
        {"role": "user", "content": "and the treatment?"},
    ]
    reply = openai_client.chat.completions.create(model="auto", messages=follow_up, max_tokens=8)
    assert reply.model == "dermatology"
    assert reply.model_extra is not None
    assert reply.model_extra["polyclinic"]["reason"] == "kept"


def test_a_system_message_is_never_classified(openai_client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "You only speak about skin, eczema and acne."},
        {"role": "user", "content": QUESTIONS["neurology"]},
    ]
    reply = openai_client.chat.completions.create(model="auto", messages=messages, max_tokens=4)
    assert reply.model == "neurology"


BAD_REQUESTS: list[tuple[str, Any, int, str]] = [
    ("/ask", {"question": ""}, 400, "empty"),
    ("/ask", {"question": "   \n"}, 400, "empty"),
    ("/ask", {"question": 7}, 400, "valid string"),
    ("/ask", b"not json", 400, "not JSON"),
    ("/ask", b'{"question": "' + b"x" * 2**20 + b'"}', 413, "at most 262144"),
    ("/ask", {"question": "x" * 100_000}, 400, "at most 8000"),
    ("/ask", {"question": "a rash", "temprature": 1}, 400, "unknown field"),
    ("/ask", {"question": "a rash", "max_tokens": -5}, 400, "greater than or equal to 1"),
    ("/ask", {"question": "a rash", "max_tokens": 10**7}, 400, "limit of 512"),
    ("/ask", {"question": "\N{GRINNING FACE}"}, 400, "no letters at all"),
    ("/ask", {"question": "ما هو علاج الاكزيما"}, 400, "found ARABIC"),
    ("/ask", {"question": "rash\x07"}, 400, "U+0007"),
    ("/ask", {"question": "\ud800 rash"}, 400, "U+D800"),
    (
        "/v1/chat/completions",
        {"model": "gpt-4", "messages": [{"role": "user", "content": "a rash"}]},
        404,
        "known: auto, base",
    ),
    (
        "/v1/chat/completions",
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "a rash"}]}',
        400,
        "finite number",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD_REQUESTS)
def test_bad_input_is_refused_and_the_server_goes_on(
    clinic: httpx.Client, path: str, body: Any, status: int, words: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = clinic.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert clinic.get("/healthz").status_code == 200


def test_wrong_method_and_content_type(clinic: httpx.Client) -> None:
    assert clinic.get("/ask").status_code == 405
    response = clinic.post("/ask", content=b"question=rash", headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_route_answers_without_generating(clinic: httpx.Client) -> None:
    response = clinic.post("/route", json={"questions": list(QUESTIONS.values())})
    assert [r["specialty"] for r in response.json()["routes"]] == list(QUESTIONS)


def test_readyz_names_what_is_loaded(clinic: httpx.Client) -> None:
    report = clinic.get("/readyz").json()
    assert [a["name"] for a in report["adapters"]] == list(TWELVE)
    assert (report["device"], report["dtype"], report["decoder"]) == ("cpu", "float32", "fast")
    assert "psychiatry" in report["router"]["without_adapter"]
