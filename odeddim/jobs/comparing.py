"""How far two latent files of the same images are apart, and why."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from odeddim.jobs.work import Progress, shown
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import brief
from odeddim.storage.hdf5 import CHUNK
from odeddim.types import InputError, State

FIGURES = ("rms", "largest")
"""How far a latent is from the other: rms and largest difference over the values of x_T, which have unit variance."""


@dataclass(frozen=True)
class Comparison:
    """Two latent files of the same images.

    Attributes:
        path: The other file.
        names: The images that are in both, M names.
        figures: How far their latents are apart, (M,) float64 by the names of `FIGURES`.
        same: How many of them are the same bits, with what a reversible solver keeps beside x̄.
        lacking: How many images are in the first file alone, and how many in the other one alone.
        why: What differs in how the latents were made, {entry of the provenance: (the first's, the other's)}.
    """

    path: Path
    names: tuple[str, ...]
    figures: Mapping[str, torch.Tensor]
    same: int
    lacking: tuple[int, int]
    why: Mapping[str, tuple[Any, Any]]

    @property
    def words(self) -> str:
        """The comparison in two lines or three."""
        rms, largest = (self.figures[name] for name in FIGURES)
        said = (
            f"{len(self.names)} images are in both files, {self.same} of them with the same bits: x_T is "
            f"{float(rms.median()):.3g} apart (rms, the median), {float(rms.max()):.3g} at most, a single value "
            f"{float(largest.max()):.3g}"
        )
        if any(self.lacking):
            said += f"\n{self.lacking[0]} images are in the first file alone, {self.lacking[1]} in {self.path} alone"
        if self.why:
            told = ", ".join(f"{key.replace('_', ' ')} {_told(*both)}" for key, both in self.why.items())
            return f"{said}\nwhat differs: {told}"
        if self.same < len(self.names):
            return f"{said}\nnothing that the files tell of differs: the processors may, or what the network ran on"
        return said


def _told(here: Any, there: Any) -> str:
    words = [brief("none" if value is None else value) for value in (here, there)]
    if words[0] == words[1]:  # long lists
        return "(other values)"
    return " against ".join(word if len(word) <= 40 else f"{word[:12]}..." for word in words)


def compare(file: LatentFile, other: LatentFile, progress: Progress = False) -> Comparison:
    """Compare two latent files of the same images, matched by their names. Every row is checked on the way.

    Images of one name are matched in their order.

    Args:
        file: The first file.
        other: The other one.
        progress: What shows progress.

    Returns:
        The comparison.

    Raises:
        InputError: If the files have no image in common, their latents have different shapes, or a row is damaged.
    """
    if file.shape != other.shape:
        shapes = ["×".join(map(str, it.shape)) for it in (file, other)]
        raise InputError(
            f"{file.path} holds latents of {shapes[0]}, and {other.path} of {shapes[1]}: give two files of the same "
            "images"
        )
    pairs = _pairs(file.names[:], other.names[:])
    if not pairs:
        raise InputError(f"{file.path} and {other.path} have no image in common: give two files of the same images")
    apart, same = [], 0
    with shown(progress, len(pairs), "comparing", 0) as advance:
        for start in range(0, len(pairs), CHUNK):
            here, there = zip(*pairs[start : start + CHUNK], strict=True)
            mine, theirs = _rows(file, here), _rows(other, there)
            for a, b in zip(mine, theirs, strict=True):
                change = a.x.double() - b.x.double()
                apart.append((float(change.square().mean().sqrt()), float(change.abs().max())))
                same += a == b
            advance(len(here))
    rms, largest = torch.tensor(apart, dtype=torch.float64).unbind(1)
    names, why = file.names[:], file.provenance.unlike(other.provenance)
    if file.total != other.total:  # the hash of more images is another one, whatever they are
        why.pop("images", None)
    return Comparison(
        other.path, tuple(names[i] for i, _ in pairs), {"rms": rms, "largest": largest}, same,
        (len(file) - len(pairs), len(other) - len(pairs)), why,
    )  # fmt: skip


def _pairs(names: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """The indices of the same images in both files."""
    places: dict[str, deque[int]] = defaultdict(deque)
    for j, name in enumerate(others):
        places[name].append(j)
    return [(i, places[name].popleft()) for i, name in enumerate(names) if places.get(name)]


def _rows(file: LatentFile, places: Sequence[int]) -> list[State]:
    """Some of the latents: together, where they lie one after another."""
    if list(places) == list(range(places[0], places[0] + len(places))):
        return list(file.read(places[0], places[-1] + 1))
    return [file.pick(place) for place in places]
