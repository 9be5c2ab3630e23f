"""The compiled step against the torch model, and what must be exactly equal within it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import PrefillBatch, TorchPrefillAttention
from deployments.engine.cpu import layout
from deployments.engine.cpu.llama import CompiledLlama
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterHasNoEffect
from deployments.engine.kernels.ops import Segment
from deployments.engine.lora.peft_reader import PeftReader
from deployments.engine.lora.pool import LoraPool
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.base import Model
from deployments.engine.models.llama import LlamaModel
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.rows_by_hand import run_rows
from tests.tiny_models import make_adapter, make_tiny_llama, make_tiny_qwen2

pytestmark = pytest.mark.slow  # the first of them compiles the step

POSITIONS = 384
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Make = Callable[..., Path]
BASES: dict[str, Make] = {
    "llama": make_tiny_llama,
    "biases": lambda folder: make_tiny_llama(folder, attention_bias=True, mlp_bias=True),
    "odd sizes": lambda folder: make_tiny_llama(
        folder, hidden_size=72, intermediate_size=100, num_attention_heads=3,
        num_key_value_heads=1, head_dim=48,
    ),
    "one head for each": lambda folder: make_tiny_llama(
        folder, num_attention_heads=2, num_key_value_heads=2, head_dim=80
    ),
    "many queries for each": lambda folder: make_tiny_llama(
        folder, hidden_size=96, num_attention_heads=6, num_key_value_heads=1, head_dim=16
    ),
    "qwen2": make_tiny_qwen2,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


class Side:
    """One model with two adapters and a cache of four rows."""

    def __init__(self, model: Model, base: object, folders: Sequence[Path]) -> None:
        self.model = model
        with torch.device("meta"):
            reader = PeftReader(type(base)(base.config))  # type: ignore[attr-defined,call-arg]
        in_blocks = isinstance(model, CompiledLlama)
        self.pool = LoraPool(
            model.lora_layers,
            6,
            dtype=torch.bfloat16 if in_blocks else torch.float32,
            device=model.device,
            in_blocks=in_blocks,
        )
        self.packed = [self.pool.pack(reader.read(folder)) for folder in folders]
        for folder, weights in zip(folders, self.packed, strict=True):
            self.pool.activate(folder.name, self.pool.load_slot(folder.name, weights))
        shape = model.kv_shape
        self.cache = KvCache(
            [POSITIONS] * 4,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=model.device,
        )

    def read(self, prompts: Sequence[tuple[int, Sequence[int], int, int]]) -> torch.Tensor:
        """Return the logits behind each prompt. A prompt: row, tokens, first position, slot."""
        tokens, positions, where, segments, counts = [], [], [], [], []
        for row, ids, first, _ in prompts:
            at, begin = torch.arange(first, first + len(ids)), row * POSITIONS
            segments.append(Segment(len(tokens), len(ids), first, begin, first + len(ids)))
            tokens += ids
            positions.append(at)
            where.append(at + begin)
            counts.append(len(ids))
        batch = PrefillBatch(
            torch.tensor(tokens),
            torch.cat(positions),
            torch.cat(where),
            TorchPrefillAttention(segments),
        )
        lora = self.model.lora_batch(self.pool, [slot for *_, slot in prompts], counts)
        states = self.model.prefill(self.cache, batch, lora)
        last = torch.tensor(counts).cumsum(0) - 1
        return self.model.logits(states[last]).float().clone()

    def decode(
        self, rows: Sequence[int], tokens: Sequence[int], at: Sequence[int], slots: Sequence[int]
    ) -> torch.Tensor:
        batch = self.model.decode_batch(self.cache, torch.tensor(tokens), rows, at, at)
        lora = self.model.lora_batch(self.pool, slots)
        return self.model.logits(self.model.decode(self.cache, batch, lora)).float().clone()


# Adapters, caches and threads do not know the bits: two bases do for four.
KINDS = [(name, 8) for name in sorted(BASES)] + [("odd sizes", 4), ("qwen2", 4)]


@pytest.fixture(scope="module", params=KINDS, ids=[f"{name}-{bits}" for name, bits in KINDS])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Side]:
    """The compiled model and the torch model in float32."""
    folder = tmp_path_factory.mktemp("cpu")
    name, bits = request.param
    base = BASES[name](folder / "base")
    folders = [
        make_adapter(base, folder / "a", base_name="b", seed=1, rank=8, std=0.3),
        make_adapter(
            base, folder / "b", base_name="b", seed=2, rank=19, std=0.1, targets=LINEAR
        ),
    ]  # fmt: skip
    both = []
    for make in (
        lambda model: CompiledLlama(model, POSITIONS, 2, bits=bits),
        lambda model: LlamaModel(model, torch.float32, POSITIONS),
    ):
        model = load_pretrained(base, "causal", device="cpu", dtype="float32").model
        if bits == 4:
            round_to_blocks(model.model.layers)
        with torch.inference_mode():
            both.append(Side(make(model), model, folders))  # type: ignore[no-untyped-call]
    return both


def round_to_blocks(layers: torch.nn.Module) -> None:
    """Give each 32 inputs of a weight 16 values, as Q4_1 does: four bits hold them."""
    for weight in (each for name, each in layers.named_parameters() if each.dim() == 2):
        whole = torch.nn.functional.pad(weight.data, (0, -weight.shape[1] % 32))
        blocks = whole.unflatten(1, (-1, 32))  # type: ignore[no-untyped-call]
        least = blocks.amin(2, keepdim=True)
        step = (blocks.amax(2, keepdim=True) - least) / 15
        rounded = ((blocks - least) / step.clamp(min=1e-30)).round() * step + least
        weight.data = rounded.flatten(1)[:, : weight.shape[1]].contiguous()


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 250, (count,), generator=generator).tolist()


def assert_near(found: torch.Tensor, expected: torch.Tensor, side: Side) -> None:
    """A fault makes it about 1; bytes cost a tiny random model a few hundredths, and steps of four
    bits in bfloat16 up to a quarter."""
    assert isinstance(side.model, CompiledLlama)
    share = 0.15 if side.model._layers[0].weights[0].fields[2] == 8 else 0.3
    distance = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert distance.max() < share, f"relative distances {distance.tolist()}"


@torch.inference_mode()
def test_logits_are_near_the_torch_model_for_mixed_adapters(sides: list[Side]) -> None:
    prompts = [(0, ids(21, 1), 0, 0), (1, ids(5, 2), 0, 1), (3, ids(40, 3), 0, 2)]
    compiled, expected = (side.read(prompts) for side in sides)
    assert_near(compiled, expected, sides[0])
    for step in range(3):
        at = [21 + step, 5 + step, 40 + step]
        found, wanted = (side.decode([0, 1, 3], [7 + step, 9, 11], at, [0, 1, 2]) for side in sides)
        assert_near(found, wanted, sides[0])
    other = sides[0].decode([0, 1, 3], [9, 9, 11], at, [2, 2, 0])
    assert ((other - found).norm(dim=-1) / found.norm(dim=-1)).min() > 0.1, "adapters do nothing"


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(sides: list[Side]) -> None:
    side, prompt = sides[0], ids(30, 4)
    model = side.model
    assert isinstance(model, CompiledLlama)
    alone = side.read([(2, prompt, 0, 2)])
    after = side.decode([2], [5], [30], [2])
    crowd = [(0, ids(50, 5), 0, 1), (1, ids(3, 6), 0, 0), (2, prompt, 0, 2)]
    for threads in (1, 2, 5):
        model.num_threads = threads
        assert torch.equal(side.read(crowd)[2:], alone)
        found = side.decode([0, 1, 2], [8, 8, 5], [50, 3, 30], [1, 0, 2])
        assert torch.equal(found[2:], after)
    model.num_threads = 2


@torch.inference_mode()
def test_a_prompt_in_chunks_and_a_long_one_are_read_the_same(sides: list[Side]) -> None:
    side, prompt = sides[0], ids(300, 7)  # more than go through the layers together
    whole = side.read([(0, prompt, 0, 1)])
    for first, stop in ((0, 17), (17, 50), (50, 300)):
        parts = side.read([(1, prompt[first:stop], first, 1)])
    assert torch.equal(whole, parts)
    assert_near(whole, sides[1].read([(0, prompt, 0, 1)]), side)


@torch.inference_mode()
def test_an_answer_token_by_token_is_the_prompt_at_once(sides: list[Side]) -> None:
    side, prompt = sides[0], ids(24, 8)
    whole = side.read([(0, prompt, 0, 2)])
    side.read([(1, prompt[:7], 0, 2)])
    for at in range(7, 24):
        last = side.decode([1], [prompt[at]], [at], [2])
    assert torch.equal(whole, last)


@torch.inference_mode()
def test_a_slot_that_is_written_again_has_its_new_adapter_alone(sides: list[Side]) -> None:
    side, prompt = sides[0], ids(9, 9)
    first, second = (side.read([(0, prompt, 0, slot)]) for slot in (1, 2))
    base = side.read([(0, prompt, 0, 0)])
    reused = side.pool.load_slot("new", side.packed[1])  # adapts more modules than the other one
    assert torch.equal(side.read([(0, prompt, 0, reused)]), second)
    assert reused == side.pool.load_slot("newer", side.packed[0])
    assert torch.equal(side.read([(0, prompt, 0, reused)]), first)
    assert torch.equal(side.read([(0, prompt, 0, 0)]), base)


@torch.inference_mode()
def test_all_that_the_next_modules_need_is_asked_for_in_time(sides: list[Side]) -> None:
    side = sides[0]
    model = side.model
    assert isinstance(model, CompiledLlama)
    model.num_threads = 1
    side.decode([0, 1, 2, 3], [5, 6, 7, 8], [60] * 4, [2, 1, 0, 2])
    model.num_threads = 2
    asked, last, *_ = model._array(layout.CURSORS)[0]
    assert asked == last == len(model.lora_layers) + layout.O  # the next step's q, k and v


def test_positions_behind_the_longest_answer_do_not_change_dynamic_frequencies(
    tmp_path: Path,
) -> None:
    """Rows are whole blocks of positions: a table of 96 has other frequencies than one of 90."""
    rope = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
    options = {"max_position_embeddings": 90, "rope_parameters": rope}
    base = make_tiny_llama(tmp_path / "base", **options)
    loaded = load_pretrained(base, "causal", device="cpu", dtype="float32")
    decoder = build_decoder(loaded, "auto", FastLimits(1, 90, 1), {}, weights="int8")
    assert isinstance(decoder, ModelRunner)
    model = decoder._model
    assert isinstance(model, CompiledLlama)
    assert len(model._cos) > 90
    inner: Any = load_pretrained(base, "causal", device="cpu", dtype="float32").model
    cos, _ = inner.model.rotary_emb(torch.empty(1), torch.arange(90)[None])
    assert torch.equal(torch.from_numpy(model._cos[:90]), cos[0])


@pytest.fixture(params=["int8", "int4"])
def runner(tmp_path: Path, request: pytest.FixtureRequest) -> ModelRunner:
    base = make_tiny_llama(tmp_path / "base")
    loaded = load_pretrained(base, "causal", device="cpu", dtype="float32")
    loaded = replace(loaded, eos_ids=frozenset({-1}))
    decoder = build_decoder(loaded, "auto", FastLimits(4, 96, 3), {}, weights=request.param)
    assert isinstance(decoder, ModelRunner)
    return decoder


def test_the_decoder_serves_it_and_says_so(runner: ModelRunner, tmp_path: Path) -> None:
    assert runner.info.weights in ("int8: asked for", "int4: asked for")
    assert runner.info.threads == 1
    folder = make_adapter(tmp_path / "base", tmp_path / "a", base_name="b", seed=3, std=0.5)
    runner.load_adapter("a", folder)
    prompt = tuple(ids(12, 10))

    def answers(*adapters: str | None) -> list[list[int]]:
        asked = [Request(str(i), prompt, a, SamplingParams(10)) for i, a in enumerate(adapters)]
        return run_rows(runner, asked).answers

    base, adapted, again = answers(None, "a", None)
    assert base == again != adapted
    assert answers("a") == [adapted]
    runner.evict("a")
    assert answers(None) == [base]


def test_an_adapter_without_effect_is_refused(runner: ModelRunner, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "base", tmp_path / "a", base_name="b", seed=3, std=0.0)
    with pytest.raises(AdapterHasNoEffect, match="does not change"):
        runner.load_adapter("a", folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_of_no_numbers_is_refused(
    runner: ModelRunner, tmp_path: Path, bad: float
) -> None:
    folder = make_adapter(tmp_path / "base", tmp_path / "a", base_name="b", seed=3)
    weights = runner.read_adapter(folder)
    weights.block.fill_(bad)
    with pytest.raises(AdapterHasNoEffect, match="infinite or NaN"):
        runner.install("a", weights)
