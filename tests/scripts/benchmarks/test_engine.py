"""The engine's benchmark end to end on tiny models: every side runs, and the report is whole."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.model_loader import load_pretrained
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import Kind
from scripts import benchmark
from scripts.benchmarks import load
from scripts.benchmarks.in_process.continuous_batching import ContinuousBatching
from scripts.benchmarks.in_process.decode_steps import median_interval, weight_bytes
from scripts.benchmarks.in_process.engine_runs import random_requests
from scripts.benchmarks.in_process.quantised_base import quantised_base
from scripts.benchmarks.in_process.random_adapters import make_random_adapters
from tests.tiny_models import load_model

pytestmark = pytest.mark.slow  # whole runs: seconds together


@pytest.mark.parametrize("base", ["tiny_llama_dir", "tiny_flan_t5_dir"])
def test_all_sides_and_a_report(
    base: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "engine.json"
    argv = ["engine", "--model", str(request.getfixturevalue(base)), "--dtype", "float32"]
    argv += "--requests 3 --rows 2 --prompt_tokens 6 --output_tokens 12 --adapters 2".split()
    argv += "--rank 4 --repeats 1 --sequential 1 --threads 1".split()
    assert benchmark.main([*argv, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert set(report["sides"]) == {
        "peft_mixed_batch",
        "peft_sequential",
        "engine_mixed",
        "engine_no_adapters",
        "engine_one_stream",
    }
    assert all(side["tokens_per_s"] > 0 for side in report["sides"].values())
    assert report["sides"]["engine_mixed"]["first_token_p50_s"] > 0
    assert set(report["ratios"]) >= {"mixed over PEFT's mixed batch", "mixed over sequential"}
    (step,) = report["steps"]
    assert step["rows"] == 1
    assert 5 <= step["lora_cost_pairs"] <= 40
    assert step["lora_cost_interval"][0] <= step["lora_cost"] <= step["lora_cost_interval"][1]
    assert report["decoder"].startswith("fast")
    assert report["command"].endswith(str(out))
    assert {"commit", "processor", "packages"} <= set(report)


@pytest.mark.parametrize(
    ("count", "outside"), [(1, 0), (5, 0), (8, 0), (9, 1), (40, 13), (100, 39)]
)
def test_an_interval_of_the_median_is_that_of_the_sign_test(count: int, outside: int) -> None:
    """Conover's table: of 40 values the 14th and the 27th, of 100 the 40th and the 61st."""
    values = [float(n) for n in random.Random(count).sample(range(count), count)]
    assert median_interval(values) == ((count - 1) / 2, outside, count - 1 - outside)


def test_transformers_own_batching_is_a_peer(
    tiny_llama_dir: Path, tiny_flan_t5_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine.json"
    argv = "engine --dtype float32 --continuous_batching --skip_peft --threads 1".split()
    argv += "--requests 5 --rows 3 --prompt_tokens 6 --output_tokens 12 --adapters 2".split()
    argv += ["--rank", "4", "--repeats", "2", "--out", str(out)]
    assert benchmark.main([*argv, "--model", str(tiny_llama_dir)]) == 0
    report = json.loads(out.read_text())
    for name in ("transformers_no_adapters", "transformers_one_adapter", "engine_one_adapter"):
        side = report["sides"][name]
        assert len(side["tokens_per_s_samples"]) == 2
        assert 0 < side["first_token_p50_s"] <= side["first_token_max_s"] <= side["seconds"]
    assert report["ratios"]["one adapter over transformers'"] > 0
    assert set(report["attention"]) == {"transformers_no_adapters", "transformers_one_adapter"}
    for more in (["--model", str(tiny_flan_t5_dir)], ["--quantization", "int8"]):
        assert benchmark.main([*argv, "--model", str(tiny_llama_dir), *more]) == 2
        assert "a causal base, none: leave it out" in capsys.readouterr().err


def test_transformers_answers_are_those_of_the_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """With the adapter and without: what is timed is what was asked for."""
    folder = make_random_adapters(
        load_model(tiny_llama_dir), tmp_path, num=1, rank=4, targets=None
    )["a0"]
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    requests = random_requests(3, 200, prompt_tokens=(5, 9), output_tokens=(6, 6), adapters=["a0"])
    written = []
    for adapter in (None, folder):
        base = load_pretrained(tiny_llama_dir, "causal", **options)
        peer, tokens = ContinuousBatching(base, 6, adapter), {}
        take = peer._result

        def kept(manager: Any, take: Any = take, tokens: Any = tokens) -> Any:
            result = take(manager)
            tokens[tuple(result.prompt_ids)] = result.generated_tokens
            return result

        peer._result = kept  # type: ignore[method-assign]
        assert peer.answer(requests)["tokens_per_s"] > 0
        peer.close()
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        for request in requests:
            prompt = torch.tensor([request.prompt_ids])
            alone = peer._model.generate(prompt, **settings, pad_token_id=base.pad_id)
            assert tokens[request.prompt_ids] == alone[0, prompt.shape[1] :].tolist()
        written.append(tokens)
    assert written[0] != written[1], "the adapter changes answers"


def test_a_quantised_base(tiny_flan_t5_dir: Path, tmp_path: Path) -> None:
    floors = []
    for kind in ("none", "int8", "nf4"):
        out = tmp_path / f"{kind}.json"
        argv = ["engine", "--model", str(tiny_flan_t5_dir), "--dtype", "float32"]
        argv += "--requests 2 --rows 1 --prompt_tokens 5 --output_tokens 12 --adapters 1".split()
        argv += f"--rank 4 --repeats 1 --threads 1 --skip_peft --quantization {kind}".split()
        assert benchmark.main([*argv, "--out", str(out)]) == 0
        report = json.loads(out.read_text())
        assert report["settings"]["quantization"] == kind
        assert kind == "none" or report["weights"].startswith(kind)
        floors.append(report["steps"][0]["floor_ms"])
    assert floors[0] > floors[1] > floors[2], "a step reads fewer bytes"


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_a_base_in_memory_is_quantised_as_its_folder_is(kind: Kind, tiny_flan_t5_dir: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    loaded = load_pretrained(tiny_flan_t5_dir, "seq2seq", quantization=kind, **options)
    made = quantised_base(load_pretrained(tiny_flan_t5_dir, "seq2seq", **options), kind)
    layers = [
        {path: each for path, each in model.named_modules() if isinstance(each, QuantisedLinear)}
        for model in (loaded.model, made.model)
    ]
    assert layers[0].keys() == layers[1].keys()
    assert len(layers[0]) > 20
    for path, layer in layers[0].items():
        assert torch.equal(layer.quantised.values, layers[1][path].quantised.values)
    assert made.quantization == kind


@pytest.mark.parametrize("pattern", ["closed_loop", "uneven"])
def test_load_that_comes_and_goes(
    pattern: str, tiny_flan_t5_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    argv = ["load", "--model", str(tiny_flan_t5_dir), "--dtype", "float32", "--pattern", pattern]
    argv += "--requests 9 --concurrency 2 3 --prompt_tokens 4 9 --output_tokens 2 7".split()
    argv += "--adapters 3 --rank 4 --repeats 1 --threads 1".split()
    assert benchmark.main([*argv, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert [line["rows"] for line in report["runs"]] == [2, 3]
    for line in report["runs"]:
        assert line["steps"] * line["rows"] * line["occupancy"] == pytest.approx(
            line["output_tokens"], rel=1e-3
        )
        assert 0 < line["of_ideal_schedule"] <= 1
    assert report["runs"][0]["occupancy_while_waiting"] == (1.0 if pattern == "uneven" else None)


def test_load_of_several_adapters_and_rates(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    argv = ["load", "--model", str(tiny_llama_dir), "--dtype", "float32", "--out", str(out)]
    argv += "--requests 4 --concurrency 2 --prompt_tokens 4 9 --output_tokens 3 7".split()
    argv += "--adapters 3 --rank 4 --repeats 1 --threads 1 --rates 20 2000 --rate_s 0.2".split()
    argv += "--max_waiting 4 --popularity one zipf --first_token_p95_s 5 --asked".split()
    assert benchmark.main([*argv, "1", "3"]) == 0
    report = json.loads(out.read_text())
    kinds = [(1, "one"), (3, "one"), (3, "zipf")]
    assert [(run["adapters"], run["popularity"]) for run in report["runs"]] == kinds
    for run in report["runs"]:
        assert 0 < run["first_token_s"]["median"] <= run["first_token_s"]["p95"]
        assert run["time_per_token_ms"]["median"] > 0
    rates = report["rates"]
    assert [rate["rate_per_s"] for rate in rates] == [20, 2000] * 3
    for rate, limit in zip(rates[1::2], report["limits"], strict=True):
        assert rate["failures"] == {"queue_full": rate["failed"]}
        assert 0 < rate["failed"] < rate["requests"]
        assert limit["breaks_at_per_s"] in (20, 2000)
    assert benchmark.main([*argv, "4"]) == 2
    assert "--asked 4: at most --adapters, 3" in capsys.readouterr().err


def test_load_beside_a_long_prompt(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    argv = ["load", "--model", str(tiny_llama_dir), "--dtype", "float32", "--out", str(out)]
    argv += "--requests 6 --concurrency 2 --prompt_tokens 4 9 --output_tokens 20 30".split()
    argv += "--adapters 2 --rank 4 --repeats 1 --threads 1 --prefill_tokens 16".split()
    assert benchmark.main([*argv, "--long_prompt_tokens", "90", "--long_prompt_slowdown", "2"]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    beside = run["beside_long"]
    assert beside["long_prompt_tokens"] == 90
    assert beside["long_prompts_read"] > 0
    assert beside["long_first_token_s"] > 0
    ratio = beside["time_per_token_ms"]["median"] / run["time_per_token_ms"]["median"]
    assert beside["time_per_token_ratio"] == pytest.approx(ratio, abs=0.01)
    longest = load_model(tiny_llama_dir).config.max_position_embeddings
    assert benchmark.main([*argv, "--long_prompt_tokens", str(longest)]) == 2
    assert f"context length is {longest} tokens" in capsys.readouterr().err


def test_the_ideal_schedule_is_first_come_first_served() -> None:
    assert load._ideal_steps([5, 1, 1, 4], 2) == 6
    assert load._ideal_steps([3], 4) == 3


def test_random_adapters_are_as_asked_for(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_llama_dir)
    folders = make_random_adapters(model, tmp_path, num=2, rank=4, targets=["o_proj"])
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in folders.values()]
    assert [(c["r"], c["target_modules"]) for c in configs] == [(4, ["o_proj"])] * 2
    first, second = ((f / "adapter_model.safetensors").read_bytes() for f in folders.values())
    assert first != second
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_the_floor_counts_what_a_step_reads(tiny_llama_dir: Path, tiny_flan_t5_dir: Path) -> None:
    llama, t5 = load_model(tiny_llama_dir), load_model(tiny_flan_t5_dir)
    layers = sum(p.nbytes for p in llama.model.layers.parameters())
    assert weight_bytes(llama) == layers + llama.lm_head.weight.nbytes
    cross = [block.layer[1].EncDecAttention for block in t5.decoder.block]
    read_once = sum(c.k.weight.nbytes + c.v.weight.nbytes for c in cross)
    blocks = sum(p.nbytes for p in t5.decoder.block.parameters())
    assert weight_bytes(t5) == blocks - read_once + t5.lm_head.weight.nbytes


def test_prompts_that_share_their_beginnings(tiny_llama_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "prefixes.json"
    argv = ["prefixes", "--model", str(tiny_llama_dir), "--dtype", "float32", "--threads", "1"]
    argv += "--history 20 90 --own 6 --shared 40 --streams 5 --rows 2 --repeats 1 --rank 4".split()
    assert benchmark.main([*argv, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    shown = [(turn["common_tokens"], turn["row"]) for turn in report["first_token"]]
    assert shown == [(20, "kept"), (20, "copied"), (90, "kept"), (90, "copied")]
    assert report["streams"]["reused_s"] > 0
    assert report["streams"]["num_streams"] == 5


def test_answers_that_quote(tiny_llama_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "quoting.json"
    argv = ["quoting", "--model", str(tiny_llama_dir), "--dtype", "float32", "--threads", "1"]
    assert benchmark.main([*argv, "--repeats", "1", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["answers"]) == {"quotes", "writes"}
    assert all(answer["guessed_tokens_per_s"] > 0 for answer in report["answers"].values())


@pytest.mark.parametrize("served", [False, True])
def test_answers_that_keep_to_schemas(tiny_llama_dir: Path, tmp_path: Path, served: bool) -> None:
    out = tmp_path / "structured.json"
    more = ["--served", "--tokenizer", str(tiny_llama_dir)] if served else []
    argv = ["structured", *more, "--model", str(tiny_llama_dir), "--dtype", "float32"]
    argv += ["--threads", "1"]
    argv += "--rows 4 --adapters 2 --prompt_tokens 8 --output_tokens 30 --repeats 2".split()
    assert benchmark.main([*argv, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["tokenizer"] == (str(tiny_llama_dir) if served else None)
    sides = report["sides"]
    assert set(sides) == {"plain", "structured", "half"}
    assert sides["plain"]["over_plain"] == 1.0
    for side in sides.values():
        assert len(side["tokens_per_s_samples"]) == 2
        assert side["tokens_per_s"] > 0
