"""The list of modules: what it takes from a docstring, and where it is written."""

from pathlib import Path

import pytest

from scripts.pages import module_list


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Read the key file. It is JSON.", "Read the key file."),
        ("Read the key file,\nline by line.\n\nMore.", "Read the key file, line by line."),
        ("Operate a clinic:\n\n    python -m adapters", "Operate a clinic"),
        ("Take e.g. 3.5 s, or `x.py`.", "Take e.g. 3.5 s, or `x.py`."),
    ],
)
def test_the_first_sentence(tmp_path: Path, docstring: str, sentence: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(f'"""{docstring}"""\n')
    assert module_list.first_sentence(module) == sentence


def test_a_module_without_a_docstring_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_list, "ROOT", tmp_path)
    (tmp_path / "bare.py").write_text("")
    with pytest.raises(ValueError, match=r"bare\.py: no docstring"):
        module_list.first_sentence(tmp_path / "bare.py")


def test_a_page_without_the_lines_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "architecture.md"
    page.write_text("# Top\n")
    monkeypatch.setattr(module_list, "PAGE", page)
    assert module_list.main([]) == 2
    assert "it needs the line <!-- modules -->" in capsys.readouterr().err
    assert page.read_text() == "# Top\n"


def test_the_command_replaces_what_is_between_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "architecture.md"
    page.write_text(f"# Top\n{module_list.BEGIN}old\n{module_list.END}rest\n")
    monkeypatch.setattr(module_list, "PAGE", page)
    for _ in range(2):
        assert module_list.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == (f"# Top\n{module_list.BEGIN}{module_list.module_list()}{module_list.END}rest\n")
