"""The pool against the LoRA formula itself, and the life of its slots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.errors import LoraPoolError
from deployments.engine.lora.layers import LoraLayer, LoraModule
from deployments.engine.lora.peft_reader import AdapterWeights, LoraPair
from deployments.engine.lora.pool import LoraPool
from deployments.engine.lora.stacks import LoraStacks, PackedLora, pack

LAYERS = (
    LoraLayer("qkv", 6, (LoraModule("q", 0, 8), LoraModule("k", 8, 12), LoraModule("v", 12, 16))),
    LoraLayer("o", 8, (LoraModule("o", 0, 6),)),
)
SHAPES = {"q": (6, 8), "k": (6, 4), "v": (6, 4), "o": (8, 6)}


def make_pool(num_slots: int = 5) -> LoraPool:
    return LoraPool(LAYERS, num_slots, dtype=torch.float64, device=torch.device("cpu"))


def install(pool: LoraPool, name: str, weights: PackedLora) -> int:
    slot = pool.load_slot(name, weights)
    pool.activate(name, slot)
    return slot


def adapter(seed: int, rank: int = 3, modules: str = "qkvo") -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def pair(module: str) -> LoraPair:
        inner, outer = SHAPES[module]
        a = torch.randn(rank, inner, generator=generator)
        return LoraPair(a, torch.randn(outer, rank, generator=generator))

    return AdapterWeights({module: pair(module) for module in modules})


def expected(layer: LoraLayer, x: torch.Tensor, weights: AdapterWeights | None) -> torch.Tensor:
    """One token's LoRA. x (in,) -> (out,)"""
    y = torch.zeros(layer.modules[-1].stop, dtype=torch.float64)
    for module in layer.modules:
        if weights is not None and module.path in weights.pairs:
            pair = weights.pairs[module.path]
            y[module.start : module.stop] = pair.b.double() @ (pair.a.double() @ x)
    return y


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_token_gets_its_own_adapter(data: st.DataObject) -> None:
    """Ranks and targets mixed; the same pool for several mixtures, so that segments are reused."""
    pool = make_pool()
    loaded: list[AdapterWeights | None] = [None]
    for i in range(data.draw(st.integers(1, 4))):
        rank = data.draw(st.integers(1, 20))
        modules = data.draw(st.sampled_from(["qkvo", "v", "qo", "k"]))
        loaded.append(adapter(i, rank, modules))
        install(pool, f"a{i}", pool.pack(loaded[-1]))
    for _ in range(3):
        slots = data.draw(st.lists(st.integers(0, len(loaded) - 1), min_size=1, max_size=6))
        counts = data.draw(st.lists(st.integers(1, 3), min_size=len(slots), max_size=len(slots)))
        lora = pool.torch_batch(slots, counts)
        each = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        for layer in LAYERS:
            x = torch.randn(len(each), layer.in_features, dtype=torch.float64)
            y = torch.ones(len(each), layer.modules[-1].stop, dtype=torch.float64)
            if lora is not None:
                lora.add(layer.name, x, y)
            wanted = torch.stack(
                [1 + expected(layer, row, loaded[slot]) for row, slot in zip(x, each, strict=True)]
            )
            torch.testing.assert_close(y, wanted)
        assert (lora is None) == (not any(slots))


def test_a_row_keeps_the_version_that_it_began_with() -> None:
    pool = make_pool()
    install(pool, "a", pool.pack(adapter(1)))
    old = pool.acquire("a")
    install(pool, "a", pool.pack(adapter(2)))
    new = pool.acquire("a")
    assert old != new
    for slot, seed in ((old, 1), (new, 2)):
        lora = pool.torch_batch([slot])
        assert lora is not None
        x, y = torch.randn(1, 8, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
        lora.add("o", x, y)
        torch.testing.assert_close(y[0], expected(LAYERS[1], x[0], adapter(seed)))


def test_a_slot_in_use_is_not_given_away() -> None:
    pool = make_pool(num_slots=3)
    install(pool, "a", pool.pack(adapter(1)))
    install(pool, "b", pool.pack(adapter(2)))
    slot = pool.acquire("a")
    pool.evict("a")
    with pytest.raises(LoraPoolError, match=r"'c' finds no free slot.*engine.max_adapters"):
        install(pool, "c", pool.pack(adapter(3)))
    assert pool.names == {"b"}
    pool.release(slot)
    assert install(pool, "c", pool.pack(adapter(3))) == slot


def test_a_reused_slot_holds_nothing_of_its_former_adapter() -> None:
    pool = make_pool(num_slots=2)
    install(pool, "wide", pool.pack(adapter(1, rank=9)))
    pool.evict("wide")
    slot = install(pool, "narrow", pool.pack(adapter(2, rank=2, modules="v")))
    lora = pool.torch_batch([slot])
    assert lora is not None
    x, y = torch.randn(1, 6, dtype=torch.float64), torch.zeros(1, 16, dtype=torch.float64)
    lora.add("qkv", x, y)
    torch.testing.assert_close(y[0], expected(LAYERS[0], x[0], adapter(2, 2, "v")))
    untouched = torch.zeros(1, 6, dtype=torch.float64)
    lora.add("o", torch.randn(1, 8, dtype=torch.float64), untouched)
    assert not untouched.any()


def test_an_evicted_adapter_is_not_resident() -> None:
    pool = make_pool()
    install(pool, "a", pool.pack(adapter(1)))
    pool.evict("a")
    with pytest.raises(LoraPoolError, match=r"'a' is not resident \(resident: none\)"):
        pool.acquire("a")
    with pytest.raises(LoraPoolError, match="'a' is not resident"):
        pool.evict("a")


def test_what_does_not_fit_is_named_and_nothing_changes() -> None:
    pool = make_pool()
    wrong = AdapterWeights(
        {"lm_head": LoraPair(torch.ones(1, 2), torch.ones(2, 1)), "q": adapter(1).pairs["o"]}
    )
    with pytest.raises(LoraPoolError, match=r"lm_head is not a layer.*q maps \(8, 6\)"):
        install(pool, "a", pool.pack(wrong))
    assert pool.names == frozenset()
    assert pool.layout == 0


def test_stacks_that_the_device_has_no_room_for_are_refused_and_nothing_changes() -> None:
    free = [1e9]
    stacks = LoraStacks(
        LAYERS, 3, dtype=torch.float64, device=torch.device("cpu"), room=lambda: free[0]
    )
    stacks.write(1, pack(adapter(1, 8, "q"), torch.float64, pinned=False))
    free[0] = 3 * 8 * 16 * (6 + 8) - 1  # bytes: more of q at rank 16 than at 8, and a copy
    layout, rank = stacks.layout, stacks.rank
    for wide in (adapter(2, 16, "q"), adapter(3, 8, "qkvo")):
        with pytest.raises(
            LoraPoolError, match=r"rank \d+ on \d layers takes .* MiB more of the dev"
        ):
            stacks.write(2, pack(wide, torch.float64, pinned=False))
    assert (stacks.layout, stacks.rank, set(stacks.by_module)) == (layout, rank, {"q"})
    stacks.write(2, pack(adapter(4, 4, "q"), torch.float64, pinned=False))  # needs nothing more
    free[0] = 1e9
    stacks.write(2, pack(adapter(2, 16, "q"), torch.float64, pinned=False))
    assert stacks.rank == 16
