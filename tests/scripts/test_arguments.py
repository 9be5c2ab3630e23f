"""Numbers within their bounds, and a help that leaves nothing out."""

import argparse
import importlib
from collections.abc import Callable

import pytest

from scripts.arguments import HelpFormatter, above_zero, positive, share

SCRIPTS = (
    *("prepare_medical_dataset", "train_lora_adapter", "evaluate_adapter", "merge_adapter"),
    *("promote_adapter", "report_adapters", "make_specialists"),
)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive, "7", 7), (above_zero, "5e-4", 0.0005), (share, "0", 0.0), (share, "0.999", 0.999)],
)
def test_numbers(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((positive, text) for text in ("0", "-1", "1.5", "", "x")),
        *((above_zero, text) for text in ("0", "-1", "nan", "inf", "x")),
        *((share, text) for text in ("-0.1", "1", "nan", "x")),
    ],
)
def test_numbers_out_of_bounds(kind: Callable[[str], float], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': a .* is expected"):
        kind(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_argument_is_explained(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = importlib.import_module(f"scripts.{script}")._parser()
    silent = [a.option_strings[0] for a in parser._actions if not (a.help or "").strip()]
    assert silent == []
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    told = capsys.readouterr().out
    assert "JSON object" in " ".join(told.split())
    assert "(default: " in told


def test_defaults_are_told_where_they_say_something() -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--rank", default=8, help="of A")
    parser.add_argument("--none", help="nothing")
    parser.add_argument("--flag", action="store_true", help="a flag")
    told = parser.format_help()
    assert "of A (default: 8)" in told
    assert told.count("default") == 1
