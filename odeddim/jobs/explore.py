"""The job that explores latents: one page with the square between four of them, decoded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.api import Model
from odeddim.jobs.combining import combined
from odeddim.jobs.decoding import Decoding, decoding_of
from odeddim.jobs.exploration import Exploration, Level
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.stages import Stage, stages_of
from odeddim.jobs.subject import Subject, subject_of, warn_of_plan
from odeddim.jobs.telling import Spent, evaluated, warn_of_range
from odeddim.jobs.work import How, Outcome, Progress, shown, warn
from odeddim.latents.arithmetic import join, nearest
from odeddim.latents.interpolate import LatentPath
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, replacing
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.png import to_bytes
from odeddim.storage.workers import cut
from odeddim.types import InputError

SUFFIXES = (".html", ".htm")
TILES = 9  # on each side of the square by default, unless the images are large
MOST_TILES = 64
NEAREST = 5  # latents that are named for each tile
AT_ONCE = 64  # tiles whose nearest latents are found in one reading of the file
LARGEST = 64_000_000  # bytes of a page, beyond which browsers are slow to open it


@torch.no_grad()
def explore(
    latents: str | Path,
    output: str | Path,
    *,
    corners: Sequence[int] = (0, 1, 2, 3),
    tiles: int | None = None,
    levels: int = 9,
    model: Model | Subject | None = None,
    plan: Plan | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Outcome:
    """Make one page of the square between four latents, to be explored in a browser without a server.

    Each tile of the square is a latent of `interpolate`'s grid, decoded; the page shows the images that `decode` makes
    of them. It also shows the way of each from noise to image, the nearest latents of the file as `neighbours` finds
    them, and the figures of the corners that the file holds.

    Args:
        latents: The latent file, z.h5.
        output: The page, NAME.html or NAME.htm.
        corners: The latents at the corners, by index: top left, top right, bottom left, bottom right.
        tiles: The number of tiles on each side; by default 9, or as many as fit on a page if the images are large.
        levels: The number of noise levels of each tile, the last being that of the image.
        model: The model that encoded; None for the one that the file names, under the condition that it names.
        plan: The plan that decodes, in place of `how`.
        machine: Where to run; what is not given is as the latents were encoded.
        overwrite: Whether to replace another file at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid and the solver's settings, as of `decode` of latents that `interpolate` has made.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used, or the page would be too large. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> made = odeddim.jobs.encode(None, folder / "z.h5", model="exact-samples", count=4, steps=4)
        >>> odeddim.jobs.explore(folder / "z.h5", folder / "explore.html", tiles=3, levels=3).done
        9
    """
    latents, output = Path(latents), Path(output)
    said = How.of(how)
    check_place(output, latents, suffixes=SUFFIXES)
    if len(corners) != 4:
        raise InputError(f"a square has 4 corners, not {len(corners)}: give corners=... four latents")
    if levels < 2 or not 2 <= (TILES if tiles is None else tiles) <= MOST_TILES:
        raise InputError(f"levels={levels} and tiles={tiles}: give 2 levels or more, and 2 to {MOST_TILES} tiles")
    with LatentFile(latents) as file:
        place = (machine or Machine()).at(file, model)
        field = subject_of(file, place, model)
        states = [place.cast(file.pick(index)) for index in corners]
        own = decoding_of(file, field, said, plan)
        decoding = decoding_of(file, field, said, plan, made_by="interpolate")
        if decoding.rungs:  # what lies between has no steps of its own
            decoding = Decoding(combined(file, file.provenance)[1])
        row = decoding.plan.solver
        warn_of_plan(decoding.plan, field)
        place.fit(field, row)
        if len(file) < file.total:
            warn(f"{latents} is unfinished: {len(file)} of {file.total} latents are there")
        side = _side(tiles, levels, field, file)
        path = LatentPath.grid(states, side)
        size = 1 if row.queued or row.one_by_one else place.at_once(field, row)
        made = asdict(decoding.provenance(file, field, len(file), **place.details(field, row, size)))
        mark = mark_of("explore", made, list(corners), side, levels)
        check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
        began, spent, (numbers, distances) = time.perf_counter(), Spent(field), _nearest(path, file)
        near = sorted(set(numbers.flatten().tolist()))
        with shown(progress, len(path) + len(near), "decoding") as advance:
            square = _square(path, decoding, field, levels, size, advance)
            images = _images(near, file, own, field, place, size, advance)
        pictured = dict(zip(near, images, strict=True))
        page = Exploration(file, field, decoding.plan, corners, side, square, numbers, distances, pictured).html(mark)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    words = (
        f"{side} × {side} images between the latents {', '.join(map(str, corners))} in {output} "
        f"({len(page) / 1e6:.1f} MB; open it in a browser): {row.name}, {decoding.steps}, "
        f"{evaluated(len(path) + len(near), spent)}, {time.perf_counter() - began:.1f} s"
    )
    return Outcome(output, len(path), len(path), words)


def _side(tiles: int | None, levels: int, field: VectorField, file: LatentFile) -> int:
    """The number of tiles on a side of the square: as asked, or as many as fit on a page; an InputError if none do."""
    shape = field.shape_of_images(file.shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"{file.path} is decoded to images of shape {tuple(shape)}, but a page shows 1 or 3 channels")
    shown = 2 * levels - 1 if field.codec is None else levels

    def size(side: int) -> float:
        images = side**2 * shown + min(NEAREST * side**2, len(file))
        return images * math.prod(shape) * 4 / 3  # at most: of noise, a PNG is as large as its pixels

    fits = max((side for side in range(1, MOST_TILES + 1) if size(side) <= LARGEST), default=1)
    side = min(TILES, max(fits, 2)) if tiles is None else tiles
    if side > fits:
        advice = f"tiles={fits} at most, or fewer levels=..." if fits > 1 else "fewer levels=..."
        raise InputError(
            f"a page of {side} × {side} tiles of {shape[1]}×{shape[2]} pixels at levels={levels} would take up to "
            f"{size(side) / 1e6:.0f} MB, and browsers are slow to open more than {LARGEST / 1e6:.0f} MB: give {advice}"
        )
    return side


def _nearest(path: LatentPath, file: LatentFile) -> tuple[Tensor, Tensor]:
    """The nearest latents of the file to each point of a path: their indices and distances, (N, k)."""
    found = []
    for start, stop in cut([(0, len(path))], AT_ONCE):
        batches = ((at, file.read(at, to)) for at, to in cut([(0, len(file))], CHUNK))
        found.append(nearest(path.read(start, stop), batches, min(NEAREST, len(file))))
    distances, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
    return numbers, distances


def _square(
    path: LatentPath, decoding: Decoding, field: VectorField, levels: int, size: int, advance: Callable[[int], Any]
) -> list[Level]:
    """The tiles of the square at falling noise levels."""
    batches: list[list[Stage]] = []
    largest = 0.0
    for start, stop in cut([(0, len(path))], size):
        images, stages = stages_of(decoding, path.read(start, stop), field, levels, start)
        batches.append(stages)
        largest = max(largest, float(images.abs().max()))
        advance(stop - start)
    warn_of_range(largest)
    square = [Level.of(stages) for stages in zip(*batches, strict=True)]
    return [level for i, level in enumerate(square) if i == 0 or level.sigmas != square[i - 1].sigmas]


def _images(
    numbers: Sequence[int],
    file: LatentFile,
    decoding: Decoding,
    field: VectorField,
    place: Place,
    size: int,
    advance: Callable[[int], Any],
) -> Tensor:
    """Latents of the file decoded, as 8-bit values."""
    images = []
    if decoding.plan.solver.stochastic:  # the noise of an image is that of its place in the file
        size = 1
    for start, stop in cut([(0, len(numbers))], size):
        picked = [file.pick(number) for number in numbers[start:stop]]
        report = {name: torch.cat([each.report[name] for each in picked]) for name in picked[0].report}
        state = place.cast(replace(join(picked), report=report))
        images.append(to_bytes(stages_of(decoding, state, field, 2, numbers[start])[0]))
        advance(stop - start)
    return torch.cat(images)
