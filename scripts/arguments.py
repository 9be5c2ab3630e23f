"""The command line of every script: bounds of numbers, help, and how a command ends."""

import argparse
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

BASE_MODEL = "smollm2-135m-instruct"
_EXAMPLE = re.compile(r"^    (python -m .+(?:(?<=\\)\n.+)*)", re.MULTILINE)


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}': a whole number from {least} is expected")
        return int(text)

    return parse


positive = at_least(1)


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
    """Keep the description's lines; add each argument's default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        given = action.default
        silent = isinstance(given, bool | list) or given in (None, "", argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """The parser of `python -m scripts.SCRIPT`.

    Args:
        doc: the module's docstring: its text is the help's, and a refusal shows its first example.
    """

    def __init__(self, script: str, doc: str | None) -> None:
        super().__init__(
            prog=f"python -m scripts.{script}", description=doc, formatter_class=HelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        found = _EXAMPLE.search(self.description or "")
        example = f"\nFor example:\n    {found[1]}" if found else ""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}{example}\n")

    def add_base_model(self) -> None:
        """Add --base_model and --base_model_name."""
        add = self.add_argument
        add("--base_model", default=BASE_MODEL, help="directory, built-in name or hub id")
        add("--base_model_name", help="name in the catalogue, when --base_model is a directory")

    def add_device(self, purpose: str) -> None:
        """Add --device; `scripts.lora.device.check_device` resolves its default."""
        self.add_argument(
            "--device", choices=["cpu", "cuda"], help=f"{purpose}; default: cuda where there is one"
        )

    def run(
        self,
        argv: Sequence[str] | None,
        errors: Callable[[], tuple[type[Exception], ...]],
        command: Callable[[argparse.Namespace, list[str]], Mapping[str, Any]],
        exit_code: Callable[[Mapping[str, Any]], int] = lambda report: 0,
    ) -> int:
        """Parse `argv`, print the command's report as one line of JSON, return its exit code.

        One of `errors`, or a package that is not installed, is one line on stderr and code 2.

        Args:
            errors: returns what the command may raise; called on an error only, so that it may
                import what is not installed everywhere.
            command: called with the parsed arguments and the words they came from.
            exit_code: of a report.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        args = self.parse_args(words)
        script = self.prog.rpartition(".")[2]
        if not sys.warnoptions:  # of other packages to each other
            warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            report = command(args, words)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "adapters", "deployments", "router", "scripts"):
                raise  # a fault of this project
            print(
                f"{script}: the package {package} is not installed: in the checkout, "
                "pip install -e '.[train]' installs what the scripts need",
                file=sys.stderr,
            )
            return 2
        except Exception as error:
            if not isinstance(error, errors()):
                raise
            print(f"{script}: {error}", file=sys.stderr)
            return 2
        if os.environ.get("RANK", "0") == "0":  # the first of the processes of one run
            print(json.dumps(report))
        return exit_code(report)
