"""The page of settings: what a row says of a setting, and where it is written."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from scripts.pages import settings_page


class Inner(BaseModel):
    is_on: Annotated[bool, Field(description="on | off")] = False


class Outer(BaseModel):
    mode: Annotated[Literal["a", "b"], Field(description="how")] = "a"
    size: Annotated[int | None, Field(ge=1, le=4096, description="how many")] = None
    wait_s: Annotated[float, Field(gt=0, le=0.5, description="how long")] = 0.25
    names: Annotated[list[str], Field(description="whose")] = []
    inner: Inner = Inner()


def test_a_row_says_meaning_bounds_and_default() -> None:
    assert list(settings_page.rows(Outer, "args.")) == [
        ("`args.mode`", "how", "`a`, `b`", '`"a"`'),
        ("`args.size`", "how many", "1 to 4,096 or `null`", "`null`"),
        ("`args.wait_s`", "how long", "above 0 to 0.5", "`0.25`"),
        ("`args.names`", "whose", "list", "`[]`"),
        ("`args.inner.is_on`", r"on \| off", "`true`, `false`", "`false`"),
    ]


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_page, "PAGE", tmp_path / "settings.md")
    assert settings_page.main([]) == 0
    assert (tmp_path / "settings.md").read_text(encoding="utf-8") == settings_page.page()
    assert '"out": ' in capsys.readouterr().out
