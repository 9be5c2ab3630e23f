"""The hot-add benchmark's arguments, what it makes of given times, and what it serves."""

import argparse
import json
from pathlib import Path

import pytest

from adapters.bases.models import resolve_base_model
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import Pretrained, load_pretrained
from deployments.settings import parse_settings
from scripts.benchmark import main
from scripts.benchmarks.bases import models, shapes
from scripts.benchmarks.bases.models import load_skeleton
from scripts.benchmarks.in_process.random_adapters import make_random_adapters, rank_of_size
from scripts.benchmarks.live_adapters.hot_add import add_arguments, others_report
from scripts.benchmarks.live_adapters.hot_add_operator import unconfirmed
from scripts.benchmarks.live_adapters.hot_add_service import prepare
from scripts.benchmarks.over_http.streams import Streamed, longest_gap_s, per_token_ms, token_times


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_the_defaults_are_those_of_the_aim() -> None:
    args = parsed()
    assert (args.replicas, args.megabytes, args.adds, args.rank) == (2, 8.0, 8, None)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--adapters 1", "a whole number from 2 is expected"),
        ("--replicas 0", "a whole number from 1 is expected"),
        ("--quiet_s 0", "a number above 0 is expected"),
        ("--device tpu", "invalid choice"),
    ],
)
def test_arguments_out_of_bounds(argv: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["hot_add", *argv.split()])
    assert told in capsys.readouterr().err


def test_tokens_of_a_piece_are_shared_out_by_characters() -> None:
    assert token_times([(1.0, 10), (2.0, 20), (3.0, 10)], 4) == [1.0, 2.0, 2.0, 3.0]
    assert len(token_times([(0.1 * n, 3) for n in range(7)], 23)) == 23
    assert token_times([], 3) == []


def test_time_per_token_counts_what_came_within_the_windows() -> None:
    tokens = [0.5, 1.0, 1.5, 2.0, 9.0]
    assert per_token_ms(tokens, [(1.0, 2.0)], 3) == pytest.approx(1500)  # 3 rows, 2 tokens, 1 s
    assert per_token_ms(tokens, [(0.0, 1.0), (8.0, 10.0)], 1) == pytest.approx(1500)


def test_a_gap_counts_where_it_touches_a_window_and_never_between_answers() -> None:
    answers = [[0.0, 1.0, 3.0], [10.0, 10.5]]
    assert longest_gap_s(answers, [(2.5, 2.6)]) == 2.0
    assert longest_gap_s(answers, [(0.1, 0.2), (10.1, 10.2)]) == 1.0
    assert longest_gap_s(answers, [(4.0, 9.0)]) == 0.0


def test_the_report_compares_adds_with_quiet_windows() -> None:
    tokens = [0.1, 0.2, 2.1, 2.2, 2.3, 2.4, 4.1, 4.2, 4.3, 4.4, 6.1, 6.2, 6.3, 6.4]
    streamed = Streamed(tokens, [tokens], ["a1: status 503"])
    windows = {
        "adding": [(0.0, 1.0), (4.0, 5.0)],
        "quiet": [(2.0, 3.0), (6.0, 7.0)],
        "changing": [(8.0, 9.0)],
    }
    report = others_report(streamed, windows, 1)
    assert report["rise"] == pytest.approx(8 / 6 - 1, abs=1e-3)
    assert report["rises"] == [1.0, 0.0]
    assert report["failed"] == 1
    assert report["longest_gap_ms"]["adding"] == 1900


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"confirmed": False, "unconfirmed": {"r1": "is at revision 3"}}, "is at revision 3"),
        ({"replicas": 1}, "confirmed True by 1 of 2 replicas"),
        (
            {"adapter": {"replicas": {"r1": {"v1": {"tier": "device"}}, "r2": {}}}},
            "version v1 is not on the device of r2",
        ),
    ],
)
def test_live_everywhere_means_on_the_device_of_each_replica(
    change: dict[str, object], told: str | None
) -> None:
    held = {"v1": {"tier": "device"}}
    reply = {"confirmed": True, "replicas": 2, "unconfirmed": {}}
    reply |= {"adapter": {"replicas": {"r1": held, "r2": held}}, **change}
    problem = unconfirmed(reply, 2, "v1")
    assert problem is None if told is None else told in str(problem)


def test_the_rank_makes_files_of_the_size_that_is_asked_for(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    skeleton = load_skeleton(tiny_llama_dir)
    rank = rank_of_size(skeleton, 20_000, None)
    assert rank > 1
    made = make_random_adapters(skeleton, tmp_path, num=1, rank=rank, targets=None)["a0"]
    size = (made / "adapter_model.safetensors").stat().st_size
    assert size == pytest.approx(20_000, rel=0.15)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_served(tiny_llama_dir: Path, tmp_path: Path, device: str) -> None:
    base = str(tiny_llama_dir)
    args = parsed(
        "--model", base, "--device", device, "--rank", "2", "--adds", "2", "--changes", "1"
    )
    service = prepare(args, tmp_path)
    settings = parse_settings(service.application["args"])
    assert (settings.model_replicas.min, settings.auth.mode) == (2, "keys")
    weights = [s / "adapter_model.safetensors" for s in service.sources]
    weights += sorted((tmp_path / "seed" / "weights").glob("*/adapter_model.safetensors"))
    assert len({file.read_bytes() for file in weights}) == 2 + 1 + args.adapters
    config = json.loads((service.sources[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base
    overridden = service.application.get("deployments")
    if device == "cuda":
        assert overridden is None
    else:
        assert overridden is not None
        assert overridden[0]["autoscaling_config"]["min_replicas"] == 2


@pytest.mark.parametrize("shape", ["llama-1b-shape", "flan-t5-xl-shape"])
def test_a_random_base_is_a_folder_that_a_replica_loads(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 8}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    small_t5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1}
    kind, fields = shapes.SHAPES[shape]
    shrunk = small if "hidden_size" in fields else small_t5 | {"num_heads": 4}
    shrunk = {**fields, **shrunk, "vocab_size": 1000}
    monkeypatch.setitem(shapes.SHAPES, shape, (kind, shrunk))
    folder = models.save_base(shape, tmp_path / shape, "cpu", "float32")
    resolved = resolve_base_model(str(folder), progress=False)
    base = load_pretrained(resolved.path, resolved.family, device="cpu", dtype="float32")
    assert len(base.tokenizer) == base.model.config.vocab_size == 1000
    assert base.tokenizer.eos_token_id in base.eos_ids
    answer = [int(token) for token in decoded(models.load_base(shape, "cpu", "float32")).split()]
    assert answer == [5, 999], "each id is a text of its own"


def decoded(base: Pretrained) -> str:
    decoder = build_decoder(base, "fast", FastLimits(1, 32, max_adapters=1), {})
    return decoder.decode([5, 999])
