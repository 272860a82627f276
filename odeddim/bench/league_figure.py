"""The figure of the league: for each number of evaluations, the places by the latent over those by the round trip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from odeddim.bench.drawing import MARKERS, USUAL, Layout, Theme, headline, legend
from odeddim.bench.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 3  # panels beside each other
_NAMED = 3  # runs named on each side of the diagonal
_NAME = 0.75  # size of the letters of a name, over those of the figure


def league(table: Table, theme: Theme, layout: Layout = USUAL) -> dict[str, tuple[Figure, str]]:
    """Draw a panel for each number of evaluations. On the diagonal, both errors give a run the same place."""
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(row["budget"] for row in table.rows))
    across = 1 if layout.upright else min(_ACROSS, len(budgets))
    down = math.ceil(len(budgets) / across)
    figure = Figure(figsize=layout.figure_size or (4.1 * across + 0.4, 3.9 * down + 0.6), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, budget in zip(panels, budgets, strict=False):
        rows = [row for row in table.rows if row["budget"] == budget]
        both = [row for row in rows if row["round_trip_place"] and row["latent_place"]]
        # The axes are about half as high as their share of the figure; two names are a line apart.
        _panel(axes, both, theme, layout, 2.2 * _NAME * layout.font / 72 / (0.5 * figure.get_figheight() / down))
        axes.set_title(f"{budget} evaluation{'s' if budget > 1 else ''}")
        axes.set(xlabel="place by the round trip", ylabel="place by the latent's error")
    for axes in panels[len(budgets) :]:
        axes.remove()
    legend(figure, *panels[: len(budgets)])
    headline(figure, table.title)
    return {table.bench: (figure, "Places by the latent's error over places by the round trip")}


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], theme: Theme, layout: Layout, apart: float) -> None:
    """Draw one panel; `apart` is the least distance of two names, over the height of the axes."""
    from matplotlib.ticker import MaxNLocator

    most = max((row[f"{name}_place"] for row in rows for name in ("round_trip", "latent")), default=1)
    axes.plot([1, most], [1, most], color=theme.muted, linestyle=(0, (1, 3)), label="the same place by both")
    kinds = ((True, "comes back exactly", 4), (False, "comes back approximately", 2))
    for exact, label, i in kinds:
        these = [row for row in rows if (row["round_trip"] == 0) is exact]
        axes.plot(
            [row["round_trip_place"] for row in these], [row["latent_place"] for row in these], linestyle="none",
            color=theme.colours[i], marker=MARKERS[i], label=label,
        )  # fmt: skip
    ordered = sorted(rows, key=lambda row: row["round_trip_place"] - row["latent_place"])
    best = [row for row in rows if row["latent_place"] == 1]
    taken: list[float] = []
    for row in [*best, *_alternating(ordered)][: 2 * _NAMED + len(best)]:
        x, y = row["round_trip_place"], row["latent_place"]
        if all(abs(y - other) > apart * most for other in taken):
            taken.append(y)
            side = x < most / 2
            axes.annotate(
                row["solver"], (x, y), xytext=(5, 0) if side else (0, -4), textcoords="offset points",
                ha="left" if side else "right", va="center" if side else "top", fontsize=_NAME * layout.font,
            )  # fmt: skip
    room = 0.06 * most + 0.5
    axes.set(xlim=(1 - room, most + room), ylim=(1 - room, most + room))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(which="major")


def _alternating(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first, the last, the second, the last but one, ...; none twice."""
    pairs = zip(rows, reversed(rows), strict=True)
    return [row for pair in list(pairs)[: len(rows) // 2] for row in pair]
