"""Strips and animations of trajectories."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from odeddim.api import Model, to_images
from odeddim.models import load
from odeddim.runs.dense import PathPoint
from odeddim.storage.animations import Animation
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of
from odeddim.storage.png import MARK
from odeddim.storage.sheets import Captions, Layout, save_sheet
from odeddim.types import InputError


def save_strip(
    points: Sequence[PathPoint], count: int, path: Path, model: Model | None, scale: int | None, *, overwrite: bool
) -> None:
    """Draw points of `count` images as a strip; arguments as of `Trajectory.save_strip`."""
    check_place(path, suffixes=(".png",))
    mark = _mark("strip", points, scale)
    check_own(path, lambda place: has_mark(place, mark), overwrite=overwrite)
    shown = [_pictured(point, model) for point in points]
    captions = Captions(
        lambda i, _: ("x" if i // len(points) % 2 == 0 else "predicted",),
        heads=[f"sigma {point.sigma:.3g}" for point in points],
        columns=len(points),
    )
    order = itertools.product(range(count), (0, 1), shown)
    cells: list[tuple[Tensor, dict[str, float]]] = [(pair[kind][i], {}) for i, kind, pair in order]
    layout = Layout.of(len(cells), cells[0][0].shape, captions, scale)
    save_sheet(cells, path, layout, captions, {MARK: mark})


def save_animation(points: Sequence[PathPoint], film: Animation, model: Model | None, *, overwrite: bool) -> None:
    """Draw points as an animation, a frame each; arguments as of `Trajectory.save_animation`."""
    film.check()
    mark = _mark("animation", points, film.scale, film.fps)
    check_own(film.path, lambda place: has_mark(place, mark), overwrite=overwrite)

    def frames() -> Iterator[Tensor]:
        for point in points:
            yield torch.cat([torch.cat(list(rows), dim=2) for rows in _pictured(point, model)], dim=1)

    film.save(frames(), mark)


def _pictured(point: PathPoint, model: Model | None) -> tuple[Tensor, Tensor]:
    """x and x̂₀ as images, (B, C, H, W) each."""
    latent = None if model is None else load(model)
    pair = [part if latent is None else to_images(latent, part) for part in (point.x, point.x0)]
    if pair[0].ndim != 4:
        raise InputError(f"points of shape {tuple(pair[0].shape)} are no images (B, C, H, W), so none can be drawn")
    return pair[0].clamp(-1, 1), pair[1].clamp(-1, 1)


def _mark(kind: str, points: Sequence[PathPoint], *how: object) -> str:
    """What says in a picture which points it shows."""
    digest = hashlib.sha256()
    for point in points:
        digest.update(repr(point.sigma).encode() + point.xbar.cpu().numpy().tobytes())
    return mark_of("trajectory", kind, digest.hexdigest(), *how)
