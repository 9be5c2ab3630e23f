"""The ONNX file that serving runs gives what the PyTorch model with 4-bit weights gives."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from router.encoder import softmax
from scripts.router.encoder_export import export, read_back
from scripts.router.encoder_model import MAX_POSITIONS, Encoder


def tiny(num_pieces: int, hidden: int, num_layers: int) -> Encoder:
    torch.manual_seed(1)
    encoder = Encoder(num_pieces, 3, hidden=hidden, num_heads=4, num_layers=num_layers).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    encoder.set_quantised(True)
    return encoder


def both(
    encoder: Encoder, file: Path, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    """(states, scores) of the file and of the model."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {"ids": ids, "lengths": lengths})
    mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        states = encoder(torch.from_numpy(ids), mask)["states"]
        scores = encoder.attention(states).squeeze(-1)
    return list(found), [states.numpy(), scores.numpy()]


@pytest.mark.parametrize(
    ("num_pieces", "hidden", "num_layers"),
    [(50, 64, 1), (51, 64, 2), (50, 128, 4)],  # an odd number of scales too
)
def test_the_file_gives_what_the_model_gives(
    tmp_path: Path, num_pieces: int, hidden: int, num_layers: int
) -> None:
    """Measured, the worst of all tokens: cosine 0.99998, relative error 0.0056, weight of a token
    in the pooled vector 0.65 % off. The file's activations have 8 bits."""
    encoder = tiny(num_pieces, hidden, num_layers)
    file = tmp_path / "encoder.onnx"
    assert export(encoder, file) == file.stat().st_size
    generator = np.random.default_rng(0)
    lengths = np.array([3, 17, 40, MAX_POSITIONS], dtype=np.int32)
    ids = generator.integers(0, num_pieces, (len(lengths), MAX_POSITIONS))
    ids[np.arange(MAX_POSITIONS)[None] >= lengths[:, None]] = 1
    ids[0, 1] = num_pieces - 1
    (states, scores), (wanted, wanted_scores) = both(encoder, file, ids, lengths)
    for row, length in enumerate(lengths):
        ours, theirs = states[row, :length], wanted[row, :length]
        lengths_of = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = (ours * theirs).sum(axis=1) / lengths_of
        assert cosines.min() > 0.9999
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 0.012
        weights = softmax(scores[row, :length]), softmax(wanted_scores[row, :length])
        assert np.abs(weights[0] / weights[1] - 1).max() < 0.02


def test_padding_changes_nothing(tmp_path: Path) -> None:
    encoder = tiny(50, 64, 2)
    export(encoder, tmp_path / "encoder.onnx")
    row = np.array([[0, 7, 9, 11, 2]])
    padded = np.concatenate([row, np.ones((1, 20), dtype=np.int64)], axis=1)
    length = np.array([5], dtype=np.int32)
    short, _ = both(encoder, tmp_path / "encoder.onnx", row, length)
    long, _ = both(encoder, tmp_path / "encoder.onnx", padded, length)
    for one, other in zip(short, long, strict=True):
        assert np.allclose(one, other[:, :5], atol=1e-4)


def test_weights_have_four_bits(tmp_path: Path) -> None:
    encoder = tiny(1000, 128, 2)
    size = export(encoder, tmp_path / "encoder.onnx")
    num_weights = sum(p.numel() for name, p in encoder.named_parameters() if p.dim() == 2)
    assert size < 0.9 * num_weights  # half a byte, scales, positions in 16 bits


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(tiny(50, 64, 1), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_read_back_is_the_model_that_was_written(tmp_path: Path) -> None:
    encoder = tiny(51, 64, 2)
    export(encoder, tmp_path / "encoder.onnx")
    found = read_back(tmp_path / "encoder.onnx", 3).eval()
    found.set_quantised(True)
    ids = torch.randint(0, 51, (3, 20))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        ours, theirs = found(ids, mask), encoder(ids, mask)
    for name in ("states", "pooled"):
        assert torch.allclose(ours[name], theirs[name], atol=0.02), name
        assert not torch.allclose(ours[name], torch.zeros(()), atol=0.1)
