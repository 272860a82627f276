"""Figures of tables, drawn with matplotlib for light and dark pages.

Each bench has one function, which `DRAWN` lists. It takes a table and a theme. It returns, for each figure's name, the
figure and a sentence about what it shows. `odeddim.bench.drawing` has the parts that the figures share, and colours
that colour-blind people can tell apart.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from odeddim.bench.drawing import (
    LIGHT,
    MARKERS,
    Theme,
    floor,
    formulas,
    label_of,
    legend,
    lines,
    log_axis,
    log_scale,
    note,
    panels,
    styles,
)
from odeddim.bench.interpolation import CROSS_FADE
from odeddim.bench.tables import Sheet, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150


def draw(table: Table, theme: Theme = LIGHT) -> dict[str, tuple[bytes, str]]:
    """Draw the figures of a table for a page that shows the table's title itself.

    Args:
        table: The table.
        theme: The colours.

    Returns:
        For each figure's name, its SVG and a sentence about what it shows.
    """
    return {name: (_bytes(figure, "svg"), words) for name, figure, words in _figures(table, theme, titled=False)}


def files(table: Table) -> dict[str, bytes]:
    """Draw the figures of a table as files, with a title and in light colours.

    Args:
        table: The table.

    Returns:
        For each file's name, NAME.svg or NAME.png, its content.
    """
    return {
        f"{name}.{kind}": _bytes(figure, kind)
        for name, figure, _ in _figures(table, LIGHT, titled=True)
        for kind in ("svg", "png")
    }


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    # The salt and the missing date make the same table give the same bytes each time.
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


def reconstruction(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """Draw the error of the round trip and of the latent against evaluations."""
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
    exact = []  # lines with errors of exactly 0, which a logarithmic axis cannot show
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
    """Draw the errors of decoding and encoding against evaluations and seconds, with the error of the solutions."""
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
    """Draw the error of each solver on each grid on the first set, beside the error that must be kept."""
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
    """Draw the distance to the reference's image of the same x_T over evaluations, and that between different x_T."""
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
    """Draw the distance between samples and real images over evaluations."""
    figure, axes = panels(2)
    measure = str(table.settings.get("measure", "Fréchet distance"))
    for panel, name, title in ((axes[0], "frechet", measure), (axes[1], "kid", "KID")):
        label = _eta_label if "eta" in table.group else label_of
        # KID is unbiased, so near 0 it is often negative.
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
    """Draw a sheet of images in rows and columns, with the rows' words at the left and the columns' words above.

    Args:
        sheet: The sheet; its images are (R, K, H, W, C) uint8 with C = 1 or 3.

    Returns:
        The figure.
    """
    import numpy as np
    from matplotlib.figure import Figure

    down, across, height, width = sheet.images.shape[:4]
    scale = 0.62 * max(1.0, math.sqrt(max(height, width) / 64))
    across_inches = scale * across + 1.9
    title = textwrap.fill(sheet.title, max(16, int(across_inches / 0.085)))  # the width of a letter of 10 points
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


def timing(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """Draw seconds over steps with fitted lines, and milliseconds per image and evaluation over the batch size."""
    import numpy as np
    from matplotlib.ticker import NullLocator

    drawing, (left, right) = panels(2)
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
    drawing.suptitle(table.title, fontsize=11)
    return {table.bench: (drawing, "Seconds over steps, and milliseconds over the batch size")}


def _label_with_rate(key: Sequence[Any], row: Mapping[str, Any]) -> str:
    """Return a line's name and its fitted rate: "euler, linear, batch 8" and "21.3 ms/step, R² 0.9999"."""
    name = f"{label_of(key[:-1])}, batch {key[-1]}"
    if row["per_step"] is None:
        return name
    fit = "" if row["r2"] is None else f", R² {row['r2']:.5f}"
    return f"{name}\n{row['per_step']:.3g} ms/step{fit}"


def interpolation(table: Table, theme: Theme) -> dict[str, tuple[Figure, str]]:
    """Draw, along the lines, the distance between neighbours and the distance of each image from the first."""
    drawing, (left, right) = panels(2)
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
    drawing.suptitle(table.title, fontsize=11)
    return {table.bench: (drawing, "Distances of neighbours, and from the first image, along the way")}


DRAWN: dict[str, Callable[[Table, Theme], dict[str, tuple[Figure, str]]]] = {
    "reconstruction": reconstruction,
    "work-precision": work_precision,
    "cheapest": cheapest,
    "consistency": consistency,
    "quality": quality,
    "time": timing,
    "interpolation": interpolation,
}
"""The function of each bench: (table, theme) -> for each figure's name, the figure and what it shows in words."""
