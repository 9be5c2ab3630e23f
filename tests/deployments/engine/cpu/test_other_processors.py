"""The compiled step where the processor lacks what this one has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parents[3]
# Beside other work on the same cores, the same seconds of the processor last several times longer.
PROCESSOR_S, HANGS_AFTER_S = 240, 900


def needs(flag: str) -> pytest.MarkDecorator:
    flags = Path("/proc/cpuinfo")
    has = flags.exists() and f" {flag} " in flags.read_text()
    return pytest.mark.skipif(not has, reason=f"this processor cannot run {flag}, or is unknown")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "features", "instructions", "bases"),
    [
        ("generic", "", None, "llama-8"),
        pytest.param("haswell", "+avx2,+fma", "avx2", "llama-8 or odd", marks=needs("avx2")),
        pytest.param(
            *("haswell", "+avxvnni,+avx2,+fma", "avx_vnni", "llama-8 or odd"),
            marks=needs("avx_vnni"),
        ),
    ],
)
def test_it_computes_the_same(
    name: str, features: str, instructions: str | None, bases: str
) -> None:
    processor = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    kind = (
        f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({PROCESSOR_S},) * 2);"
        "from deployments.engine.cpu.intrinsics import byte_instructions;"
        f"assert byte_instructions() == {instructions!r}, byte_instructions();"
        "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-p", "no:cacheprovider", "-q", "-k", bases]
    done = subprocess.run(
        [sys.executable, "-c", kind, *options, str(TESTS / "test_llama.py")],
        env=os.environ | processor,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
