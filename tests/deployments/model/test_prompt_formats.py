"""Each adapter is asked as it was trained, and each base as its template allows."""

import json
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters.bases.models import BaseModelError
from adapters.prompting import Message, encode_prompt
from adapters.seed_check import AdapterError
from deployments.messages import GenerateRequest
from deployments.model.loading import load_model
from deployments.settings import parse_settings
from tests.chat_templates import GEMMA_2, MISTRAL_3, UNUSABLE
from tests.deployments.clinic_in_process import MAX_TOKENS, QUESTION, ClinicInProcess, Expected
from tests.oracle import Oracle
from tests.tiny_models import make_catalog

Catalogs = dict[str, tuple[Path, Path]]
FILE = "adapter_model.safetensors"


@pytest.fixture
async def clinic(tiny_catalogs: Catalogs, tmp_path: Path) -> AsyncIterator[ClinicInProcess]:
    clinic = ClinicInProcess(*tiny_catalogs["llama"], tmp_path / "state", max_adapters=4)
    yield clinic
    await clinic.close()


def recording(source: Path, folder: Path, prompt_format: str) -> Path:
    """A copy of an adapter whose files say how it was trained."""
    shutil.copytree(source, folder)
    metadata = {"format": "pt", "prompt_format": prompt_format}
    save_file(load_file(source / FILE), folder / FILE, metadata=metadata)
    return folder


async def add(clinic: ClinicInProcess, source: Path, version: str, **more: Any) -> Any:
    body = {"name": "derm", "source": str(source), "version": version, **more}
    return await clinic.http.post("/v1/adapters", json=body)


async def test_an_adapter_trained_on_the_raw_question_is_asked_the_raw_question(
    clinic: ClinicInProcess, tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    base, catalog = tiny_catalogs["llama"]
    source = catalog / "weights" / "derm"
    oracle = Expected(base, {"derm": source})
    expected = {name: oracle.answer("derm", name) for name in ("chat", "plain", "raw")}
    assert len(set(expected.values())) == 3, "answers do not differ: nothing is tested"
    assert await clinic.ask(0, "derm") == expected["chat"]

    by_metadata = await add(clinic, recording(source, tmp_path / "new", "raw"), "2")
    assert by_metadata.status_code == 201, by_metadata.text
    versions = {v["version"]: v for v in by_metadata.json()["adapter"]["versions"]}
    assert [versions[v]["prompt_format"] for v in ("1", "2")] == [None, "raw"]
    assert [await clinic.ask(n, "derm") for n in range(2)] == [expected["raw"]] * 2
    assert await clinic.ask(0, "derm", "1") == expected["chat"]
    assert await clinic.ask(0, "cardio") == Expected(
        base, {"cardio": catalog / "weights" / "cardio"}
    ).answer("cardio")

    by_operator = await add(clinic, source, "3", prompt_format="plain")
    assert by_operator.status_code == 201, by_operator.text
    assert await clinic.ask(1, "derm") == expected["plain"]
    back = await clinic.http.post("/v1/adapters/derm/rollback")
    assert back.status_code == 200
    assert await clinic.ask(1, "derm") == expected["raw"]


async def test_a_format_that_is_not_known_is_refused(
    clinic: ClinicInProcess, tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    source = tiny_catalogs["llama"][1] / "weights" / "derm"
    reply = await add(clinic, recording(source, tmp_path / "new", "alpaca"), "2")
    assert reply.status_code == 422
    problem = reply.json()["error"]["message"]
    assert "prompt_format" in problem
    assert "'chat', 'plain' or 'raw'" in problem
    assert "alpaca" in problem


def with_template(base: Path, folder: Path, template: str) -> Path:
    made = Path(shutil.copytree(base, folder))
    (made / "chat_template.jinja").write_text(template)
    return made


@pytest.mark.parametrize("template", [GEMMA_2, MISTRAL_3])
async def test_a_base_whose_template_is_strict_answers_every_conversation(
    template: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    base = with_template(tiny_llama_dir, tmp_path / "base", template)
    catalog = make_catalog(
        tmp_path / "catalog", base, prompt_format="chat", adapters={"derm": "dermatology"}
    )
    clinic = ClinicInProcess(base, catalog, tmp_path / "state", max_input_tokens=300)
    try:
        turns = (
            Message("assistant", "Hello."),
            Message("user", "Hi."),
            Message("system", "Be brief."),
            Message("user", QUESTION),
        )
        tokenizer = AutoTokenizer.from_pretrained(base)
        prompt = encode_prompt(
            "chat", turns, tokenizer=tokenizer, system_line="You are a medical assistant."
        )
        derm = {"derm": catalog / "weights" / "derm"}
        tokens = Oracle(base, derm).generate(prompt, None, MAX_TOKENS)
        call = clinic.call(None, None)
        asked = GenerateRequest("r", turns, None, call.sampling, stream=False)
        event = await clinic.replicas[0].answer(asked)
        assert event.error is None
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        assert event.text == whole.rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(event.text) > 3
    finally:
        await clinic.close()


async def test_a_template_that_cannot_be_used_stops_the_start(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    base = with_template(tiny_llama_dir, tmp_path / "base", UNUSABLE["always raises"][0])
    catalog = make_catalog(tmp_path / "catalog", base, prompt_format="chat", adapters={"derm": "d"})
    with pytest.raises(BaseModelError, match=r"chat_template.jinja cannot write one question"):
        ClinicInProcess(base, catalog, tmp_path / "state")


async def test_a_template_whose_tokens_the_base_has_not_stops_the_start(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """A tokenizer that was given tokens, beside a base whose embeddings were not resized."""
    template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    base = with_template(tiny_llama_dir, tmp_path / "base", template)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.save_pretrained(base)
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    catalog = make_catalog(tmp_path / "catalog", base, prompt_format="chat", adapters={"derm": "d"})
    said = rf"has the token ids 0 to {size - 1}, .* with the id {size} \('<\|turn\|>'\)"
    with pytest.raises(BaseModelError, match=said):
        ClinicInProcess(base, catalog, tmp_path / "state")


async def test_an_adapters_own_format_is_tried_on_the_base(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """A base in plain text, and an adapter that was trained with a chat template."""
    base = with_template(tiny_llama_dir, tmp_path / "base", "{{ raise_exception('no chat') }}")
    catalog = make_catalog(
        tmp_path / "catalog", base, prompt_format="plain", adapters={"derm": "dermatology"}
    )
    source = catalog / "weights" / "derm"
    clinic = ClinicInProcess(base, catalog, tmp_path / "state")
    try:
        reply = await add(clinic, source, "2", prompt_format="chat")
        assert reply.status_code == 422
        assert "its prompt format chat cannot write one question" in reply.text
        assert "no chat" in reply.text
    finally:
        await clinic.close()
    file = catalog / "catalog.yaml"
    file.write_text(file.read_text().replace("    rank: 4", "    rank: 4\n    prompt_format: chat"))
    with pytest.raises(AdapterError, match="derm', version 1: its prompt format 'chat' cannot"):
        ClinicInProcess(base, catalog, tmp_path / "other")


def test_the_start_says_that_answers_may_go_on_behind_their_end(
    tiny_catalogs: Catalogs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    our_log_propagates: None,
) -> None:
    base, catalog = tiny_catalogs["llama"]
    other = Path(shutil.copytree(base, tmp_path / "base"))
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    for folder, told in ((base, False), (other, True)):
        settings = parse_settings(
            {"base_model": str(folder), "adapters": str(catalog), "state_dir": str(tmp_path / "s")}
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING, "deployments"):
            load_model(settings, "cpu")
        assert ("'<|im_end|>' (id 2) behind an answer" in caplog.text) == told
