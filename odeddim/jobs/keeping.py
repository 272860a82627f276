"""What the jobs that make images of images keep of each batch: pixels, figures, and the totals of the last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from odeddim.storage.image_runs import Images
from odeddim.storage.outputs import Folder


class Made(NamedTuple):
    """What a batch of images has become.

    Attributes:
        pixels: What to write, (B, C, H, W).
        figures: Figures of the images, (B,) by name.
        largest: The largest magnitude of the images that were made.
    """

    pixels: Tensor
    figures: Mapping[str, Tensor]
    largest: float


class Keeping:
    """Writes what becomes of each batch, and adds up.

    Args:
        out: Where it is written.
        names: The names of all images.
        figures: The figures that `known` is to have.

    Attributes:
        here: How many images have come.
        largest: The largest magnitude of all images that were made.
    """

    def __init__(self, out: Folder | Images, names: Sequence[str], figures: Sequence[str]) -> None:
        self._out, self._names = out, names
        self._known: dict[str, list[tuple[str, float]]] = {name: [] for name in figures}
        self.here, self.largest = 0, 0.0

    def __call__(self, result: tuple[tuple[int, int], Made]) -> None:
        """Write the result of the images start, ..., stop-1."""
        (start, stop), made = result
        self._out.write(start, stop, made.pixels, made.figures)
        for name, known in self._known.items():
            known += zip(self._names[start:stop], made.figures[name].tolist(), strict=True)
        self.here, self.largest = self.here + stop - start, max(self.largest, made.largest)

    def known(self, figure: str) -> tuple[tuple[str, float], ...]:
        """The names and values of a figure: those that the output keeps, or those that came, as a sheet keeps none."""
        return tuple(self._out.figures(figure) or self._known[figure])
