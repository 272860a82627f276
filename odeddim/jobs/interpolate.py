"""The job that interpolates between latents: lines, grids, loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from odeddim.jobs.combining import Drawing
from odeddim.jobs.sample import check_amount
from odeddim.jobs.waiting import wait_for
from odeddim.jobs.work import Numbered, Outcome
from odeddim.latents.interpolate import LatentPath
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.sheets import Captions, title_of
from odeddim.types import InputError

KINDS = {"line": 2, "grid": 4, "loop": None}
"""The kinds of paths, and the number of latents that each needs; None for any."""


@torch.no_grad()
def interpolate(
    latents: str | Path,
    between: Sequence[int],
    count: int = 11,
    kind: str = "line",
    *,
    to: Drawing,
    wait: bool = False,
) -> Outcome:
    """Interpolate between latents of a file on great circles (slerp), as in DDIM's appendix D.5.

    Args:
        latents: The latent file, z.h5.
        between: The latents, by index: two for a line, four for a grid, two or more for a loop.
        count: The number of latents on the line, on each side of the grid, or on each leg of the loop.
        kind: "line", "grid" or "loop".
        to: The file that the latents are written to, the sheet that they are drawn on, and the animation. That of a
            line goes forward and back.
        wait: Whether to wait for a latent file that another process is still writing.

    Returns:
        The outcome; `print` it for a line about each file.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Source:
        Song et al. 2020, arXiv 2010.02502, appendix D.5.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> made = odeddim.jobs.encode(None, folder / "z.h5", model="exact-samples", count=2, steps=4)
        >>> path = odeddim.jobs.interpolate(folder / "z.h5", (0, 1), 3, to=odeddim.jobs.Drawing(folder / "path.h5"))
        >>> path.total
        3
    """
    latents = Path(latents)
    if kind not in KINDS or (KINDS[kind] or len(between)) != len(between):
        raise InputError(f"a {kind} needs {KINDS.get(kind)} latents, not {len(between)}: line 2, grid 4, loop any")
    if count < 2 and kind != "loop":
        raise InputError(f"count={count}: a line has at least 2 points, its ends")
    if not to.places:
        raise InputError("the path has no place to go: give output=..., sheet=... or animation=...")
    if to.animation is not None and kind == "grid":
        raise InputError("a grid has no order in time, so it has no animation: give a line or a loop")
    to.check(latents)
    if wait:
        wait_for(latents)
    with LatentFile(latents) as file:
        drawn = to.of(file)
        states = [drawn.place.cast(file.pick(index)) for index in between]
        labels = [file.names[index] for index in between]
        points = count * {"line": 1, "grid": count, "loop": len(between)}[kind]
        size = sum(part.nbytes for part in (states[0].xbar, *states[0].aux))
        check_amount(to.output or Path(), points, size, "latents")
        if kind == "line":
            path = LatentPath.line(states[0], states[1], count)
        else:
            path = (LatentPath.grid if kind == "grid" else LatentPath.loop)(states, count)
        of = {"path": str(latents), "sha256": file.fingerprint, "indices": list(between), "between": labels}
        made = replace(file.provenance, made_by="interpolate", details={**file.provenance.details, "of": of})
        numbered = Numbered(f"{'-'.join(map(str, between))}-", len(path))
        drawn.make(path, numbered, made, _captions(kind, count, labels), back=kind == "line")
        lines = [f"{len(path)} latents between {', '.join(labels)} in {to.output}"] if to.output else []
        lines += [f"{len(path)} images in {place}" for place in to.drawn_at]
    return Outcome(to.places[0], len(path), len(path), "\n".join(lines))


def _captions(kind: str, count: int, between: Sequence[str]) -> Captions:
    """What a sheet says of a path: how far along each point is, and the names of the latents that it leads through."""
    last = count - 1
    ends = {"line": {(0, 0): 0, (0, last): 1}, "grid": {(0, 0): 0, (0, last): 1, (last, 0): 2, (last, last): 3}}
    corners = ends.get(kind, {(leg, 0): leg for leg in range(len(between))})

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        row, column = divmod(i, count)
        far = f"{column / (count if kind == 'loop' else last):.2f}"
        name = corners.get((row, column))
        words = f"{row / last:.2f}, {far}" if kind == "grid" else far
        return [words, *([] if name is None else [title_of(between[name])])]

    return Captions(under, lines=2, columns=count)
