"""Figures of benchmark tables, drawn with matplotlib; light background, colours that colour-blind people tell apart."""

from __future__ import annotations

from pathlib import Path

from odeddim.bench.reconstruction import Row, Table
from odeddim.files import check_place, replacing
from odeddim.types import InputError

# Okabe & Ito's palette without its yellow, which is too faint on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = "osD^vP*X"


def figure_kind(path: Path) -> str:
    """ "png", "svg" or "pdf" by the name of a figure; an InputError for other names and places that are not there."""
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise InputError(f"{path}: name the figure .png, .svg or .pdf")
    check_place(path)
    return kind


def work_precision(table: Table, path: Path) -> None:
    """Error against evaluations, log-log, a line per solver and grid: round trip and latent. A PNG, SVG or PDF."""
    import matplotlib

    kind = figure_kind(path)
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in (row for row in table.rows if not row.failure):
        lines.setdefault((row.solver, row.grid), []).append(row)
    titles = ("Round trip", "Latent")
    labels = ("MSE on the [0, 1] scale", "distance to the true latent, rms / σ_T")
    for panel, title, label, attribute in zip(panels, titles, labels, ("round_trip", "latent"), strict=True):
        for i, ((solver, grid), rows) in enumerate(lines.items()):
            rows = sorted(rows, key=lambda row: row.evaluations)
            panel.plot(
                [row.evaluations for row in rows],
                [getattr(row, attribute) for row in rows],
                marker=MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                linestyle="-" if i < len(COLOURS) else "--",
                label=solver if grid == "-" else f"{solver}, {grid}",
            )
        panel.set(xscale="log", yscale="log", title=title, ylabel=label, xlabel="network evaluations per direction")
        low, high = min(row.evaluations for row in table.rows), max(row.evaluations for row in table.rows)
        ticks = [m * 10**k for k in range(6) for m in (1, 2, 5) if low / 1.5 <= m * 10**k <= high * 1.5]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(which="major", alpha=0.3)
    exact = [f"{solver}, {grid}" for (solver, grid), rows in lines.items() if any(row.round_trip == 0 for row in rows)]
    if exact:  # a logarithmic axis has no place for them
        panels[0].annotate(
            f"0 (exact): {'; '.join(exact)}", (0.02, 0.02), xycoords="axes fraction", fontsize=8, color="0.35"
        )
    if table.reference_error > 0:
        panels[1].axhline(table.reference_error, color="0.5", linestyle=":", linewidth=1)
        panels[1].annotate(
            "the reference's own error", (0.99, table.reference_error), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=8, color="0.35",
        )  # fmt: skip
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.suptitle(f"{table.model}, {table.images} images, end at {table.end}, {table.dtype}", fontsize=10)
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    finally:
        plt.close(figure)
