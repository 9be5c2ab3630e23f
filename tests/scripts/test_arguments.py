"""Numbers within their bounds, a help that leaves nothing out, and how a command ends."""

import argparse
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.arguments import _EXAMPLE, CommandParser, HelpFormatter, above_zero, positive, share

SCRIPTS = (
    *("prepare_medical_dataset", "train_lora_adapter", "evaluate_adapter", "merge_adapter"),
    *("promote_adapter", "report_adapters", "make_specialists", "train_router", "evaluate_router"),
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


def test_a_refusal_shows_a_complete_example(capsys: pytest.CaptureFixture[str]) -> None:
    """What the seed's own words say: no arguments, or a few of them."""
    for script, words in (
        ("prepare_medical_dataset", []),
        ("train_lora_adapter", ["--epochs", "3", "--batch_size", "2"]),
        ("evaluate_adapter", []),
    ):
        command = importlib.import_module(f"scripts.{script}")
        with pytest.raises(SystemExit) as caught:
            command.main(words)
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert "the following arguments are required: --" in told
        _, _, example = told.partition("For example:\n    ")
        given = example.replace("\\\n", "").split()
        assert given[:3] == ["python", "-m", f"scripts.{script}"]
        command._parser().parse_args(given[3:])


def test_the_help_needs_no_heavy_package() -> None:
    """They take seconds to import."""
    modules = ", ".join(f"scripts.{script}" for script in SCRIPTS if "." not in script)
    heavy = "('matplotlib', 'peft', 'sklearn', 'torch', 'transformers')"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["ftfy", "tqdm"])
def test_a_package_that_is_not_installed_is_one_line(
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "dermatology.jsonl"
    data.write_text('{"input": "What?", "output": "Red.", "specialty": "dermatology"}\n')
    prepare = importlib.import_module("scripts.prepare_medical_dataset")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "scripts.datasets.prepare", raising=False)
    call = ["--source", f"jsonl:{data},licence=own", "--out", str(tmp_path / "out")]
    assert prepare.main(call) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"prepare_medical_dataset: the package {package} is not installed" in told
    assert "pip install -e '.[train]'" in told
    assert not (tmp_path / "out").exists()


def test_a_fault_of_our_own_is_not_a_missing_package() -> None:
    parser = CommandParser("nothing", "")

    def broken(_: object, __: object) -> dict[str, str]:
        importlib.import_module("scripts.nothing")
        return {}

    with pytest.raises(ModuleNotFoundError):
        parser.run([], lambda: (), broken)


@pytest.mark.parametrize(
    "script",
    ["prepare_medical_dataset", "train_lora_adapter", "evaluate_adapter", "merge_adapter"],
)
def test_a_bare_checkout_says_what_to_install(script: str, tmp_path: Path) -> None:
    """Run as a file, without any package, from another folder, as the seed's README had it."""
    file = Path(__file__).parent.parent.parent / "scripts" / f"{script}.py"
    (tmp_path / "DATA_FOLDER").mkdir()
    found = _EXAMPLE.search(importlib.import_module(f"scripts.{script}").__doc__ or "")
    assert found is not None
    words = found[1].replace("\\\n", "").split()[3:]
    call = [sys.executable, "-S", str(file)]
    usage = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert (usage.returncode, "Traceback" in usage.stderr) == (2, False)
    done = subprocess.run([*call, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (told,) = done.stderr.splitlines()
    assert re.fullmatch(
        rf"{script}: the package \w+ is not installed: .*pip install -e '.\[train\]'.*", told
    )


def test_a_command_run_as_a_file_finds_the_packages(tmp_path: Path) -> None:
    """Beside it lie scripts/datasets and scripts/router, which must not hide others."""
    root = Path(__file__).parent.parent.parent
    for script in SCRIPTS:
        if "." in script:
            continue
        code = (
            f"import runpy, sys; sys.path[0] = {str(root / 'scripts')!r}; "
            f"runpy.run_path({str(root / 'scripts' / script)!r} + '.py', run_name='file'); "
            "import router; print(router.__file__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(root / "router" / "__init__.py")
