"""Figures of tables, drawn with matplotlib for light and dark pages.

`DRAWN` lists one function for each bench. The function takes a table, a theme and a layout. For each figure's name, it
returns the figure and a sentence about what the figure shows. `odeddim.bench.drawing` has the parts that the figures
share, and colours that colour-blind people can tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from odeddim.bench.diagnosis_figure import diagnosis
from odeddim.bench.drawing import (
    LIGHT,
    MARKERS,
    USUAL,
    Layout,
    Theme,
    break_labels,
    formulas,
    headline,
    label_of,
    legend,
    level,
    lines,
    log_axis,
    log_scale,
    note,
    panels,
    styles,
)
from odeddim.bench.interpolation import CROSS_FADE
from odeddim.bench.league_figure import league
from odeddim.bench.tables import Sheet, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Drawn = dict[str, tuple[Figure, str]]

_DPI = 150
REAL = "equally many other real images"
"""The words at the baseline of the Fréchet distance and of KID."""


def draw(table: Table, theme: Theme = LIGHT) -> dict[str, tuple[bytes, str]]:
    """Draw the figures of a table for a page that shows the table's title itself.

    Args:
        table: The table.
        theme: The colours.

    Returns:
        For each figure's name, its SVG and a sentence about what it shows.
    """
    drawn = _figures(table, theme, Layout(title=False))
    return {name: (_bytes(figure, "svg"), words) for name, figure, words in drawn}


def files(table: Table, layout: Layout = USUAL, kinds: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Draw the figures of a table as files, in light colours.

    Args:
        table: The table.
        layout: The size of the figures, and whether they have a title.
        kinds: The formats.

    Returns:
        For each file's name, NAME.svg or NAME.png, its content.
    """
    return {
        f"{name}.{kind}": _bytes(figure, kind) for name, figure, _ in _figures(table, LIGHT, layout) for kind in kinds
    }


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    # The salt and the missing date make the same table give the same bytes each time.
    with matplotlib.rc_context({"svg.hashsalt": "odeddim"}):
        figure.savefig(out, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _figures(table: Table, theme: Theme, layout: Layout) -> Iterator[tuple[str, Figure, str]]:
    captions = [sheet.title for sheet in table.sheets]
    table = _without_mathematics(table)
    if not layout.title:
        table = replace(table, title="", sheets=tuple(replace(sheet, title="") for sheet in table.sheets))
    with _themed(theme, layout):
        if table.bench in DRAWN:
            for name, (figure, words) in DRAWN[table.bench](table, theme, layout).items():
                _typeset(figure)
                if layout.figure_size is not None:
                    figure.set_size_inches(layout.figure_size)  # the legend has made it higher
                break_labels(figure)
                yield name, figure, words
        for i, (sheet, words) in enumerate(zip(table.sheets, captions, strict=True)):
            yield f"{table.bench}-sheet{i + 1 if len(table.sheets) > 1 else ''}", draw_sheet(sheet, layout), words


def _typeset(figure: Figure) -> None:
    """Write x_T and σ_T as formulas in every text of a figure except the ticks."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(formulas(text.get_text()))


def _without_mathematics(table: Table) -> Table:
    """Escape each $ in a table's words: matplotlib would read what stands between two $ as a formula."""

    def plain(value: Any) -> Any:
        return value.replace("$", r"\$") if isinstance(value, str) else value

    sheets = [
        Sheet(plain(s.title), s.images, tuple(map(plain, s.rows)), tuple(map(plain, s.columns))) for s in table.sheets
    ]
    rows = tuple({key: plain(value) for key, value in row.items()} for row in table.rows)
    settings = {key: plain(value) for key, value in table.settings.items()}
    return replace(table, title=plain(table.title), rows=rows, settings=settings, sheets=tuple(sheets))


@contextmanager
def _themed(theme: Theme, layout: Layout = USUAL) -> Iterator[None]:
    import matplotlib

    style: dict[Any, Any] = {
        "figure.facecolor": theme.paper, "savefig.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.edgecolor": theme.muted, "grid.color": theme.muted,
        "grid.alpha": 0.3, "font.size": layout.font, "axes.titlesize": 1.1 * layout.font,
        "figure.titlesize": 1.1 * layout.font, "lines.markersize": 0.5 * layout.font, "lines.linewidth": 1.5,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        yield


def reconstruction(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw the error of the round trip and of the latent against evaluations."""
    figure, (left, right) = panels(2, layout)
    for axes, name, title, label in (
        (left, "round_trip", "Round trip", "rms over pixels in [-1, 1], median"),
        (right, "latent", "Latent", "distance to the true latent, rms / σ_T, median"),
    ):
        drawn = lines(axes, table, theme, "evaluations", name)
        log_scale(axes, "y")
        log_axis(axes, drawn)
        axes.set(title=title, ylabel=label, xlabel="network evaluations per direction")
        axes.grid(which="major")
    exact = []  # lines with errors of exactly 0, which a logarithmic axis cannot show
    for key, rows in table.lines().items():
        zeros = [str(row["steps"]) for row in rows if row["round_trip"] == 0]
        some = f" ({', '.join(zeros)} steps)" if len(zeros) < len(rows) else ""
        exact += [f"{label_of(key)}{some}"] if zeros else []
    if exact:
        note(left, f"exactly 0, so not drawn: {'; '.join(exact)}", theme)
    level(right, table.settings.get("reference_error"), "how far the true latent is known", theme)
    legend(figure, left, right)
    headline(figure, table.title)
    return {table.bench: (figure, "Error against evaluations, one line per solver and grid")}


def work_precision(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw the errors of decoding and encoding against evaluations and seconds, with the error of the solutions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=layout.figure_size or (11.6, 8.4), layout="constrained")
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
            level(axes, table.settings.get(f"{way}_floor"), "how far the solution is known", theme)
    legend(figure, *grid[0], *grid[1])
    headline(figure, table.title)
    return {table.bench: (figure, "Error against evaluations and seconds, a line per solver and grid")}


def cheapest(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw the error of each solver on each grid on the first set, beside the error that must be kept."""
    from matplotlib.figure import Figure

    found = [(row["error"], row) for row in table.rows if row["error"] is not None]
    found.sort(key=lambda pair: (("yes", "first", "more").index(pair[1]["found"]), pair[0]))
    size = layout.figure_size or (9, 1.4 + 0.26 * max(len(found), 2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for kept, label, i in (
        ("yes", "kept on both sets", 2), ("first", "kept on the first set", 3), ("more", "not kept", 4)
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
    axes.set_xlabel("the larger of both errors; after each name: the network evaluations")
    headline(figure, table.title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return {table.bench: (figure, "What each solver and grid errs with about as many evaluations")}


def consistency(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw the distance to the reference's image of the same x_T over evaluations, and that between different x_T."""
    kinds = [("pixels", "Pixels", "rms distance to the reference, median")]
    if any(column.name == "features" for column in table.columns):
        kinds.append(("features", "Features", "rms distance in features, median"))
    figure, all_axes = panels(len(kinds), layout)
    for axes, (name, title, label) in zip(all_axes, kinds, strict=True):
        drawn = lines(axes, table, theme, "evaluations", name)
        log_scale(axes, "y")
        log_axis(axes, drawn)
        axes.set(title=title, ylabel=label, xlabel="network evaluations")
        axes.grid(which="major")
        level(axes, table.settings.get(f"{name} between different x_T"), "between different x_T", theme, side="right")
    level(all_axes[0], table.settings.get("reference_error"), "how far the reference is known", theme)
    legend(figure, *all_axes)
    headline(figure, table.title)
    return {table.bench: (figure, "Distance to the reference's image over evaluations")}


def quality(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw the distance between samples and real images over evaluations."""
    figure, axes = panels(2, layout)
    measure = str(table.settings.get("measure", "Fréchet distance"))
    for panel, name, title in ((axes[0], "frechet", measure), (axes[1], "kid", "KID")):
        label = _eta_label if "eta" in table.group else label_of
        # KID is unbiased, so near 0 it is often negative.
        drawn = lines(panel, table, theme, "evaluations", name, label=label, positive=name != "kid")
        log_axis(panel, drawn)
        panel.set(title=title, ylabel=f"{title} to the reference", xlabel="network evaluations")
        panel.grid(which="major")
    log_axis(axes[0], [row["frechet"] for row in table.rows if row["frechet"]] or [1.0], "y")
    level(axes[0], table.settings.get("frechet of real images"), REAL, theme)
    level(axes[1], table.settings.get("kid of real images"), REAL, theme, scale="linear")
    legend(figure, *axes)
    headline(figure, table.title)
    return {table.bench: (figure, f"{measure} and KID over evaluations, one line per η or solver")}


def _eta_label(key: Sequence[Any]) -> str:
    eta, solver, grid = key
    return label_of([{"": solver, "hat": "σ̂"}.get(eta, f"η = {eta}"), grid])


def draw_sheet(sheet: Sheet, layout: Layout = USUAL) -> Figure:
    """Draw a sheet of images in rows and columns, with the rows' labels at the left and the columns' labels above.

    Args:
        sheet: The sheet; its images are (R, K, H, W, C) uint8 with C = 1 or 3.
        layout: The size that the sheet fits into. By default, a sheet with more or larger images is larger.

    Returns:
        The figure.
    """
    import numpy as np
    from matplotlib.figure import Figure

    down, across, height, width = sheet.images.shape[:4]
    scale = 0.62 * max(1.0, math.sqrt(max(height, width) / 64))
    size = np.array([scale * across + 1.9, scale * down * height / width + 0.75])
    if layout.figure_size is not None:
        size *= min(np.array(layout.figure_size) / size)
    figure = Figure(figsize=tuple(size), layout="constrained")
    headline(figure, sheet.title)
    if layout.figure_size is None:
        more = 0.17 * figure.get_suptitle().count("\n")  # inches, for the other lines of the title
        figure.set_size_inches(size[0], size[1] + more)
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
    return figure


def timing(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw seconds over steps with fitted lines, and milliseconds per image and evaluation over the batch size."""
    import numpy as np
    from matplotlib.ticker import NullLocator

    drawing, (left, right) = panels(2, layout)
    groups = table.lines()
    found: dict[tuple[Any, ...], list[tuple[int, float, float]]] = {}  # by solver: batch, all time, own time
    for (key, rows), style in zip(groups.items(), styles(theme, len(groups)), strict=True):
        done = [row for row in rows if row["seconds"] is not None]
        points = sorted((row["steps"], row["seconds"], row["fastest"], row["slowest"]) for row in done if row["steps"])
        mark: dict[str, Any] = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        left.plot([p[0] for p in points], [p[1] for p in points], label=_label_with_rate(key, rows[0]), **mark)
        left.vlines([p[0] for p in points], [p[2] for p in points], [p[3] for p in points], color=style["color"])
        if points and rows[0]["per_step"] is not None:
            steps = np.geomspace(points[0][0], points[-1][0], 100)
            line = (rows[0]["intercept"] + rows[0]["per_step"] * steps) / 1e3
            left.plot(steps[line > 0], line[line > 0], color=style["color"], linestyle=style["linestyle"], linewidth=1)
        if done:
            longest = max(done, key=lambda row: row["steps"] or 0)
            whole, own = longest["per_evaluation"], longest["per_evaluation"] * longest["own_share"] / 100
            right.plot([key[-1]], [whole], **mark)
            right.plot([key[-1]], [own], **{**mark, "markerfacecolor": "none"})
            found.setdefault(key[:-1], []).append((key[-1], whole, own))
    for these in found.values():
        for i in (1, 2):
            batches = sorted((one[0], one[i]) for one in these)
            right.plot(*zip(*batches, strict=True), color=theme.muted, linewidth=0.8, zorder=0)
    log_axis(left, [row["steps"] for row in table.rows if row["steps"]] or [1.0, 10.0])
    log_scale(right, "x")
    sizes = sorted({row["batch"] for row in table.rows})
    if found:
        right.set_xticks(sizes, [f"{size:,}" for size in sizes])
        right.xaxis.set_minor_locator(NullLocator())
    left.set(title="A run", xlabel="steps", ylabel="seconds")
    right.set(title="An evaluation", xlabel="images in the batch", ylabel="milliseconds per image and evaluation")
    for axes in (left, right):
        if log_scale(axes, "y"):
            axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(which="major")
        axes.margins(x=0.08)
    note(left, "marks: medians, with their range; lines: a + b·steps", theme)
    note(right, "of the longest run; hollow: outside the network", theme)
    legend(drawing, left)
    headline(drawing, table.title)
    return {table.bench: (drawing, "Seconds over steps, and milliseconds over the batch size")}


def _label_with_rate(key: Sequence[Any], row: Mapping[str, Any]) -> str:
    """Return a line's name and its fitted rate: "euler, linear, batch 8" and "21.3 ms/step, R² 0.9999"."""
    name = f"{label_of(key[:-1])}, batch {key[-1]}"
    if row["per_step"] is None:
        return name
    fit = "" if row["r2"] is None else f", R² {row['r2']:.5f}"
    return f"{name}\n{row['per_step']:.3g} ms/step{fit}"


def interpolation(table: Table, theme: Theme, layout: Layout = USUAL) -> Drawn:
    """Draw, along the lines, the distance between neighbours and the distance of each image from the first."""
    drawing, (left, right) = panels(2, layout)
    profiles = table.settings["profiles"]
    several = len({profile["steps"] for profile in profiles if profile["steps"]}) > 1
    faint: dict[str, Any] = {"color": theme.muted, "linestyle": (0, (1, 2))}
    for profile, its_own in zip(profiles, styles(theme, len(profiles)), strict=True):
        style: dict[str, Any] = faint if profile["solver"] == CROSS_FADE else {**its_own}
        count = len(profile["lengths"])
        steps = [f"{profile['steps']} steps"] if several and profile["steps"] else []
        name = label_of([profile["solver"], profile["grid"], *steps])
        left.plot([(i + 0.5) / count for i in range(count)], profile["lengths"], label=name, **style)
        right.plot([i / count for i in range(count + 1)], profile["distances"], **style)
    left.set_title("From one image to the next")
    right.set_title("From the first image")
    for axes in (left, right):
        axes.set(xlabel="fraction of the way between two latents", xlim=(-0.02, 1.02))
        axes.set_ylabel("rms over pixels in [-1, 1], mean over the lines")
        axes.set_ylim(bottom=0)
        axes.grid(which="major")
    legend(drawing, left)
    headline(drawing, table.title)
    return {table.bench: (drawing, "Distances of neighbours, and from the first image, along the way")}


DRAWN: dict[str, Callable[[Table, Theme, Layout], Drawn]] = {
    "reconstruction": reconstruction,
    "work-precision": work_precision,
    "cheapest": cheapest,
    "consistency": consistency,
    "quality": quality,
    "time": timing,
    "interpolation": interpolation,
    "league": league,
    "diagnosis": diagnosis,
}
"""The function of each bench: (table, theme, layout) -> for each figure's name, the figure and a sentence about it."""
