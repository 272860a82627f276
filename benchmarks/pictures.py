"""The pictures of the manual and of the README, made from the built-in models and the package's images.

    python benchmarks/pictures.py [NAME ...] [-o FOLDER]

makes each picture, or those named, into docs/pictures/, and the explorer page into docs/static/. Every figure in a
picture is measured here, but those of certificate.csv, density.csv and league.csv beside this file, which
certificate.py, density.py and `odeddim bench league` have measured. A picture takes 5 to 110 seconds of one core. What
the bench of work-precision measures is kept in runs/pictures/.

Pictures are 1200 pixels wide, with letters of 26 pixels or more, so that they can be read on a phone. Latents are
drawn from -2.5 (black) to 2.5 (white), and everything else from -1 to 1. "True" is what the classical method of Runge
and Kutta finds with 100 steps in log σ, four evaluations each (defaults.py); the benches have references of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import density as density_benchmark
import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from certificate import CSV, held_out, rows_of
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

import odeddim
from odeddim import jobs
from odeddim.bench import drawing
from odeddim.bench.solutions import decoded, encoded
from odeddim.bench.tables import Table
from odeddim.latents.arithmetic import rms
from odeddim.ode.field import VectorField
from odeddim.storage.images import open_images
from odeddim.storage.png import to_bytes
from odeddim.types import State

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEEP = Path("runs") / "pictures"
WIDTH = 1200  # pixels of a picture
ROUND = 24  # pixels of the radius of its corners
LEAGUE = Path(__file__).resolve().parent / "league.csv"
NAMED = ("belm", "bdia", "edict", "obelm", "mf-data-euler", "dpm-solver-3", "dpmpp-3m", "unipc-2", "euler")
"""The solvers that the picture of the league names."""
INK, MUTED, PANEL = "#1a1a1a", "#5c5c5c", "#f3f4f6"
BAD, GOOD = "#b03a00", "#00664a"  # darker than Okabe and Ito's vermilion and green, for they colour letters
REFERENCE_STEPS = 100
WRONG = 0.05  # an error from which on a figure is red

Files = dict[str, bytes]
"""What a maker makes: the content of each file by its path below docs/."""


# Drawing.


class Board:
    """A picture on which tiles and words are placed by pixels from its top left corner."""

    def __init__(self, height: int, width: int = WIDTH) -> None:
        self.height, self.width = height, width
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")

    def tile(self, values: Tensor, left: float, top: float, side: int, largest: float = 1.0) -> None:
        """An image (1, H, W) from -largest to largest, each of its pixels a square."""
        pixels = to_bytes((values / largest).float()[None])[0, 0].numpy()
        scale = side // pixels.shape[-1]
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        at = (round(left), self.height - round(top) - large.shape[0])
        self.figure.figimage(large, *at, cmap="gray", vmin=0, vmax=255)

    def words(
        self,
        text: str,
        x: float,
        y: float,
        size: int = 28,
        colour: str = INK,
        *,
        align: str = "center",
        bold: bool = False,
    ) -> None:
        """A line of words, whose capitals have their middle at y; x is their centre, left or right end."""
        self.figure.text(
            x / self.width, 1 - (y + 0.36 * size) / self.height, text, color=colour, fontsize=size * 0.72, ha=align,
            va="baseline", fontweight="bold" if bold else "normal",
        )  # fmt: skip

    def panel(self, left: float, top: float, width: float, height: float) -> None:
        """A rounded grey ground."""
        self.figure.add_artist(
            FancyBboxPatch(
                (left + ROUND, self.height - top - height + ROUND), width - 2 * ROUND, height - 2 * ROUND,
                boxstyle=f"round,pad={ROUND}", facecolor=PANEL, edgecolor="none", transform=None,
                zorder=-1,
            )
        )  # fmt: skip

    def png(self) -> bytes:
        out = io.BytesIO()
        with matplotlib.rc_context({"mathtext.fontset": "dejavusans"}):
            self.figure.savefig(out, format="png", dpi=100)
        return card(out.getvalue())


def card(content: bytes) -> bytes:
    """A PNG as a card with round corners, which suits light and dark pages, without notes, and small."""
    image = PIL.Image.open(io.BytesIO(content)).convert("RGB")
    fine = PIL.Image.new("L", (4 * image.width, 4 * image.height), 0)
    PIL.ImageDraw.Draw(fine).rounded_rectangle((0, 0, fine.width - 1, fine.height - 1), 4 * ROUND, fill=255)
    image.putalpha(fine.resize(image.size, PIL.Image.Resampling.LANCZOS))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True)
class Tile:
    """An image of a picture.

    Attributes:
        values: The image, (1, H, W), from -largest to largest.
        under: The words under it.
        colour: Their colour.
        largest: 2.5 for latents.
    """

    values: Tensor
    under: str = ""
    colour: str = INK
    largest: float = 1.0


@dataclass(frozen=True)
class Row:
    """A row of a picture.

    Attributes:
        tiles: Its images; None leaves a place empty.
        label: What stands at its left; a second line is muted.
        title: What stands above it.
        heads: What stands above each column.
    """

    tiles: Sequence[Tile | None]
    label: str = ""
    title: str = ""
    heads: Sequence[str] = ()


def rows_png(rows: Sequence[Row], labels: int = 0, scale: int = 5) -> bytes:
    """Rows of tiles.

    Args:
        rows: The rows.
        labels: The width of the labels at the left.
        scale: How many times an image of 28 pixels is enlarged.
    """
    side, margin, gap = 28 * scale, 28, 18
    columns = max(len(row.tiles) for row in rows)
    pitch = (WIDTH - 2 * margin - labels) / columns
    above = [(64 if row.title else 0) + (46 if row.heads else 0) for row in rows]
    below = [44 if any(tile and tile.under for tile in row.tiles) else 0 for row in rows]
    board = Board(2 * margin + sum(above) + sum(below) + len(rows) * (side + gap) - gap)
    y = margin
    for row, up, down in zip(rows, above, below, strict=True):
        if row.title:
            board.words(row.title, margin, y + 24, 32, align="left", bold=True)
        centres = [margin + labels + pitch * (i + 0.5) for i in range(columns)]
        for head, x in zip(row.heads, centres, strict=False):
            board.words(head, x, y + up - 26, 30)
        y += up
        first, _, second = row.label.partition("\n")
        board.words(first, margin, y + side / 2 - (20 if second else 0), 32, align="left", bold=bool(second))
        board.words(second, margin, y + side / 2 + 22, 28, MUTED, align="left")
        for tile, x in zip(row.tiles, centres, strict=False):
            if tile is not None:
                board.tile(tile.values, x - side / 2, y, side, tile.largest)
                board.words(tile.under, x, y + side + 22, 30, tile.colour)
        y += side + down + gap
    return board.png()


def latent(x_T: Tensor, under: str = "", colour: str = INK) -> Tile:
    return Tile(x_T, under, colour, largest=2.5)


def figure_of(value: Tensor | float) -> str:
    """An error in two digits, without an exponent: 0.0076."""
    value = float(value)
    if value == 0:
        return "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


# What is measured.


@torch.no_grad()
def true_latents(field: VectorField, x_0: Tensor, steps: int = REFERENCE_STEPS) -> Tensor:
    return encoded(field, x_0, steps)


@torch.no_grad()
def true_images(field: VectorField, x_T: Tensor, steps: int = REFERENCE_STEPS) -> Tensor:
    return decoded(field, x_T, steps)


def round_trip(steps: int = 20, reference: int = REFERENCE_STEPS) -> Files:
    """Real images to latents and back: DDIM's come back changed, those of belm exactly."""
    x_0 = open_images().read([1, 30, 7])
    field = odeddim.load()
    truth = true_latents(field, x_0, reference)
    margin, width, side, pad = 24, 564, 168, 22
    board = Board(1000)
    for i, (name, solver, grid, colour) in enumerate((("DDIM", "euler", "linear", BAD), ("belm", "belm", "log", GOOD))):
        state = odeddim.encode(x_0, solver, model=field, grid=grid, steps=steps)
        again = odeddim.decode(state, model=field)
        left = margin + i * (width + margin)
        middle, xs = left + width / 2, [left + pad + j * (side + 8) for j in range(len(x_0))]
        board.panel(left, margin, width, board.height - 2 * margin)
        y = margin + 46
        board.words(name, left + pad, y, 42, align="left", bold=True)
        board.words(f"{steps} steps", left + width - pad, y, 28, MUTED, align="right")
        exact = bool((again == x_0).all())
        errors = (None, rms(state.x - truth), rms(again - x_0))
        for tiles, error, before, after in (
            (x_0, errors[0], "real images", ""),
            (state.x / 2.5, errors[1], "↓  encode", "away from the true latents"),
            (again, errors[2], "↓  decode", "every bit comes back" if exact else "round trip error"),
        ):
            y += 62 if error is None else 30
            board.words(before, middle, y, 28, MUTED)
            y += 30
            for tile, x in zip(tiles, xs, strict=True):
                board.tile(tile, x, y, side)
            y += side
            if error is not None:
                for value, x in zip(error, xs, strict=True):
                    board.words(figure_of(value), x + side / 2, y + 28, 36, colour, bold=True)
                board.words(after, middle, y + 66, 28, colour)
                y += 86
    return {"pictures/round-trip.png": board.png()}


def levels(steps: int = 50) -> Files:
    """One image on its way up and one noise on its way down: x and the predicted image at some noise levels."""
    field = odeddim.load()
    top = field.schedule.sigma_max
    shown = (0.0, 0.1, 0.4, 1.0, 2.5, 10.0, top)
    usual = odeddim.plan(field, "unipc-2", steps=steps).nodes.tolist()
    plan = odeddim.plan(field, "unipc-2", grid=sorted({*usual, *shown}))
    x_0, x_T = open_images().read([7]), odeddim.noise(1, (1, 28, 28), seed=0, start=7)
    up, down = {0.0: x_0}, {top: x_T * math.hypot(1, top)}
    odeddim.encode(x_0, model=field, plan=plan, callback=lambda step, sigma, xbar: up.update({sigma: xbar}))
    odeddim.solve(x_T, model=field, plan=plan, callback=lambda step, sigma, xbar: down.update({sigma: xbar}))
    rows = []
    for title, course in (("A real image is encoded: σ rises  →", up), ("Noise is decoded: σ falls  ←", down)):
        states, predicted = [], []
        for sigma in shown:
            xbar = course[sigma]
            with torch.no_grad():
                image = xbar - sigma * field(torch.tensor(sigma, dtype=torch.float64), xbar)
            states.append(Tile(State(xbar, sigma).x[0]))
            predicted.append(Tile(image[0], f"{sigma:.3g}" if sigma else "σ = 0"))
        rows += [Row(states, "x", title), Row(predicted, r"$\hat{x}_0$")]
    return {"pictures/levels.png": rows_png(rows, labels=64)}


def trajectories(shown: Sequence[float] = (20.0, 5.0, 2.5, 1.5, 0.8, 0.3, 0.0)) -> Files:
    """What three runs from one noise predict at the same noise levels, whatever their nodes are."""
    x_T = odeddim.noise(1, (1, 28, 28), seed=0, start=7)
    runs = (("unipc-2", "log", 50), ("unipc-2", "log", 8), ("euler", "linear", 8))
    found = [odeddim.trajectory(x_T, name, grid=grid, steps=steps, at=shown) for name, grid, steps in runs]
    rows = []
    for path, (name, _, steps) in zip(found, runs, strict=True):
        off = rms((path.x0 - found[0].x0)[:, 0])
        under = [f"{sigma:.3g}" if sigma else "σ = 0" for sigma in shown] if not rows else map(figure_of, off)
        tiles = [Tile(image[0], words) for image, words in zip(path.x0, under, strict=True)]
        rows.append(Row(tiles, f"{name}\n{steps} steps"))
    return {"pictures/trajectories.png": rows_png(rows, labels=150)}


SOLVERS = (
    ("euler", "linear", "DDIM"), ("euler", "log", ""), ("heun", "karras", "EDM"), ("dpmpp-2m", "log", ""),
    ("ab3", "log", "DEIS"), ("unipc-2", "log", "default"), ("belm", "log", "reversible"),
    ("mf-euler", "log", "reversible"),
)  # fmt: skip
"""(solver, grid, what else is said of it)"""


def solvers(steps: Sequence[int] = (5, 10, 20, 50), reference: int = REFERENCE_STEPS) -> Files:
    """The same x_T under solvers and numbers of steps, with the distance to the ODE's image."""
    field, x_T = odeddim.load(), odeddim.noise(1, (1, 28, 28), seed=0, start=33)
    truth = true_images(field, x_T, reference)
    rows: list[Row] = []
    for solver, grid, note in SOLVERS:
        tiles = []
        for count in steps:
            x_0 = odeddim.solve(x_T, solver, model=field, grid=grid, steps=count)
            tiles.append(Tile(x_0[0], figure_of(rms(x_0 - truth))))
        words = f"{solver}\n{grid}{', ' if note else ''}{note}"
        rows.append(Row([*tiles, Tile(truth[0]) if not rows else None], words))
    heads = [*(f"{count} steps" for count in steps), "true"]
    rows[0] = replace(rows[0], heads=heads)
    return {"pictures/solvers.png": rows_png(rows, labels=270)}


def corners(tiles: int = 7, levels: int = 6, count: int = 24, steps: int = 20) -> Files:
    """The square between four latents, as a sheet and as a page."""
    four, machine = (0, 1, 13, 15), jobs.Machine(device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latents, sheet, page = folder / "clothes.h5", folder / "corners.png", folder / "explore.html"
        jobs.encode(None, latents, count=count, steps=steps, certify=True, machine=machine)
        to = jobs.Drawing(sheet=jobs.Pictures(sheet, scale=6, labels=False))
        jobs.interpolate(latents, four, tiles, kind="grid", to=to)
        jobs.explore(latents, page, corners=four, tiles=tiles, levels=levels)
        return {"pictures/corners.png": card(sheet.read_bytes()), "static/explore.html": page.read_bytes()}


def bridge(count: int = 6, steps: int = 50) -> Files:
    """Images from fashion-mnist to fashion-mnist-flow and back, with the cycle error."""
    x_0 = open_images().read([1, 7, 30, 36, 17, 13][:count])
    crossed = odeddim.bridge(x_0, "fashion-mnist", "fashion-mnist-flow", steps=steps)
    assert crossed.again is not None
    assert crossed.error is not None
    rows = [
        Row([Tile(image) for image in x_0], "image\nfashion-mnist"),
        Row([latent(x_T) for x_T in crossed.state.x], "latent\nof both models"),
        Row([Tile(image) for image in crossed.images], "bridged\nby the flow"),
        Row(
            [Tile(image, figure_of(error)) for image, error in zip(crossed.again, crossed.error, strict=True)],
            "back\ncycle error",
        ),
    ]
    return {"pictures/bridge.png": rows_png(rows, labels=245)}


def work_precision(
    count: int = 3,
    solvers: Sequence[str] = ("euler@linear", "euler@log", "heun", "dpmpp-2m", "unipc-2", "belm"),
    steps: Sequence[int] = (5, 10, 20, 40, 80),
    keep: Path = KEEP,
) -> Files:
    """Error against evaluations, of decoding and of encoding. What is measured is kept in a folder."""
    bench = jobs.bench.Workbench(folder=keep / "work-precision", machine=jobs.Machine(device="cpu"))
    return {
        "pictures/work-precision.png": work_precision_png(
            jobs.bench.work_precision(bench, count=count, solvers=solvers, steps=steps)
        )
    }


def work_precision_png(table: Table) -> bytes:
    """Two panels of `odeddim.bench.figures.work_precision`, one below the other, in large letters."""
    large: dict[Any, Any] = {
        "font.size": 15,
        "axes.titlesize": 16,
        "lines.markersize": 9,
        "lines.linewidth": 2.2,
        "grid.alpha": 0.4,
    }
    with matplotlib.rc_context(large):
        figure, axes = drawing.panels(2, drawing.Layout(figure_size=(8, 9.5)))
        for one, way, title in (
            (axes[0], "decode", "Decoding: rms distance to the ODE's image"),
            (axes[1], "encode", "Encoding: rms distance to the ODE's latent"),
        ):
            drawn = drawing.lines(one, table, drawing.LIGHT, f"{way}_evaluations", f"{way}_error")
            drawing.log_scale(one, "y")
            drawing.log_axis(one, drawn)
            one.set(title=title)
            one.grid(which="major")
        axes[1].set_xlabel("network evaluations")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=WIDTH / 8)
    return card(out.getvalue())


def certificates(count: int = 3, steps: int = 20) -> Files:
    """Estimated against true errors of latents, and the best and the worst latents of a run."""
    rows = [row for row in rows_of(CSV) if row["model"] == "fashion-mnist"]
    board = Board(1320)
    axes = board.figure.add_axes((0.135, 1 - 680 / board.height, 0.835, 650 / board.height))
    names = ("euler", "dpmpp-2m", "ab3", "unipc-2", "belm")
    for solver, style in zip(names, drawing.styles(drawing.LIGHT, len(names)), strict=True):
        its = [row for row in rows if row["solver"] == solver]
        points = [[float(row[key]) for row in its] for key in ("true", "estimate")]
        axes.plot(*points, color=style["color"], marker=style["marker"], linestyle="none", markersize=6, alpha=0.6,
                  markeredgewidth=0, label=solver)  # fmt: skip
    ends = np.array([7e-4, 0.6])
    axes.fill_between(ends, 0.75 * ends, 1.4 * ends, color="#bbbbbb", alpha=0.5, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=MUTED, linewidth=1.2, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("true error of a latent", fontsize=20)
    axes.set_ylabel("error in its certificate", fontsize=20)
    axes.tick_params(labelsize=19)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    for mark in axes.legend(fontsize=20, frameon=False, markerscale=2, handletextpad=0.1).get_lines():
        mark.set_alpha(1)
    axes.text(
        0.98, 0.05, "grey: 0.75 to 1.4 of the truth", fontsize=19, color=MUTED, ha="right", transform=axes.transAxes
    )
    its = [row for row in rows if (row["solver"], row["grid"], row["steps"]) == ("belm", "log", str(steps))]
    its.sort(key=lambda row: float(row["estimate"]))
    shown = its[:count] + its[-count:]
    x_0 = held_out([int(row["image"]) for row in shown])
    state = odeddim.encode(x_0, "belm", steps=steps)
    side, pitch = 140, (WIDTH - 190) / len(shown)
    for j, words in enumerate(("smallest error", "largest error")):
        board.words(words, 170 + pitch * (j + 0.5) * count, 830, 32, (GOOD, BAD)[j], bold=True)
    for label, y in (("image", 940), ("latent", 1100), ("certificate", 1210), ("true error", 1260)):
        board.words(label, 28, y, 28, align="left")
    for i, (image, x_T, row) in enumerate(zip(x_0, state.x, shown, strict=True)):
        x = 170 + pitch * (i + 0.5)
        board.tile(image, x - side / 2, 870, side)
        board.tile(x_T / 2.5, x - side / 2, 1030, side)
        board.words(figure_of(float(row["estimate"])), x, 1210, 28)
        board.words(figure_of(float(row["true"])), x, 1260, 28)
    return {"pictures/certificates.png": board.png()}


def conventions(steps: int = 50, coarse: int = 20, reference: int = REFERENCE_STEPS) -> Files:
    """What wrong conventions do: the way back hides them, and the latents and the images of noise show them."""
    right = odeddim.load()
    x_0, x_T = open_images().read([30]), odeddim.noise(1, (1, 28, 28), seed=0)
    true_x_T, true_x_0 = true_latents(right, x_0, reference), true_images(right, x_T, reference)

    def later(sigma: float) -> float:
        """The noise level of the next label."""
        schedule = right.schedule
        label = schedule.label(torch.tensor(sigma, dtype=torch.float64), "index") + 1
        return float(schedule.sigma(label.clamp(max=schedule.T - 1)))

    as_v = VectorField(right.eps, right.schedule, predicts="v", name="as v")
    as_cosine = VectorField(right.eps, odeddim.Schedule.cosine(), name="cosine")
    fine, ddim = ("unipc-2", "log", steps), ("euler", "linear", coarse)
    cases: list[tuple[str, VectorField, VectorField | None, tuple[str, str, int]]] = [
        ("right\nas it was trained", right, right, fine),
        ("labels off by one\neach 1 too high", right.relabelled(later), right.relabelled(later), fine),
        ("wrong schedule\ncosine for linear β", as_cosine, as_cosine, fine),
        ("wrong prediction\nread as v, it is ε", as_v, as_v, fine),
        ("source's label\nas eq. 14 reversed", right, right, ddim),
        ("target's label\nas in much code", right, None, ddim),
    ]
    rows = []
    for words, down, told, (solver, grid, count) in cases:
        plan = odeddim.plan(down, solver, steps=count, grid=grid)
        following = {float(a): float(b) for a, b in itertools.pairwise(plan.nodes)}
        up = down.relabelled(following.__getitem__) if told is None else told
        state = odeddim.encode(x_0, model=up, plan=plan)
        again = odeddim.decode(state, model=down, plan=plan)
        fresh = odeddim.solve(x_T, model=down, plan=plan)
        tiles = []
        for values, truth, largest in ((state.x, true_x_T, 2.5), (again, x_0, 1.0), (fresh, true_x_0, 1.0)):
            error = float(rms(values - truth))
            tiles.append(Tile(values[0], figure_of(error), GOOD if error < WRONG else BAD, largest))
        rows.append(Row(tiles, words))
    heads = ("latent", "image again", "noise, decoded")
    rows[0] = replace(rows[0], title=f"What the network is told, {steps} steps of unipc-2", heads=heads)
    rows[4] = replace(rows[4], title=f"The label on the way up, {coarse} steps of DDIM")
    return {"pictures/conventions.png": rows_png(rows, labels=370)}


def density(columns: int = 8) -> Files:
    """Held-out images in the order of their density, and images that are none of the model's."""
    rows = [row for row in rows_of(density_benchmark.CSV) if row["method"] == "truth"]
    order = sorted((float(row["bits"]), int(row["image"])) for row in rows)
    bound = math.log2(255 / 2)  # of whole numbers in bins 2/255 wide, as the page of densities has them
    middle = (len(order) - columns) // 2
    parts = {"densest\nheld out": order[:columns], "middle": order[middle : middle + columns]}
    parts["least dense"] = order[-columns:]
    drawn = []
    for words, its in parts.items():
        images = held_out([image for _, image in its])
        tiles = [Tile(image, f"{bits + bound:.2f}") for image, (bits, _) in zip(images, its, strict=True)]
        drawn.append(Row(tiles, words))
    one = held_out([order[len(order) // 2][1]])
    across = (torch.arange(28) - 13.5).square()
    disc = ((across[:, None] + across).sqrt() < 8).float()[None, None] * 2 - 1
    strange = torch.cat([torch.full_like(one, -1), torch.full_like(one, 0.2), disc, one.flip(2), -one])
    strange = ((strange + 1) * 127.5).round() / 127.5 - 1
    bits = odeddim.log_density(strange, draws=1, steps=40).bits_per_dim
    drawn.append(
        Row([Tile(image, f"{its:.2f}") for image, its in zip(strange, bits.tolist(), strict=True)], "strangers")
    )
    return {"pictures/density.png": rows_png(drawn, labels=190, scale=4)}


def league(budget: int = 10) -> Files:
    """The places of solvers by the error of the latent over those by the round trip."""
    with open(LEAGUE, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["model"] == "fashion-mnist" and not line["same_as"]]
    rows = [line for line in lines if line["budget"] == str(budget) and line["latent"]]
    board = Board(1080)
    axes = board.figure.add_axes((0.11, 0.1, 0.86, 0.88))
    for row in rows:
        exact = float(row["round_trip"]) == 0
        x, y = int(row["round_trip_place"]), int(row["latent_place"])
        axes.plot(x, y, color=(GOOD, BAD)[exact], marker="os"[exact], linestyle="none", markersize=9)
        if row["solver"] in NAMED:
            axes.annotate(row["solver"], (x, y), (9, 0), textcoords="offset points", fontsize=19, va="center")
    axes.plot([1, len(rows)], [1, len(rows)], color=MUTED, linewidth=1.2, linestyle=":", zorder=0)
    axes.set(xlim=(-1, len(rows) + 9))
    axes.set_xlabel(f"place by the round trip, {budget} evaluations", fontsize=20)
    axes.set_ylabel("place by the error of the latent", fontsize=20)
    axes.tick_params(labelsize=19)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    words = ((BAD, "squares: come back exactly"), (MUTED, "dotted: the same place by both"))
    for (colour, text), y in zip(words, (0.95, 0.9), strict=True):
        axes.text(0.3, y, text, fontsize=19, color=colour, transform=axes.transAxes)
    return {"pictures/league.png": board.png()}


MAKERS: dict[str, Callable[[], Files]] = {
    "round-trip": round_trip,
    "levels": levels,
    "trajectories": trajectories,
    "solvers": solvers,
    "corners": corners,
    "bridge": bridge,
    "work-precision": work_precision,
    "certificates": certificates,
    "conventions": conventions,
    "density": density,
    "league": league,
}
"""What makes each picture, by its name."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MAKERS), metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="the folder docs/")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MAKERS]
    if unknown:
        parser.error(f"there is no picture {unknown[0]!r}: the pictures are {', '.join(MAKERS)}")
    torch.set_num_threads(1)
    for name in given.names:
        for path, content in MAKERS[name]().items():
            place = given.output / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            print(f"{place}: {len(content):,} bytes", flush=True)


if __name__ == "__main__":
    main()
