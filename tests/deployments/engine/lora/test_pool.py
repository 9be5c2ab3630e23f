"""The bank against the LoRA formula itself, and the life of its slots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.lora.batch import LoraLayer, LoraModule
from deployments.engine.lora.peft_reader import AdapterWeights, LoraPair
from deployments.engine.lora.pool import BankRefused, LoraPool

SITES = (
    LoraLayer("qkv", 6, (LoraModule("q", 0, 8), LoraModule("k", 8, 12), LoraModule("v", 12, 16))),
    LoraLayer("o", 8, (LoraModule("o", 0, 6),)),
)
SHAPES = {"q": (6, 8), "k": (6, 4), "v": (6, 4), "o": (8, 6)}


def bank(num_slots: int = 5) -> LoraPool:
    return LoraPool(SITES, num_slots, dtype=torch.float64, device=torch.device("cpu"))


def adapter(seed: int, rank: int = 3, modules: str = "qkvo") -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def pair(module: str) -> LoraPair:
        inner, outer = SHAPES[module]
        a = torch.randn(rank, inner, generator=generator)
        return LoraPair(a, torch.randn(outer, rank, generator=generator))

    return AdapterWeights({module: pair(module) for module in modules})


def expected(site: LoraLayer, x: torch.Tensor, weights: AdapterWeights | None) -> torch.Tensor:
    """One token's LoRA. x (in,) -> (out,)"""
    y = torch.zeros(site.parts[-1].stop, dtype=torch.float64)
    for part in site.parts:
        if weights is not None and part.module in weights.pairs:
            pair = weights.pairs[part.module]
            y[part.start : part.stop] = pair.b.double() @ (pair.a.double() @ x)
    return y


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_token_gets_its_own_adapter(data: st.DataObject) -> None:
    """Ranks and targets mixed; the same bank for several mixtures, so that lanes are reused."""
    books = bank()
    loaded: list[AdapterWeights | None] = [None]
    for i in range(data.draw(st.integers(1, 4))):
        rank = data.draw(st.integers(1, 20))
        modules = data.draw(st.sampled_from(["qkvo", "v", "qo", "k"]))
        loaded.append(adapter(i, rank, modules))
        books.install(f"a{i}", books.pack(loaded[-1]))
    for _ in range(3):
        slots = data.draw(st.lists(st.integers(0, len(loaded) - 1), min_size=1, max_size=6))
        counts = data.draw(st.lists(st.integers(1, 3), min_size=len(slots), max_size=len(slots)))
        route = books.route(slots, counts)
        each = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        for site in SITES:
            x = torch.randn(len(each), site.in_features, dtype=torch.float64)
            y = torch.ones(len(each), site.parts[-1].stop, dtype=torch.float64)
            if route is not None:
                route.add(site.name, x, y)
            wanted = torch.stack(
                [1 + expected(site, row, loaded[slot]) for row, slot in zip(x, each, strict=True)]
            )
            torch.testing.assert_close(y, wanted)
        assert (route is None) == (not any(slots))


def test_a_row_keeps_the_version_that_it_began_with() -> None:
    books = bank()
    books.install("a", books.pack(adapter(1)))
    old = books.acquire("a")
    books.install("a", books.pack(adapter(2)))
    new = books.acquire("a")
    assert old != new
    for slot, seed in ((old, 1), (new, 2)):
        route = books.route([slot])
        assert route is not None
        x, y = torch.randn(1, 8, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
        route.add("o", x, y)
        torch.testing.assert_close(y[0], expected(SITES[1], x[0], adapter(seed)))


def test_a_slot_in_use_is_not_given_away() -> None:
    books = bank(num_slots=3)
    books.install("a", books.pack(adapter(1)))
    books.install("b", books.pack(adapter(2)))
    slot = books.acquire("a")
    books.evict("a")
    with pytest.raises(BankRefused, match=r"'c' finds no free slot.*engine.max_adapters"):
        books.install("c", books.pack(adapter(3)))
    assert books.names == ("b",)
    books.release(slot)
    assert books.install("c", books.pack(adapter(3))) == slot


def test_a_reused_slot_holds_nothing_of_its_former_adapter() -> None:
    books = bank(num_slots=2)
    books.install("wide", books.pack(adapter(1, rank=9)))
    books.evict("wide")
    slot = books.install("narrow", books.pack(adapter(2, rank=2, modules="v")))
    route = books.route([slot])
    assert route is not None
    x, y = torch.randn(1, 6, dtype=torch.float64), torch.zeros(1, 16, dtype=torch.float64)
    route.add("qkv", x, y)
    torch.testing.assert_close(y[0], expected(SITES[0], x[0], adapter(2, 2, "v")))
    untouched = torch.zeros(1, 6, dtype=torch.float64)
    route.add("o", torch.randn(1, 8, dtype=torch.float64), untouched)
    assert not untouched.any()


def test_a_pinned_adapter_stays() -> None:
    books = bank()
    books.install("a", books.pack(adapter(1)))
    books.pin("a")
    with pytest.raises(BankRefused, match="'a' is pinned"):
        books.evict("a")
    books.unpin("a")
    books.evict("a")
    with pytest.raises(BankRefused, match=r"'a' is not resident \(resident: none\)"):
        books.acquire("a")


def test_what_does_not_fit_is_named_and_nothing_changes() -> None:
    books = bank()
    wrong = AdapterWeights(
        {"lm_head": LoraPair(torch.ones(1, 2), torch.ones(2, 1)), "q": adapter(1).pairs["o"]}
    )
    with pytest.raises(BankRefused, match=r"lm_head is not a layer.*q maps \(8, 6\)"):
        books.install("a", books.pack(wrong))
    assert books.names == ()
    assert books.num_bytes == 0
