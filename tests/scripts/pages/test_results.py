"""Values of result files as cells, and plots that are the same bytes for the same figures."""

import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

import matplotlib
import pytest

from scripts.pages.results import save_svg, shown


def test_a_plot_is_whole_and_small(tmp_path: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    def drawn() -> Any:
        figure, axes = pyplot.subplots()
        axes.plot([1, 2, 3], [1.0, 4.5, 2.25], label="tokens a second")
        axes.legend()
        return figure

    drawn().savefig(tmp_path / "whole.svg")
    pyplot.close("all")
    for name in ("one.svg", "two.svg"):
        save_svg(drawn(), tmp_path / name)
    whole, one, two = ((tmp_path / f"{name}.svg").read_text() for name in ("whole", "one", "two"))
    assert one == two
    assert "tokens a second" in one
    assert "metadata" not in one
    paths = [len(minidom.parseString(text).getElementsByTagName("use")) for text in (whole, one)]
    assert paths[0] >= paths[1] > 10, "ticks and curves are there (text is no longer paths)"
    assert set(re.findall(r'<text style="([^"]*)"', one)) <= {
        f"font-size: 10px; text-anchor: {where}" for where in ("start", "middle", "end")
    }
    assert "text{font-family: 'DejaVu Sans', sans-serif}</style>" in one
    assert len(one) < 0.8 * len(whole)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (1234.56, "1,234.6"),
        (0.012345, "0.01235"),
        (True, "True"),
        ([[0, 1], [1, 2], [2, 3]], "[0, 1] to [2, 3], n=3"),
        ({"adding": 1.5, "quiet": 1}, "adding 1.5, quiet 1"),
        ([], "[]"),
    ],
)
def test_cells(value: Any, cell: str) -> None:
    assert shown(value) == cell
