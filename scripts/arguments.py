"""The command line: numbers within their bounds, and a help that tells every default."""

import argparse
import math


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number from 1 is expected")
    return int(text)


def above_zero(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}': a number above 0 is expected")
    return value


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a number from 0 to below 1 is expected")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': a number is expected") from None


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines and adds each argument's default, where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        given = action.default
        silent = isinstance(given, bool | list) or given in (None, "", argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"
