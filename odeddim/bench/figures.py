"""Figures of tables, drawn with matplotlib for light and dark pages, in colours that colour-blind people tell apart.

One function for each bench: table -> figures by name. Lines differ in colour, marker and dash, so that no one of the
three is needed; legends stand below the axes, never on the data.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from odeddim.bench.tables import Sheet, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":")
_DPI = 150


@dataclass(frozen=True)
class Theme:
    """ink, muted: of words and of what stays behind; paper: the page; colours: of lines, after Okabe & Ito."""

    name: str
    ink: str
    muted: str
    paper: str
    colours: tuple[str, ...]


# Okabe & Ito's palette without its yellow, which is too faint on white; on black its black and its blue are too dark.
LIGHT = Theme(
    "light", "#1a1a1a", "#666666", "#ffffff",
    ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8e8e8", "#a0a0a0", "#16181c",
    ("#ffffff", "#E69F00", "#4C9BE8", "#00B98A", "#FF7A33", "#A6DBFF", "#E58FBF"),
)  # fmt: skip
THEMES = (LIGHT, DARK)


def draw(table: Table, theme: Theme = LIGHT) -> dict[str, tuple[bytes, str]]:
    """The figures of a table for a page that says its title: name -> (its SVG, what it shows in words)."""
    return {name: (_bytes(figure, "svg"), words) for name, figure, words in _figures(table, theme, titled=False)}


def files(table: Table) -> dict[str, bytes]:
    """The figures of a table as files, NAME.svg and NAME.png, light: name -> content."""
    return {
        f"{name}.{kind}": _bytes(figure, kind)
        for name, figure, _ in _figures(table, LIGHT, titled=True)
        for kind in ("svg", "png")
    }


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    # Without these two, the same table would give other bytes each time.
    with matplotlib.rc_context({"svg.hashsalt": "odeddim"}):
        figure.savefig(out, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _figures(table: Table, theme: Theme, *, titled: bool) -> Iterator[tuple[str, Figure, str]]:
    captions = [sheet.title for sheet in table.sheets]
    table = _without_mathematics(table)
    if not titled:
        table = replace(table, title="", sheets=tuple(replace(sheet, title="") for sheet in table.sheets))
    with _themed(theme):
        if table.bench in DRAWN:
            for name, (figure, words) in DRAWN[table.bench](table, theme).items():
                _typeset(figure)
                yield name, figure, words
        for i, (sheet, words) in enumerate(zip(table.sheets, captions, strict=True)):
            yield f"{table.bench}-sheet{i + 1 if len(table.sheets) > 1 else ''}", draw_sheet(sheet), words


def _typeset(figure: Figure) -> None:
    """Set x_T and σ_T as formulas in all words of a figure but its ticks."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(formulas(text.get_text()))


def formulas(words: str) -> str:
    """Words in which x_T and σ_T are formulas of matplotlib."""
    return re.sub(r"\b([xσ])_T\b", r"$\1_T$", words)


def _without_mathematics(table: Table) -> Table:
    """The table with words that matplotlib takes as they are: what stands between two $ would be a formula."""

    def plain(value: Any) -> Any:
        return value.replace("$", r"\$") if isinstance(value, str) else value

    sheets = [
        Sheet(plain(s.title), s.images, tuple(map(plain, s.rows)), tuple(map(plain, s.columns))) for s in table.sheets
    ]
    rows = tuple({key: plain(value) for key, value in row.items()} for row in table.rows)
    settings = {key: plain(value) for key, value in table.settings.items()}
    title = textwrap.fill(plain(table.title), 100)
    return replace(table, title=title, rows=rows, settings=settings, sheets=tuple(sheets))


@contextmanager
def _themed(theme: Theme) -> Iterator[None]:
    import matplotlib

    style: dict[Any, Any] = {
        "figure.facecolor": theme.paper, "savefig.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.edgecolor": theme.muted, "grid.color": theme.muted,
        "grid.alpha": 0.3, "font.size": 10, "axes.titlesize": 11, "lines.markersize": 5, "lines.linewidth": 1.5,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        yield


def panels(count: int, width: float = 5.0, height: float = 4.4) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count + 0.4, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def styles(theme: Theme, count: int) -> list[dict[str, Any]]:
    """How each of so many lines looks."""
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
    """A line's name in the legend: "euler, linear"."""
    return ", ".join(str(part) for part in key if part not in ("-", "", None))


def legend(figure: Figure, *axes: Axes) -> None:
    """The names of the lines that are drawn in some axes, below all of them, where a narrow window begins to look."""
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
    columns = max(1, min(len(order), int(0.7 * width / (0.09 * longest + 0.7))))
    rows = math.ceil(len(order) / columns) * max((name.count("\n") + 1 for name in order), default=1)
    figure.set_size_inches(width, height + 0.22 * rows)
    figure.legend(
        [named[name] for name in order], order, loc="outside lower left", ncols=columns, frameon=False,
    )  # fmt: skip


def log_scale(axes: Axes, which: str) -> bool:
    """Make an axis logarithmic, unless nothing is drawn that such an axis has a place for; whether it is."""
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
    """A logarithmic axis with ticks at 1, 2, 5, 10, ..., written out."""
    from matplotlib.ticker import NullFormatter

    if not log_scale(axes, which):
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = min(values), max(values)
    ticks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5) if low / 1.3 <= m * 10.0**k <= high * 1.3]
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def note(axes: Axes, words: str, theme: Theme) -> None:
    """A remark below an axes, small."""
    axes.annotate(
        words, (0, -0.2), xycoords="axes fraction", fontsize=8, color=theme.muted, va="top", annotation_clip=False
    )


def floor(axes: Axes, value: float | None, words: str, theme: Theme, *, scale: str = "log") -> None:
    """A line below which figures mean nothing, on an axes of that scale. Its words hide the grid, but no data."""
    if value is not None and (value > 0 or scale == "linear") and axes.get_yscale() == scale:
        axes.axhline(value, color=theme.muted, linestyle=(0, (1, 3)), linewidth=1)
        axes.annotate(
            words, (0.99, value), xytext=(0, 2.5), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", fontsize=8, color=theme.muted, zorder=1.8,
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
    """A line of y over x for each group of rows, where both are there; all x drawn. positive: leave out other y."""
    groups = table.lines()
    drawn: list[float] = []
    for (key, rows), style in zip(groups.items(), styles(theme, len(groups)), strict=True):
        points = [(row[x], row[y]) for row in rows if row[x] and row[y] is not None]  # in the order of steps
        points = [(a, b) for a, b in points if b > 0 or not positive]
        axes.plot([a for a, _ in points], [b for _, b in points], label=label(key), **style)
        drawn += [a for a, _ in points]
    return drawn or [1.0, 10.0]


def reconstruction(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """Error against evaluations: round trip and latent."""
    figure, (left, right) = panels(2)
    for axes, name, title, label in (
        (left, "round_trip", "Round trip", "rms over pixels in [-1, 1], median"),
        (right, "latent", "Latent", "distance to the true latent, rms / σ_T, median"),
    ):
        drawn = lines(axes, table, theme, "evaluations", name)
        log_scale(axes, "y")
        log_axis(axes, drawn)
        axes.set(title=title, ylabel=label, xlabel="network evaluations per direction")
        axes.grid(which="major")
    exact = []  # a logarithmic axis has no place for them
    for key, rows in table.lines().items():
        zeros = [str(row["steps"]) for row in rows if row["round_trip"] == 0]
        some = f" ({', '.join(zeros)} steps)" if len(zeros) < len(rows) else ""
        exact += [f"{label_of(key)}{some}"] if zeros else []
    if exact:
        note(left, f"exactly 0, so not drawn: {'; '.join(exact)}", theme)
    floor(right, table.settings.get("reference_error"), "how far the true latent is known", theme)
    legend(figure, left, right)
    figure.suptitle(table.title, fontsize=11)
    return {table.bench: (figure, "Error against evaluations, one line per solver and grid")}


def work_precision(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """Errors of decoding and encoding against evaluations and seconds, the floor where nothing can be told."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.6, 8.4), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    ways = (("decode", "Decoding", "distance to the ODE's image, rms, median"),
            ("encode", "Encoding", "distance to the ODE's latent, rms / σ_T, median"))  # fmt: skip
    for across, (way, title, label) in zip(grid, ways, strict=True):
        for axes, work, unit in zip(
            across, ("evaluations", "seconds"), ("network evaluations", "seconds per image"), strict=True
        ):
            drawn = lines(axes, table, theme, f"{way}_{work}", f"{way}_error")
            log_scale(axes, "y")
            log_axis(axes, drawn)
            if work == "evaluations":
                axes.set_ylabel(label)
            axes.set(title=f"{title}: error against {work}", xlabel=unit)
            axes.grid(which="major")
            floor(axes, table.settings.get(f"{way}_floor"), "how far the solution is known", theme)
    legend(figure, *grid[0], *grid[1])
    figure.suptitle(table.title, fontsize=11)
    return {table.bench: (figure, "Error against evaluations and seconds, a line per solver and grid")}


def cheapest(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """What each solver on each grid errs on the first set, beside the error that is to be kept."""
    from matplotlib.figure import Figure

    found = [(row["error"], row) for row in table.rows if row["error"] is not None]
    found.sort(key=lambda pair: (("yes", "first", "more").index(pair[1]["found"]), pair[0]))
    figure = Figure(figsize=(9, 1.4 + 0.26 * max(len(found), 2)), layout="constrained")
    axes = figure.subplots()
    for kept, label, i in (
        ("yes", "keeps it on both sets", 2), ("first", "on the first set", 3), ("more", "not with fewer evaluations", 4)
    ):  # fmt: skip
        these = [(place, error) for place, (error, row) in enumerate(found) if row["found"] == kept]
        axes.plot(
            [error for _, error in these], [place for place, _ in these], linestyle="none", label=label,
            color=theme.colours[i], marker=MARKERS[i],
        )  # fmt: skip
    names = [f"{row['solver']}, {row['grid']}, {row['steps']} steps: {row['evaluations']:g}" for _, row in found]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    if log_scale(axes, "x"):
        axes.axvline(table.settings["error"], color=theme.muted, linestyle=(0, (1, 3)))
    axes.grid(axis="x")
    axes.set(
        title=table.title,
        xlabel="the larger error of decoding and encoding, nine images in ten; behind the names: evaluations of both",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return {table.bench: (figure, "What each solver and grid errs with about as many evaluations")}


def consistency(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """The distance to the reference's image of the same x_T over steps, and the one between different x_T."""
    kinds = [("pixels", "Pixels", "rms distance to the reference, median")]
    if any(column.name == "features" for column in table.columns):
        kinds.append(("features", "Features", "rms distance in features, median"))
    figure, all_axes = panels(len(kinds))
    for axes, (name, title, label) in zip(all_axes, kinds, strict=True):
        drawn = lines(axes, table, theme, "evaluations", name)
        log_scale(axes, "y")
        log_axis(axes, drawn)
        axes.set(title=title, ylabel=label, xlabel="network evaluations")
        axes.grid(which="major")
        floor(axes, table.settings.get(f"{name} between different x_T"), "between different x_T", theme)
    floor(all_axes[0], table.settings.get("reference_error"), "how far the reference is known", theme)
    legend(figure, *all_axes)
    figure.suptitle(table.title, fontsize=11)
    return {table.bench: (figure, "Distance to the reference's image over evaluations")}


def quality(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """How far the samples are from real images, over steps."""
    figure, axes = panels(2)
    measure = str(table.settings.get("measure", "Fréchet distance"))
    for panel, name, title in ((axes[0], "frechet", measure), (axes[1], "kid", "KID")):
        label = _eta_label if "eta" in table.group else label_of
        # KID is unbiased: near 0 it is as often below.
        drawn = lines(panel, table, theme, "evaluations", name, label=label, positive=name != "kid")
        log_axis(panel, drawn)
        panel.set(title=title, ylabel=f"{title} to the reference", xlabel="network evaluations")
        panel.grid(which="major")
    log_axis(axes[0], [row["frechet"] for row in table.rows if row["frechet"]] or [1.0], "y")
    floor(axes[0], table.settings.get("frechet of real images"), "as many real images", theme)
    floor(axes[1], table.settings.get("kid of real images"), "as many real images", theme, scale="linear")
    legend(figure, *axes)
    figure.suptitle(table.title, fontsize=11)
    return {table.bench: (figure, f"{measure} and KID over evaluations, one line per η or solver")}


def _eta_label(key: Sequence[Any]) -> str:
    eta, solver, grid = key
    return label_of([{"": solver, "hat": "σ̂"}.get(eta, f"η = {eta}"), grid])


def draw_sheet(sheet: Sheet) -> Figure:
    """Images in rows and columns, with the words beside and above them."""
    import numpy as np
    from matplotlib.figure import Figure

    down, across, height, width = sheet.images.shape[:4]
    scale = 0.62 * max(1.0, math.sqrt(max(height, width) / 64))
    across_inches = scale * across + 1.9
    title = textwrap.fill(sheet.title, max(16, int(across_inches / 0.085)))  # letters of 10 points
    lines = 0.17 * title.count("\n")
    figure = Figure(figsize=(across_inches, scale * down * height / width + 0.75 + lines), layout="constrained")
    axes = figure.subplots(1, 1)
    gap = max(1, width // 14)
    canvas = np.zeros((down * (height + gap) - gap, across * (width + gap) - gap, 4), np.uint8)  # gaps are transparent
    for i in range(down):
        for j in range(across):
            place = canvas[i * (height + gap) :, j * (width + gap) :]
            place[:height, :width, :3] = sheet.images[i, j]
            place[:height, :width, 3] = 255
    axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([j * (width + gap) + width / 2 for j in range(across)], map(formulas, sheet.columns), fontsize=8)
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(down)], map(formulas, sheet.rows), fontsize=8)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(formulas(title), fontsize=10)
    return figure


def _time(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    from odeddim.bench import timing  # it draws with what is here

    return timing.figure(table, theme)


def _interpolation(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    from odeddim.bench import interpolation  # it draws with what is here

    return interpolation.figure(table, theme)


DRAWN: dict[str, Callable[[Table, Theme], dict[str, tuple[Figure, str]]]] = {
    "reconstruction": reconstruction,
    "work-precision": work_precision,
    "cheapest": cheapest,
    "consistency": consistency,
    "quality": quality,
    "time": _time,
    "interpolation": _interpolation,
}
"""bench -> its figures: name -> (figure, what it shows in words)."""
