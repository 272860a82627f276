"""What is drawn can be read: no word is cut or struck through, and a narrow window shows the legend."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from odeddim.bench import consistency, drawing, figures, quality
from odeddim.bench.report import report
from odeddim.bench.tables import Column, Sheet, Table

TITLE = "Interpolation: fashion-mnist, images between four latents, euler on the linear grid"


def rendered(figure: Figure) -> Figure:
    FigureCanvasAgg(figure)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def rows(columns: tuple[Column, ...], names: tuple[str, ...], **values: float) -> list[dict[str, Any]]:
    made = [
        {"eta": "", "solver": name, "grid": "linear", "steps": steps, "evaluations": float(steps), **values}
        for name in names
        for steps in (10, 50)
    ]
    return [{column.name: row.get(column.name) for column in columns} for row in made]


def consistent(names: tuple[str, ...] = ("euler", "ab3"), **changes: Any) -> Table:
    settings = {"reference_error": 1e-3, "pixels between different x_T": 0.9, "features between different x_T": 9.0}
    made = rows(consistency._COLUMNS, names, pixels=0.1, features=1.0)
    images = np.zeros((2, 2, 8, 8, 1), np.uint8)
    sheet = Sheet("an x_T in each row", images, ("x_T 0", "x_T 1"), ("S = 10", "reference"))
    table = Table("consistency", "Consistency: 6 x_T of seed 0", settings, consistency._COLUMNS, tuple(made))
    return Table(**{**vars(table), "group": ("solver", "grid"), "sheets": (sheet,), **changes})


def drawn(table: Table) -> Figure:
    with figures._themed(drawing.LIGHT):
        return figures.DRAWN[table.bench](table, drawing.LIGHT)[table.bench][0]


@pytest.mark.parametrize("side", [2, 3, 6, 12])
def test_the_title_of_a_sheet_is_not_cut(side: int) -> None:
    words = tuple(str(i) for i in range(side))
    figure = rendered(figures.draw_sheet(Sheet(TITLE, np.zeros((side, side, 28, 28, 1), np.uint8), words, words)))
    (title,) = (text for text in figure.findobj(Text) if text.get_text().replace("\n", " ") == TITLE)
    assert isinstance(title, Text)
    box, whole = title.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert not box.overlaps(figure.axes[0].get_window_extent())


def test_words_at_a_floor_hide_the_grid_and_no_data() -> None:
    figure = rendered(drawn(consistent()))
    axes = figure.axes[0]
    said = [text for text in axes.texts if text.get_bbox_patch() is not None]
    assert len(said) == len(axes.texts) == 2
    for text in said:
        patch = text.get_bbox_patch()
        assert patch is not None
        assert patch.get_facecolor() == (1, 1, 1, 1)
        assert 1.5 < text.get_zorder() < 2  # an axes draws its grid at 1.5
    assert min(line.get_zorder() for line in axes.get_lines()) == 2


def test_x_t_is_set_as_a_formula(tmp_path: Path) -> None:
    for _, figure, words in figures._figures(consistent(), drawing.LIGHT, titled=True):
        texts = [text.get_text() for text in rendered(figure).findobj(Text) if isinstance(text, Text)]
        assert not [text for text in texts if re.search(r"(?<!\$)[xσ]_T", text)]
        assert [text for text in texts if "$x_T$" in text]
        assert "$" not in words
    assert drawing.formulas("rms / σ_T, model max_T, x_T") == "rms / $σ_T$, model max_T, $x_T$"


def test_kid_has_its_baseline_too() -> None:
    columns = quality._columns("Fréchet distance", "cifar10")
    settings = {"frechet of real images": 1.1, "kid of real images": -0.0004}  # unbiased: it may lie below 0
    made = tuple(rows(columns, ("euler",), frechet=5.0, kid=0.1))
    figure = drawn(Table("quality", "Quality", settings, columns, made, group=("solver", "grid")))
    for axes, value in zip(figure.axes, (1.1, -0.0004), strict=True):
        assert [value, value] in [list(np.asarray(line.get_ydata(), float)) for line in axes.get_lines()]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_window_as_wide_as_a_hand_shows_the_legend(count: int) -> None:
    """At 500 pixels a figure is 640 wide, and scrolls: of the legend nothing lies in what is out of sight."""
    figure = rendered(drawn(consistent(tuple(f"solver-number-{i}" for i in range(count)))))
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == count
    assert whole.y0 <= box.y0
    assert 640 * (box.x1 - whole.x0) / whole.width < 500 - 2 * 16 or count == 1
    assert all(box.y1 <= axes.get_window_extent().y0 for axes in figure.axes)


def test_a_page_says_a_title_once(tmp_path: Path) -> None:
    table = consistent()
    table.save(tmp_path)
    report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(escape(table.title).replace("x_T", "x<sub>T</sub>")) == 1
    assert "x_T" not in re.sub(r'<svg.*?</svg>|<details>.*?</details>|title="[^"]*"', "", page, flags=re.DOTALL)
    for theme in drawing.THEMES:
        for svg, _ in figures.draw(table, theme).values():
            assert b"Consistency" not in svg  # matplotlib says in a comment what it draws
