"""Export the trained encoder as the ONNX file with 4-bit weights that serving runs.

ids (B, T) int64 and lengths (B,) int32 -> states (B, T, H), scores (B, T): the last layer's
states, and the attention of the pooled vector to each token, before the softmax. Linear layers are
`MatMulNBits`, the embedding is `GatherBlockQuantized` (operators of ONNX Runtime, domain
com.microsoft).
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from scripts.router.encoder_model import EPSILON, GROUP, Encoder, Layer, Linear, quantise

OPSET = 20
MS = "com.microsoft"
IR_VERSION = 10


def export(encoder: Encoder, path: Path) -> int:
    """Write `encoder`, which must be on the CPU; returns the file's size in bytes."""
    graph = _Graph()
    hidden = encoder.word.weight.shape[1]
    x = _embedded(graph, encoder)
    for number, layer in enumerate(encoder.layers):
        assert isinstance(layer, Layer)
        x = _layer(graph, layer, x, f"l{number}")
    graph.node("Identity", [x], "states")
    weight = graph.tensor("attention.w", _array(encoder.attention.weight).T)
    graph.node("MatMul", [x, weight], "scores_3")
    graph.node("Squeeze", ["scores_3", graph.tensor("last", np.array([-1], np.int64))], "scores")
    value = helper.make_tensor_value_info
    given = [
        value("ids", TensorProto.INT64, ["B", "T"]),
        value("lengths", TensorProto.INT32, ["B"]),
    ]
    told = [
        value("states", TensorProto.FLOAT, ["B", "T", hidden]),
        value("scores", TensorProto.FLOAT, ["B", "T"]),
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "router_encoder", given, told, graph.tensors),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)],
        ir_version=IR_VERSION,
        producer_name="polyclinic",
    )
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path.stat().st_size


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def tensor(self, name: str, value: npt.NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def uint4(self, name: str, shape: list[int], packed: npt.NDArray[np.uint8]) -> str:
        """Add a tensor of 4-bit values, two in a byte."""
        raw = packed.tobytes()
        self.tensors.append(helper.make_tensor(name, TensorProto.UINT4, shape, raw, raw=True))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        given = {"domain": "", **attributes}
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **given))
        return output


def _array(value: torch.Tensor) -> npt.NDArray[np.float32]:
    return value.detach().float().numpy()


def _embedded(graph: _Graph, encoder: Encoder) -> str:
    codes, scales = quantise(encoder.word.weight)
    rows, columns = encoder.word.weight.shape
    graph.uint4("word.q", [rows, columns], _packed(codes.numpy().reshape(rows, columns)))
    graph.tensor("word.scale", _array(scales).reshape(rows, columns // GROUP).astype(np.float16))
    zero = np.full((rows * (columns // GROUP) + 1) // 2, 0x88, np.uint8)  # 8, twice a byte
    graph.uint4("word.zero", [rows, columns // GROUP], zero)
    inputs = ["word.q", "ids", "word.scale", "word.zero"]
    layout = {"gather_axis": 0, "quantize_axis": 1, "block_size": GROUP}
    graph.node("GatherBlockQuantized", inputs, "words.16", domain=MS, **layout)
    graph.node("Cast", ["words.16"], "words", to=TensorProto.FLOAT)
    graph.tensor("positions.16", _array(encoder.position.weight).astype(np.float16))
    graph.node("Cast", ["positions.16"], "positions", to=TensorProto.FLOAT)
    graph.node("Shape", ["ids"], "width", start=1, end=2)
    graph.tensor("zero", np.array([0], np.int64))
    graph.tensor("axis", np.array([0], np.int64))
    graph.node("Slice", ["positions", "zero", "width", "axis"], "position")
    graph.node("Add", ["words", "position"], "embedded")
    return _norm(graph, encoder.norm, "embedded", "embedded.norm")


def _layer(graph: _Graph, layer: Layer, x: str, at: str) -> str:
    qkv = _linear(graph, layer.qkv, x, f"{at}.qkv")
    parts = [f"{at}.{part}" for part in "qkv"]
    graph.nodes.append(
        helper.make_node("Split", [qkv], parts, name=f"{at}.split", axis=-1, num_outputs=3)
    )
    attended, heads = f"{at}.attended", layer.num_heads
    inputs = [*parts, "", "lengths"]
    graph.node("MultiHeadAttention", inputs, attended, domain=MS, num_heads=heads)
    out = _linear(graph, layer.out, attended, f"{at}.out")
    graph.node("Add", [x, out], f"{at}.sum_1")
    x = _norm(graph, layer.norm_1, f"{at}.sum_1", f"{at}.norm_1")
    up = _linear(graph, layer.up, x, f"{at}.up")
    graph.node("Gelu", [up], f"{at}.gelu")
    down = _linear(graph, layer.down, f"{at}.gelu", f"{at}.down")
    graph.node("Add", [x, down], f"{at}.sum_2")
    return _norm(graph, layer.norm_2, f"{at}.sum_2", f"{at}.norm_2")


def _linear(graph: _Graph, linear: torch.nn.Module, x: str, name: str) -> str:
    assert isinstance(linear, Linear)
    n, k = linear.weight.shape
    codes, scales = quantise(linear.weight)
    packed = _packed(codes.numpy().reshape(n, k)).reshape(n, k // GROUP, GROUP // 2)
    quantised = graph.tensor(f"{name}.q", packed)
    scale = graph.tensor(f"{name}.scale", _array(scales).reshape(-1))
    # accuracy_level 4: activations in 8 bits, twice as fast and within the noise of 4 bits
    layout = {"K": k, "N": n, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
    inputs = [x, quantised, scale]
    product = graph.node("MatMulNBits", inputs, f"{name}.product", domain=MS, **layout)
    return graph.node("Add", [product, graph.tensor(f"{name}.b", _array(linear.bias))], name)


def _norm(graph: _Graph, norm: torch.nn.Module, x: str, name: str) -> str:
    assert isinstance(norm, torch.nn.LayerNorm)
    weight = graph.tensor(f"{name}.w", _array(norm.weight))
    bias = graph.tensor(f"{name}.b", _array(norm.bias))
    return graph.node("LayerNormalization", [x, weight, bias], name, axis=-1, epsilon=EPSILON)


def _packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pack (N, K) values of 4 bits into (N, K / 2) bytes, the first of two in the low half."""
    return np.asarray(codes[:, 0::2] | (codes[:, 1::2] << 4), dtype=np.uint8)


def read_back(path: Path | IO[bytes], num_specialties: int) -> Encoder:
    """Read an exported file: weights get the values that 4 bits held, the two heads are new."""
    graph = onnx.load(path).graph
    found = {tensor.name: tensor for tensor in graph.initializer}
    rows, hidden = found["word.q"].dims
    num_layers = sum(name.endswith(".qkv.q") for name in found)
    heads = next(a.i for node in graph.node for a in node.attribute if a.name == "num_heads")
    encoder = Encoder(rows, num_specialties, hidden=hidden, num_heads=heads, num_layers=num_layers)

    def floats(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(found[name]).astype(np.float32))

    def unpacked(name: str, shape: torch.Size) -> torch.Tensor:
        raw = np.frombuffer(found[f"{name}.q"].raw_data, np.uint8)
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1, GROUP).astype(np.float32)
        scales = floats(f"{name}.scale").reshape(-1, 1)
        return (torch.from_numpy(codes - 8) * scales).reshape(shape)

    with torch.no_grad():
        encoder.word.weight.copy_(unpacked("word", encoder.word.weight.shape))
        encoder.position.weight.copy_(floats("positions.16"))
        _read_norm(encoder.norm, floats, "embedded.norm")
        encoder.attention.weight.copy_(floats("attention.w").T)
        for number, layer in enumerate(encoder.layers):
            assert isinstance(layer, Layer)
            for part in ("qkv", "out", "up", "down"):
                linear = getattr(layer, part)
                linear.weight.copy_(unpacked(f"l{number}.{part}", linear.weight.shape))
                linear.bias.copy_(floats(f"l{number}.{part}.b"))
            _read_norm(layer.norm_1, floats, f"l{number}.norm_1")
            _read_norm(layer.norm_2, floats, f"l{number}.norm_2")
    return encoder


def _read_norm(norm: torch.nn.Module, floats: Callable[[str], torch.Tensor], name: str) -> None:
    assert isinstance(norm, torch.nn.LayerNorm)
    norm.weight.copy_(floats(f"{name}.w"))
    norm.bias.copy_(floats(f"{name}.b"))
