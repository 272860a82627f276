"""The page of a square of latents: a single HTML file that opens offline.

`data/explore.html` is the template of the page. Texts of the latent file are escaped, or reach the page as JSON that
its script shows as text. The page's content security policy (CSP) forbids all requests, and all scripts except the
page's own. The same square gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from odeddim import __version__
from odeddim.checks.certificate import CERTIFICATE
from odeddim.jobs.stages import Stage
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.atomic import plain_text, printable

CORNERS = ("top left", "top right", "bottom left", "bottom right")
IDEAL = {"round_trip": "0", "latent_error": "0", "norm": "1", "mean": "0", "variance": "1", "kurtosis": "3",
         "autocorrelation": "0"}  # fmt: skip
"""The figures of a perfect latent: no error, and white noise (`odeddim.checks.whiteness.statistics`)."""


@dataclass(frozen=True)
class Level:
    """The tiles of a square at one stage of their decoding.

    Attributes:
        sigmas: The noise level of each tile.
        predicted: The predicted images, (N, C, H, W) uint8, row by row.
        x: The states x = x̄/√(1+σ²) likewise; None where they are no images, and at the end.
    """

    sigmas: list[float]
    predicted: Tensor
    x: Tensor | None

    @classmethod
    def of(cls, batches: Sequence[Stage]) -> Level:
        """The level of all tiles, given one stage of each batch of them."""
        sigmas = [stage.sigma for stage in batches for _ in stage.predicted]
        states = [stage.x for stage in batches if stage.x is not None]
        return cls(sigmas, torch.cat([stage.predicted for stage in batches]), torch.cat(states) if states else None)


@dataclass(frozen=True)
class Exploration:
    """A square between four latents of a file, decoded.

    Attributes:
        file: The latent file.
        field: The model.
        plan: The plan that decoded the square.
        corners: The indices of the latents at the corners, in the order of `CORNERS`.
        side: The number of tiles on each side.
        levels: The square at falling noise levels; the last are the images.
        numbers: The indices of the nearest latents of each tile, (N, k).
        distances: Their distances, (N, k).
        images: The images of all of these, (C, H, W) uint8 by index.
    """

    file: LatentFile
    field: VectorField
    plan: Plan
    corners: Sequence[int]
    side: int
    levels: Sequence[Level]
    numbers: Tensor
    distances: Tensor
    images: Mapping[int, Tensor]

    def html(self, mark: str) -> str:
        """The page. mark: the mark by which a later run knows it."""
        template = (resources.files("odeddim.data") / "explore.html").read_text(encoding="utf-8")
        (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
        file, name = self.file, escape(printable(self.file.path.name))
        data = json.dumps(self._data()).replace("<", "\\u003c")  # no name may end the element that holds the data
        page = Template(template).substitute(
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            odeddim=escape(__version__),
            mark=mark,
            name=name,
            side=self.side,
            model=escape(printable(self.field.title)),
            plan=escape(str(self.plan)),
            count=f"{len(file):,}",
            sha256=escape(file.fingerprint[:12]),
            **{f"corner{i}": self._corner(i) for i in range(4)},
            figures=self._figures(),
            size=f"{max(len(data) / 1e6, 0.1):.1f} MB",
            data=data,
        )
        return plain_text(page)

    def _name(self, number: int) -> str:
        return printable(self.file.names[number])

    def _corner(self, i: int) -> str:
        """The latent at a corner as HTML: its number, and its name without folders."""
        number = self.corners[i]
        name = self._name(number)
        shown = escape(name.rpartition("/")[2])
        return f'<span title="{escape(name)}"><span class="number">{number}</span> <bdi>{shown}</bdi></span>'

    def _data(self) -> dict[str, Any]:
        """What the script of the page reads."""
        _, _, height, width = self.levels[-1].predicted.shape
        near = sorted(self.images)
        columns = math.ceil(math.sqrt(len(near)))
        return {
            "side": self.side,
            "width": width,
            "height": height,
            "levels": [
                {
                    "sigmas": [float(f"{sigma:.4g}") for sigma in level.sigmas],
                    "predicted": _uri(level.predicted, self.side),
                    "x": None if level.x is None else _uri(level.x, self.side),
                }
                for level in self.levels
            ],
            "corners": [{"number": number, "name": self._name(number)} for number in self.corners],
            "nearest": {
                "numbers": self.numbers.tolist(),
                "distances": [[round(value, 4) for value in row] for row in self.distances.tolist()],
                "names": {number: self._name(number) for number in near},
                "order": near,
                "columns": columns,
                "images": _uri(torch.stack([self.images[number] for number in near]), columns),
            },
        }

    def _figures(self) -> str:
        """The figures of the four corners that the file holds, as a table."""
        certificate = self.file.certificate
        figures = {name: certificate[name] for name in CERTIFICATE if name in certificate} | self.file.figures("report")
        rows = []
        for name, values in figures.items():
            cells = "".join(f"<td>{_shown(values[number])}</td>" for number in self.corners)
            words = escape(name.replace("_", " "))
            rows.append(f'<tr><th scope="row">{words}</th>{cells}<td class="muted">{IDEAL.get(name, "")}</td></tr>')
        missing = "" if certificate else (
            "<p>The file holds no certificates: <code>odeddim verify</code> computes and stores them.</p>\n"
        )  # fmt: skip
        if not rows:
            return missing
        heads = "".join(f'<th scope="col">{where}<br>{self._corner(i)}</th>' for i, where in enumerate(CORNERS))
        return (
            f'{missing}<div class="scroll" role="region" tabindex="0" aria-label="Figures of the corners">\n<table>\n'
            f'<thead><tr><td></td>{heads}<th scope="col">ideal</th></tr></thead>\n<tbody>\n'
            + "\n".join(rows)
            + "\n</tbody>\n</table>\n</div>\n"
        )


def _uri(images: Tensor, columns: int) -> str:
    """Images, (N, C, H, W) uint8, as one PNG in a data URI."""
    file = io.BytesIO()
    rows = side_by_side(images, columns)
    pixels = rows[0] if len(rows) == 1 else rows.movedim(0, -1)
    PIL.Image.fromarray(pixels.contiguous().numpy()).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _shown(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "yes" if bool(value) else "no"
    number = float(value)
    return "–" if math.isnan(number) else f"{number:.4g}"


def side_by_side(images: Tensor, columns: int) -> Tensor:
    """Images side by side in one image, row by row; the last row is filled up with 0.

    Args:
        images: (n, C, H, W).
        columns: How many images a row has.

    Returns:
        (C, rows·H, columns·W).
    """
    n, c, h, w = images.shape
    rows = -(-n // columns)
    cells = images.new_zeros(rows * columns, c, h, w)
    cells[:n] = images
    return cells.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
