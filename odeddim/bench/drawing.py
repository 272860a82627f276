"""Parts of figures: colours that colour-blind people can tell apart, lines, axes, and legends.

Lines differ in colour and marker, and from the eighth line on also in dash, so a reader does not depend on colour. A
legend stands below the axes and never covers data.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odeddim.bench.tables import Table
from odeddim.types import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":")
FONT = 10  # points
SMALLEST, LARGEST = 2.0, 40.0  # inches; a PNG has 150 pixels per inch
_COMPACT = 8.0  # inches; a narrower figure has smaller letters


@dataclass(frozen=True)
class Layout:
    """The size of figures, and whether they have a title.

    Attributes:
        figure_size: The width and height of a figure in inches, each from 2 to 40; None for the size that suits the
            figure. The axes of a figure that is taller than wide stand one below the other. A sheet of images keeps
            its proportions and fits into this size.
        title: Whether figures and sheets have a title above them. Axes keep their own titles.

    Raises:
        InputError: If `figure_size` is not two numbers from 2 to 40.

    Example:
        >>> from odeddim.bench.drawing import Layout
        >>> Layout(figure_size=(3.4, 5), title=False).upright
        True
    """

    figure_size: tuple[float, float] | None = None
    title: bool = True

    def __post_init__(self) -> None:
        size = self.figure_size
        if size is not None and (len(size) != 2 or not all(SMALLEST <= length <= LARGEST for length in size)):
            raise InputError(
                f"a figure cannot be {' by '.join(f'{length:g}' for length in size)} inches: give the width and the "
                f"height, each from {SMALLEST:g} to {LARGEST:g} inches, with figure_size=..."
            )

    @property
    def font(self) -> float:
        """The size of the letters in points: smaller in a figure that is narrower than 8 inches."""
        return FONT if self.figure_size is None or self.figure_size[0] >= _COMPACT else 0.8 * FONT

    @property
    def upright(self) -> bool:
        """Whether figures are taller than wide."""
        return self.figure_size is not None and self.figure_size[1] > self.figure_size[0]


USUAL = Layout()


@dataclass(frozen=True)
class Theme:
    """The colours of a figure, each as "#rrggbb".

    Attributes:
        name: The theme's name.
        ink: The colour of text.
        muted: The colour of what should stay in the background, such as grids and notes.
        paper: The colour of the page.
        colours: The colours of lines, after Okabe and Ito.
    """

    name: str
    ink: str
    muted: str
    paper: str
    colours: tuple[str, ...]


# The palette of Okabe and Ito without yellow, which is too faint on white. The dark theme has no black and a lighter
# blue, because both are too dark on black.
LIGHT = Theme(
    "light", "#1a1a1a", "#666666", "#ffffff",
    ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8e8e8", "#a0a0a0", "#16181c",
    ("#ffffff", "#E69F00", "#4C9BE8", "#00B98A", "#FF7A33", "#A6DBFF", "#E58FBF"),
)  # fmt: skip
THEMES = (LIGHT, DARK)


def formulas(words: str) -> str:
    """Return the words with x_T and σ_T as formulas of matplotlib; those that are formulas already stay as they are."""
    return re.sub(r"(?<!\$)\b([xσ])_T\b", r"$\1_T$", words)


def panels(count: int, layout: Layout = USUAL) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes side by side, or one below the other if the layout is upright.

    Args:
        count: The number of axes.
        layout: The size of the figure. By default each axes is 5 inches wide and 4.4 inches high.

    Returns:
        The figure and its axes, from left to right or from the top down.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=layout.figure_size or (5.0 * count + 0.4, 4.4), layout="constrained")
    axes = figure.subplots(*((count, 1) if layout.upright else (1, count)), squeeze=False)
    return figure, list(axes.flat)


def headline(figure: Figure, words: str) -> None:
    """Write the title of a figure above its axes, in as many lines as the figure's width needs."""
    width = figure.get_size_inches()[0]
    lines = max(16, int(width / (0.1 * letter())))
    figure.suptitle(formulas(textwrap.fill(words, lines)))


def letter() -> float:
    """Return the size of the letters, over the usual size."""
    import matplotlib

    return float(matplotlib.rcParams["font.size"]) / FONT


def styles(theme: Theme, count: int) -> list[dict[str, Any]]:
    """Return the colour, marker and dash of each of `count` lines, as keyword arguments of matplotlib's plot."""
    colours = theme.colours
    return [
        {
            "color": colours[i % len(colours)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i // len(colours) % len(DASHES)],
        }
        for i in range(count)
    ]


def label_of(key: Sequence[Any]) -> str:
    """Return a line's name in the legend, such as "euler, linear"; empty parts of the key are left out."""
    return ", ".join(str(part) for part in key if part not in ("-", "", None))


def legend(figure: Figure, *axes: Axes) -> None:
    """Add a legend below the axes, at the left, where a reader with a narrow window sees it first.

    Args:
        figure: The figure, whose height grows by the legend.
        axes: The axes. The legend names the lines of the first axes that have data in at least one of the axes.
    """
    import numpy as np

    named = {
        line.get_label(): line
        for one in reversed(axes)
        for line in one.get_lines()
        if np.size(line.get_xdata()) and not str(line.get_label()).startswith("_")
    }
    order = [str(line.get_label()) for line in axes[0].get_lines() if line.get_label() in named]
    width, height = figure.get_size_inches()
    longest = max((len(line) for name in order for line in name.split("\n")), default=1)
    columns = max(1, min(len(order), int(0.7 * width / ((0.09 * longest + 0.7) * letter()))))
    rows = math.ceil(len(order) / columns) * max((name.count("\n") + 1 for name in order), default=1)
    figure.set_size_inches(width, height + 0.22 * rows * letter())
    figure.legend(
        [named[name] for name in order], order, loc="outside lower left", ncols=columns, frameon=False,
    )  # fmt: skip


def log_scale(axes: Axes, which: str) -> bool:
    """Make an axis logarithmic; without a positive value, write "nothing to draw" instead.

    Args:
        axes: The axes, with its lines drawn.
        which: The axis, "x" or "y".

    Returns:
        Whether the axis is logarithmic.
    """
    import numpy as np

    drawn = [line.get_xdata() if which == "x" else line.get_ydata() for line in axes.get_lines()]
    if not any(bool((np.asarray(values, float) > 0).any()) for values in drawn):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.annotate("nothing to draw", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return False
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    return True


def log_axis(axes: Axes, values: Sequence[float], which: str = "x") -> None:
    """Make an axis logarithmic, with ticks at 1, 2, 5, 10, ... as plain numbers.

    Args:
        axes: The axes, with its lines drawn.
        values: The values on the axis, at least one; the ticks cover them.
        which: The axis, "x" or "y".
    """
    from matplotlib.ticker import NullFormatter

    if not log_scale(axes, which):
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = min(values), max(values)
    ticks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5) if low / 1.3 <= m * 10.0**k <= high * 1.3]
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def note(axes: Axes, words: str, theme: Theme) -> None:
    """Write a remark in small letters below the axes and the words of its x axis."""
    from matplotlib.figure import Figure

    figure, place = axes.get_figure(), axes.get_subplotspec()
    width = figure.get_size_inches()[0] if isinstance(figure, Figure) else 5.0
    room = width / (place.get_gridspec().ncols if place else 1) - 0.8
    axes.annotate(
        textwrap.fill(words, max(16, int(room / 0.06))), (0, 0), xytext=(0, -44 * letter()),
        xycoords="axes fraction", textcoords="offset points", fontsize="small", color=theme.muted, va="top",
        annotation_clip=False,
    )  # fmt: skip


def break_labels(figure: Figure) -> None:
    """Break the titles and labels of axes into lines where they are longer than the axes: a small figure cuts none."""
    figure.draw_without_rendering()  # places the axes
    for axes in figure.axes:
        room = axes.get_window_extent()
        for text, most, across in (
            (axes.title, room.width, True), (axes.xaxis.label, room.width, True), (axes.yaxis.label, room.height, False)
        ):  # fmt: skip
            box, words = text.get_window_extent(), text.get_text()
            length = box.width if across else box.height
            if length > most:
                lines = max(12, int(len(words) * most / length))
                text.set_text(textwrap.fill(words, lines, break_long_words=False, break_on_hyphens=False))


def level(axes: Axes, value: float | None, words: str, theme: Theme, *, scale: str = "log", side: str = "left") -> None:
    """Draw a horizontal line at a value that others are compared with. Its words hide the grid, but no data.

    Args:
        axes: The axes. Nothing is drawn if its y axis has another scale.
        value: The height of the line; None for no line.
        words: The words at the line.
        theme: The colours.
        scale: The scale of the y axis, "log" or "linear". On "log", only a positive value is drawn.
        side: Where the words stand: "left", above the line, or "right", below it. Errors fall from the left to the
            right, so few points are near the words of a low line at the left, and of a high line at the right.
    """
    if value is not None and (value > 0 or scale == "linear") and axes.get_yscale() == scale:
        at, up = (0.01, 2.5) if side == "left" else (0.99, -2.5)
        axes.axhline(value, color=theme.muted, linestyle=(0, (1, 3)), linewidth=1)
        axes.annotate(
            words, (at, value), xytext=(0, up), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha=side, va="bottom" if up > 0 else "top", fontsize="small", color=theme.muted, zorder=1.8,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def lines(
    axes: Axes,
    table: Table,
    theme: Theme,
    x: str,
    y: str,
    *,
    label: Callable[[Sequence[Any]], str] = label_of,
    positive: bool = True,
) -> list[float]:
    """Draw a line of y over x for each group of rows. A row without x or y has no point.

    Args:
        axes: The axes.
        table: The table.
        theme: The colours.
        x: The name of the column on the x axis.
        y: The name of the column on the y axis.
        label: The function that makes a line's name from the group's key.
        positive: Whether to leave out points whose y is not positive.

    Returns:
        The x of all points; [1.0, 10.0] if there are none.
    """
    groups = table.lines()
    drawn: list[float] = []
    for (key, rows), style in zip(groups.items(), styles(theme, len(groups)), strict=True):
        points = [(row[x], row[y]) for row in rows if row[x] and row[y] is not None]  # rows are in the order of steps
        points = [(a, b) for a, b in points if b > 0 or not positive]
        axes.plot([a for a, _ in points], [b for _, b in points], label=label(key), **style)
        drawn += [a for a, _ in points]
    return drawn or [1.0, 10.0]
