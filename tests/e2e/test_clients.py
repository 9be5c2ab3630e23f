"""The clients that people use, against real Ray Serve and a tiny model: openai (Python and npm),
LangChain and curl. Tools, schemas, scores, and LiteLLM: test_client_features.py."""

import asyncio
import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI

SKIN: Any = [{"role": "user", "content": "I have red itchy patches on my elbows: is it eczema?"}]
MAX_TOKENS = 8
NPM_CLIENT = Path(__file__).parent / "npm_client.mjs"


@pytest.fixture(scope="module")
def clinic(tiny_clinic: httpx.Client) -> httpx.Client:
    return tiny_clinic


@pytest.fixture(scope="module")
def base_url(clinic: httpx.Client) -> str:
    return f"{clinic.base_url}v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)


def test_openai_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["auto", "derm", "cardio", "base"]
    assert client.models.retrieve("derm") == models[1]
    with pytest.raises(openai.NotFoundError, match="known: auto, base, cardio, derm"):
        client.models.retrieve("gpt-4")


def test_openai_chats_and_streams_the_same_words(client: openai.OpenAI) -> None:
    asked: Any = {"model": "auto", "messages": SKIN, "max_completion_tokens": MAX_TOKENS}
    more: Any = {"seed": 1, "stop": ["@@"], "user": "u-1", "n": 1, "temperature": 0}
    whole = client.chat.completions.create(**asked, **more)
    assert (whole.model, whole.object) == ("derm", "chat.completion")
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.model_extra is not None
    ours = whole.model_extra["polyclinic"]
    assert (ours["specialty"], ours["reason"]) == ("dermatology", "confident")
    assert whole._request_id == ours["request_id"]
    stream = client.chat.completions.create(
        **asked, **more, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    read, cached = (use.prompt_tokens_details for use in (whole.usage, chunks[-1].usage))
    assert (read and read.cached_tokens) is not None
    assert cached is not None
    assert cached.cached_tokens, "the same prompt was read a second time"
    uncounted = {"prompt_tokens_details": None}
    assert chunks[-1].usage.model_copy(update=uncounted) == whole.usage.model_copy(update=uncounted)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] is not None


def test_strict_validation_accepts_our_replies(base_url: str) -> None:
    strict = openai.OpenAI(
        base_url=base_url, api_key="unused", max_retries=0, _strict_response_validation=True
    )
    chat = strict.chat.completions.create(model="auto", messages=SKIN, max_tokens=MAX_TOKENS)
    assert chat.choices[0].message.role == "assistant"
    text = strict.completions.create(model="base", prompt="What is asthma?", max_tokens=4)
    assert text.choices[0].text is not None
    for chunk in strict.chat.completions.create(
        model="derm", messages=SKIN, max_tokens=4, stream=True
    ):
        assert chunk.object == "chat.completion.chunk"


def test_openai_completes(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="cardio", prompt="What is angina?", max_tokens=6)
    stream = client.completions.create(
        model="cardio", prompt="What is angina?", max_tokens=6, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    extra = {"top_k": 5, "repetition_penalty": 1.1, "min_tokens": 3}
    sampled = client.completions.create(
        model="base", prompt="Why?", max_tokens=6, temperature=1, extra_body=extra
    )
    assert sampled.usage is not None
    assert sampled.usage.completion_tokens >= 3


def test_openais_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="auto", messages=SKIN, n=9)
    assert (refused.value.param, refused.value.code) == ("n", "invalid_value")
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=SKIN)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="derm", prompt="a red rash " * 500, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    assert "maximum context length is 400 tokens" in too_long.value.message


def test_several_prompts_and_token_ids(
    client: openai.OpenAI, tiny_catalogs: dict[str, tuple[Path, Path]]
) -> None:
    from transformers import AutoTokenizer

    prompts = ["What is eczema?", "How is high blood pressure treated?"]
    asked: Any = {"model": "auto", "max_tokens": MAX_TOKENS}
    alone = [client.completions.create(prompt=prompt, **asked) for prompt in prompts]
    whole = client.completions.create(prompt=prompts, **asked)
    assert [c.text for c in whole.choices] == [one.choices[0].text for one in alone]
    assert whole.usage is not None
    assert whole.usage.total_tokens == sum(one.usage.total_tokens for one in alone if one.usage)
    tokenizer = AutoTokenizer.from_pretrained(tiny_catalogs["llama"][0])
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    texts = ["", ""]
    for chunk in client.completions.create(prompt=ids, stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [c.text for c in whole.choices]
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt=[ids[0], [5, 10**6]], **asked)
    assert refused.value.code == "invalid_token_id"
    assert refused.value.param == "prompt.1.1"


def test_a_longer_answer_than_fits_is_cut_with_a_notice(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=SKIN, max_tokens=4096)
    assert whole.model_extra is not None
    assert whole.model_extra["polyclinic"]["notice"] == "max_tokens_lowered"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 512


async def test_openais_async_client(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:

        async def chat(model: str) -> str:
            reply = await client.chat.completions.create(
                model=model, messages=SKIN, max_tokens=MAX_TOKENS
            )
            return reply.model

        models = ["derm", "cardio", "base"] * 3
        assert await asyncio.gather(*map(chat, models)) == models
        stream = await client.chat.completions.create(
            model="derm", messages=SKIN, max_tokens=200, stream=True
        )
        async for chunk in stream:
            assert chunk.choices
            break
        await stream.close()


def test_a_client_that_left_leaves_no_row_behind(clinic: httpx.Client) -> None:
    body = {"question": "a red rash", "max_tokens": 300, "stream": True, "consult": 2}
    with clinic.stream("POST", "/ask", json=body) as response:
        assert next(response.iter_lines()) == "event: route"
    whole = {"prompt": "a red rash", "max_tokens": 400, "min_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        clinic.post("/v1/completions", json=whole, timeout=0.1)
    deadline = time.monotonic() + 5  # /readyz says what was so within the last second
    while time.monotonic() < deadline:
        report = clinic.get("/readyz").json()
        if report["rows_running"] == report["requests_waiting"] == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"still at work: {report}")


def test_langchain(base_url: str) -> None:
    model = ChatOpenAI(
        base_url=base_url,
        api_key="unused",  # type: ignore[arg-type]
        model="auto",
        max_completion_tokens=MAX_TOKENS,
        max_retries=0,
        stream_usage=True,
    )
    question = SKIN[0]["content"]
    whole = model.invoke([("system", "Be brief."), ("human", question)])
    assert isinstance(whole.content, str)
    assert whole.response_metadata["model_name"] == "derm"
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    pieces = list(model.stream([("system", "Be brief."), ("human", question)]))
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    used = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert whole.usage_metadata is not None
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert used[-1][count] == whole.usage_metadata[count]  # type: ignore[literal-required]


def test_langchains_text_completions(base_url: str) -> None:
    options: Any = {"base_url": base_url, "api_key": "unused", "max_retries": 0}
    model = OpenAI(model="auto", max_tokens=MAX_TOKENS, temperature=0, **options)
    questions = ["What is eczema?", "What is angina?"]
    answers = [generations[0].text for generations in model.generate(questions).generations]
    assert answers == [model.invoke(question) for question in questions]
    assert "".join(model.stream(questions[0])) == answers[0]


def curl(*args: str) -> str:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "60", *args], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(clinic: httpx.Client) -> None:
    url, json_type = str(clinic.base_url), "content-type: application/json"
    question = {"question": SKIN[0]["content"], "max_tokens": MAX_TOKENS, "session_id": "visit-7"}
    whole = json.loads(curl(f"{url}ask", "-H", json_type, "-d", json.dumps(question)))
    assert (whole["adapter"], whole["session_id"]) == ("derm", "visit-7")
    body = json.dumps({**question, "stream": True, "consult": 2})
    streamed = curl(
        "-N", "-i", f"{url}ask", "-H", json_type, "-H", "x-request-id: curl-1", "-d", body
    )
    assert streamed.lower().count("x-request-id: curl-1") == 1
    names = [line for line in streamed.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("event: route", "event: done")
    assert names.count("event: answer") == 2
    refused = curl("-w", "%{http_code}", f"{url}ask", "-H", json_type, "-d", "{}")
    assert refused.endswith("400")
    assert "openapi" in json.loads(curl(f"{url}openapi.json"))


def test_opinions_of_a_real_model_are_those_of_each_adapter(clinic: httpx.Client) -> None:
    asked = {"question": SKIN[0]["content"], "max_tokens": MAX_TOKENS}
    body = clinic.post("/ask", json={**asked, "consult": 3}).json()
    assert [o["adapter"] for o in body["opinions"]] == ["derm", "cardio"], "two have an adapter"
    assert body["opinions"][0]["probability"] > body["opinions"][1]["probability"]
    with ThreadPoolExecutor(2) as pool:
        specialties = [o["specialty"] for o in body["opinions"]]
        alone = pool.map(lambda s: clinic.post("/ask", json={**asked, "specialty": s}), specialties)
        answers = [reply.json()["answer"] for reply in alone]
    assert [o["answer"] for o in body["opinions"]] == answers
    assert answers[0] != answers[1], "the adapters do not differ: nothing is tested"


@pytest.mark.long
@pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="node or npm is not installed"
)
def test_openais_npm_client(base_url: str, tmp_path: Path) -> None:
    script = shutil.copy(NPM_CLIENT, tmp_path / "client.mjs")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "openai@7"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=300)
    done = subprocess.run(
        ["node", script, base_url], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tests"] == 9
