"""Figures can be read: no word is cut or struck through, at any size, and a narrow window shows the legend."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from odeddim.bench import consistency, drawing, figures, league, quality, timing
from odeddim.bench.drawing import Layout
from odeddim.bench.report import report
from odeddim.bench.standings import give_places
from odeddim.bench.tables import Column, Sheet, Table
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
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
    for _, figure, words in figures._figures(consistent(), drawing.LIGHT, Layout()):
        texts = [text.get_text() for text in rendered(figure).findobj(Text) if isinstance(text, Text)]
        assert not [text for text in texts if re.search(r"(?<!\$)[xσ]_T", text)]
        assert [text for text in texts if "$x_T$" in text]
        assert "$" not in words
    assert drawing.formulas("rms / σ_T, model max_T, x_T") == "rms / $σ_T$, model max_T, $x_T$"
    assert drawing.formulas("rms / $σ_T$") == "rms / $σ_T$"


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
    assert "x_T" not in re.sub(r'<svg.*?</svg>|title="[^"]*"', "", page, flags=re.DOTALL)
    for theme in drawing.THEMES:
        for svg, _ in figures.draw(table, theme).values():
            assert b"Consistency" not in svg  # matplotlib says in a comment what it draws


def timed() -> Table:
    """A table of `bench time`, whose figure has the most words."""
    columns = timing._COLUMNS
    values = {
        "batch": 16, "seconds": 1.0, "fastest": 0.9, "slowest": 1.1, "per_evaluation": 1.0, "own_share": 5.0,
        "per_step": 20.0, "intercept": 100.0, "r2": 0.99,
    }  # fmt: skip
    made = tuple(rows(columns, ("euler", "dpmpp-2m"), **values))
    return Table("time", TITLE, {}, columns, made, group=("solver", "grid", "batch"))


def ranked() -> Table:
    """A table of `bench league`, in which three solvers of ten come back exactly."""
    columns = league._COLUMNS
    made = []
    for budget, i in itertools.product((5, 10), range(10)):
        row: dict[str, Any] = dict.fromkeys(column.name for column in columns)
        figures_of_it = {"round_trip": 0.1 * max(0, i - 2), "latent": 0.1 + 0.07 * (7 * i % 10), "decoded": 0.1 * i}
        made.append({**row, **figures_of_it, "budget": budget, "solver": f"solver-number-{i}", "grid": "log"})
    give_places(made)
    return Table("league", TITLE, {}, columns, tuple(made), group=("budget",))


def unreadable(figure: Figure) -> list[str]:
    """The titles, labels and remarks of a figure that are cut at its edge or run into each other."""
    whole = rendered(figure).bbox
    words = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    words += [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text()]
    found = [text for text, box in boxes if not whole.x0 - 1 <= box.x0 < box.x1 <= whole.x1 + 1]
    found += [text for text, box in boxes if not whole.y0 - 1 <= box.y0 < box.y1 <= whole.y1 + 1]
    return found + [f"{a} / {b}" for (a, here), (b, there) in itertools.combinations(boxes, 2) if here.overlaps(there)]


@pytest.mark.parametrize("size", [None, (3.4, 5.0), (6.5, 3.6), (4.0, 12.0)])
def test_a_figure_of_any_size_cuts_no_words(size: tuple[float, float] | None) -> None:
    layout = Layout(size)
    for table in (consistent(), timed(), ranked()):
        for name, figure, _ in figures._figures(table, drawing.LIGHT, layout):
            assert unreadable(figure) == [], name
            if size and "sheet" not in name:
                assert tuple(figure.get_size_inches()) == size
                boxes = [axes.get_window_extent() for axes in figure.axes]  # one below the other if it is upright
                assert bool(boxes[0].y0 > boxes[1].y1) is (size[1] > size[0])
                assert all(min(box.width, box.height) > 0.5 * figure.dpi for box in boxes)


def test_the_league_draws_a_panel_for_each_number_of_evaluations() -> None:
    """The runs lie at their places, those that come back exactly apart from the others."""
    table = ranked()
    figure = rendered(drawn(table))
    assert [axes.get_title() for axes in figure.axes] == ["5 evaluations", "10 evaluations"]
    for axes in figure.axes:
        _, exact, others = axes.get_lines()
        rows = [row for row in table.rows if row["budget"] == 5]
        for line, some in ((exact, rows[:3]), (others, rows[3:])):
            assert np.asarray(line.get_xdata()).tolist() == [row["round_trip_place"] for row in some]
            assert np.asarray(line.get_ydata()).tolist() == [row["latent_place"] for row in some]
        best = next(row["solver"] for row in rows if row["latent_place"] == 1)
        assert best in [text.get_text() for text in axes.texts]


def test_a_sheet_keeps_its_proportions() -> None:
    sheet = Sheet(TITLE, np.zeros((2, 6, 28, 28, 1), np.uint8), ("1", "2"), ("1", "2", "3", "4", "5", "6"))
    wide = figures.draw_sheet(sheet).get_size_inches()
    for size in ((8.0, 8.0), (20.0, 2.0)):
        width, height = figures.draw_sheet(sheet, Layout(size, title=False)).get_size_inches()
        assert (width, height) == pytest.approx((size[0], height)) or height == pytest.approx(size[1])
        assert width <= size[0] + 1e-9
        assert height <= size[1] + 1e-9
        assert width / height == pytest.approx(wide[0] / wide[1], rel=0.2)  # of the two, one has a title of two lines


def test_a_layout_without_titles_leaves_out_the_titles_only() -> None:
    for title in (True, False):
        for name, figure, _ in figures._figures(consistent(), drawing.LIGHT, Layout(title=title)):
            assert bool(figure.get_suptitle()) is title, name
            if "sheet" not in name:
                assert [axes.get_title() for axes in figure.axes] == ["Pixels", "Features"]


@pytest.mark.parametrize("size", [(1, 4), (4, 41), (float("nan"), 4), (4, 4, 4)])
def test_an_impossible_size_is_one_sentence(size: Any) -> None:
    with pytest.raises(InputError, match=r"inches: give the width and the height, each from 2 to 40 inches, with fig"):
        Layout(size)


def test_the_command_has_the_size_and_the_title_as_options(tmp_path: Path, run: Command) -> None:
    arguments = ["--model", "exact-gaussian", "--size", "1,4,4", "--solvers", "euler", "--steps", "3", "--pairs", "1"]
    bench = ["bench", "interpolation", *arguments, "-n", "3", "--side", "0", "-o", str(tmp_path)]
    code, _, err = run(*bench, "--figure-size", "6.5,4", "--no-title")
    assert code == 0, err
    assert Image.open(tmp_path / "interpolation.png").size == (975, 600)
    assert "Interpolation:" not in (tmp_path / "interpolation.svg").read_text(encoding="utf-8")
    assert run(*bench)[0] == 0  # nothing is measured again, and the figure is drawn anew
    assert "Interpolation:" in (tmp_path / "interpolation.svg").read_text(encoding="utf-8")
    for words, sentence in (
        ("4", "'4': give the width and the height in inches, as in 6.5,4"),
        ("1,4", "a figure cannot be 1 by 4 inches: give the width and the height, each from 2 to 40 inches, with "
                "--figure-size"),
    ):  # fmt: skip
        code, out, err = run(*bench, "--figure-size", words)
        assert (code, out) == (2, "")
        assert sentence in err
