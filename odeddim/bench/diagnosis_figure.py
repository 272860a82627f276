"""The figure of a diagnosis: what noised images say of a model, over the noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from odeddim.bench.drawing import USUAL, Layout, Theme, headline, level, log_axis, log_scale, panels, styles
from odeddim.bench.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("Residual of the noise", "rms of ε minus the noise", ("residual", "best"), None),
    ("Slope of the noise over ε", "1 if the network is asked rightly", ("slope",), (0.5, 1.5)),
    ("Growth of an error", "for each factor e of σ", ("amplification", "unguided"), (0.0, 1.2)),
    ("Gap between the ways up and down", "rms of x", ("gap",), None),
)
"""Title, words of the y axis, columns, and the range that a linear axis shows at least; None for a logarithmic one."""
_LINES = {
    "residual": "as the model claims", "best": "best other convention", "slope": "as the model claims",
    "amplification": "at the guidance given", "unguided": "at guidance 1", "gap": "round trip",
}  # fmt: skip


def diagnosis(table: Table, theme: Theme, layout: Layout = USUAL) -> dict[str, tuple[Figure, str]]:
    """Draw the figures of a diagnosis, a panel each. Settings "words" is the sentence above them."""
    figure, axes = panels(len(_PANELS), layout)
    looks = dict(zip(_LINES, styles(theme, len(_LINES)), strict=True))
    for one, (title, label, names, least) in zip(axes, _PANELS, strict=True):
        drawn = [1.0]
        for name in names:
            points = [(row["sigma"], row[name]) for row in table.rows if row[name] is not None]
            drawn += [y for _, y in points]
            if points:
                one.plot([x for x, _ in points], [y for _, y in points], label=_LINES[name], **looks[name])
        if least is None:
            log_scale(one, "y")
        else:
            one.set_ylim(min(least[0], 1.1 * min(drawn)), max(least[1], 1.1 * max(drawn)))
            level(one, 1, "", theme, scale="linear")
        log_axis(one, [row["sigma"] for row in table.rows])
        one.set(title=title, ylabel=label, xlabel="noise level σ")
        one.grid(which="major")
        if len(names) > 1:
            one.legend(frameon=False, fontsize="small", loc="best")
    headline(figure, table.title)
    return {table.bench: (figure, "Residual, slope, growth of errors and gap of the round trip over the noise level")}
