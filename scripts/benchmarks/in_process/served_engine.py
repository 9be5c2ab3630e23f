"""Run the engine in a process of its own, as a model replica does, without Ray."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from deployments.engine.core import EngineLimits
from deployments.engine.detokenizer import text_decoder, token_bytes
from deployments.engine.engine import Engine
from deployments.engine.request import Request
from deployments.engine_process.client import EngineProcess
from deployments.engine_process.decoder_loading import DecoderSpec
from deployments.engine_process.remote_decoder import RemoteDecoder
from scripts.benchmarks.bases.models import saved_or_found

_EMIT_S = {"cpu": 0.06, "cuda": 0.03}  # as a replica does (deployments/model)


@contextlib.contextmanager
def served_engine(
    args: argparse.Namespace,
    scratch: Path,
    folders: Mapping[str, Path],
    requests: Sequence[Request],
) -> Iterator[Engine]:
    """Give an engine with the adapters resident. Its process ends with the block.

    Args:
        args: of `scripts.benchmark engine`.
        scratch: where a random base is written to.
    """
    folder, family = saved_or_found(args.model, scratch, "cpu", args.dtype)
    longest = max(len(request.prompt_ids) for request in requests)
    output = max(request.sampling.max_tokens for request in requests)
    spec = DecoderSpec(
        base_model=args.model,
        path=str(folder),
        family=family,
        device=args.device,
        dtype=args.dtype,
        quantization=args.weights,
        choice="fast",
        max_rows=args.rows,
        num_positions=longest + output + 1,
        max_adapters=args.adapters,
        prefill_tokens=args.prefill_tokens,
        kv_memory_bytes=None,
        kv_cache_dtype=args.kv_cache_dtype,
        cpu_threads=args.threads,
        batch_invariant="auto",
        adapters={},
    )
    limits = EngineLimits(
        args.rows,
        len(requests),
        longest,
        prefill_tokens=args.prefill_tokens,
        emit_interval_s=_EMIT_S[args.device],
        emits_together=args.device == "cpu",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    process = EngineProcess(spec, limits, text_decoder(tokenizer), token_bytes(tokenizer))
    engine = Engine(process, limits)
    try:
        decoder = RemoteDecoder(process)
        read = [decoder.read_adapter(folder) for folder in folders.values()]
        for number in range(args.adapters):
            decoder.install(f"a{number}", read[number % len(read)], probe=False)
        decoder.warm_up()
        yield engine
    finally:
        engine.close()
