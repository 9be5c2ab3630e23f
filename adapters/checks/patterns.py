"""Regular expressions in an adapter's configuration: do they compile, and do they terminate?

PEFT matches them against the names of the base model's layers. One that backtracks without end
would stop the whole process, since Python's `re` lets no other thread run meanwhile. So they are
tried in a separate process first, with a time limit.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

TIMEOUT_S = 5.0  # a usual pattern takes milliseconds, and the process some ten more
_PLAIN = re.compile(r"[\w.-]*")  # a name, not a pattern
# Patterns backtrack on a name that nearly matches.
_NEARLY = ("", "!", ".0.!")
_TRY = """
import json, re, sys
given = json.load(sys.stdin)
for number, pattern in enumerate(given["patterns"]):
    print(number, flush=True)
    for name in given["names"]:
        re.match(pattern, name)
"""


def check_patterns(config: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Return what is wrong with the patterns of an adapter_config.json; empty if nothing is.

    Args:
        names: of the layers that the adapter has weights for.
    """
    problems, unclear = [], []
    for field, text, pattern in _patterns(config):
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            problems.append(f"{field} {_shown(text)}: no regular expression ({error})")
            continue
        if not _PLAIN.fullmatch(text):
            unclear.append((field, text, pattern))
    tried = [name + end for name in sorted(set(names)) for end in _NEARLY]
    slow = _first_slow([pattern for _, _, pattern in unclear], tried)
    if slow is not None:
        field, text, _ = unclear[slow]
        problems.append(
            f"{field} {_shown(text)}: takes more than {TIMEOUT_S:.0f} s to match: list the "
            "layers' names instead"
        )
    return problems


def _patterns(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (field, text, the expression that PEFT makes of it) for each pattern."""
    found = []
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config.get(field), str):  # a list holds names
            found.append((field, config[field], rf"(?:{config[field]})\Z"))
    for field in ("rank_pattern", "alpha_pattern"):
        found += [(field, key, rf"(.*\.)?({key})$") for key in config.get(field) or {}]
    layers = config.get("layers_pattern") or []
    for text in [layers] if isinstance(layers, str) else layers:
        found.append(("layers_pattern", text, rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\."))
    return found


def _first_slow(patterns: list[str], names: list[str]) -> int | None:
    """Return the number of the pattern that was being tried when the time was up."""
    if not patterns:
        return None
    given = json.dumps({"patterns": patterns, "names": names}).encode()
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        subprocess.run(command, input=given, timeout=TIMEOUT_S, check=True, capture_output=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        return int((error.stdout or b"0").split()[-1])
    return None


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
