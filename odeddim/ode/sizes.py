"""Sizes: which heights, widths and numbers of frames a model takes.

A convolutional network takes any size that it can halve as often as it does, and a latent model any such size times
its autoencoder's factor; what is learned or computed for each position bounds a network. The size of a run is nowhere
but in the shape of its images and latents: it is no part of a model, nor of its hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.storage.errors import axes_of, called
from odeddim.types import InputError


@dataclass(frozen=True)
class Sizes:
    """The sizes of images, or of a latent model's data, that a model takes: its own, and others around it.

    Attributes:
        own: The shape (C, H, W) that the model was trained on; (C, F, H, W) of videos of F frames.
        multiple: H and W may be any multiples of it; None for a model that takes its own shape only.
        largest: H and W may be this large at most; None for no bound.
        frames: F may be 1, and 1 more than any multiple of it; None for a model that takes its own number only.

    Example:
        >>> from odeddim.ode.sizes import Sizes
        >>> sizes = Sizes((3, 512, 512), multiple=64)
        >>> (3, 768, 512) in sizes, (3, 500, 512) in sizes
        (True, False)
        >>> print(sizes.words((3, 500, 512)))
        3×H×W with H and W multiples of 64, the nearest 448×512 and 512×512
    """

    own: tuple[int, ...]
    multiple: int | None = None
    largest: int | None = None
    frames: int | None = None

    def __contains__(self, shape: Sequence[int]) -> bool:
        if tuple(shape) == self.own:
            return True
        if self.multiple is None or len(shape) != len(self.own) or shape[0] != self.own[0]:
            return False
        counts, sides = shape[1:-2], shape[-2:]
        whole = all(0 < side <= (self.largest or side) and side % self.multiple == 0 for side in sides)
        return whole and all(
            count in self._counts(count, own) for count, own in zip(counts, self.own[1:-2], strict=True)
        )

    def check_made(self, model: str, shape: Sequence[int]) -> None:
        """Raise an InputError unless a model, by its name, makes images of a shape."""
        if shape not in self:
            has = "×".join(map(str, shape))
            raise InputError(
                f"the model {model!r} makes {called(self.own)} of {self.words(shape)}, not {has} ({axes_of(shape)}): "
                "give another shape=..., or leave it out"
            )

    def __str__(self) -> str:
        own = "×".join(map(str, self.own[1:]))
        if self.multiple is None:
            return f"{own} only"
        frames = f"frames 1 more than multiples of {self.frames}, " if (self.frames or 1) > 1 else ""
        return f"{frames}multiples of {self.multiple}{self._bound}, its own {own}"

    def words(self, shape: Sequence[int]) -> str:
        """The shapes that are taken, in words, for a message that refuses a shape.

        Args:
            shape: The shape that is refused.
        """
        if self.multiple is None:
            return "×".join(map(str, self.own))
        counts = ["F"] if self.frames else self.own[1:-2]
        frames = f"F 1 more than a multiple of {self.frames}, and " if (self.frames or 1) > 1 else ""
        axes = "×".join(map(str, [self.own[0], *counts, "H", "W"]))
        rule = f"{axes} with {frames}H and W multiples of {self.multiple}{self._bound}"
        if len(shape) != len(self.own):
            return rule
        sides = [self._counts(count, own) for count, own in zip(shape[1:-2], self.own[1:-2], strict=True)]
        sides += [self._nearest(side, self.multiple) for side in shape[-2:]]
        below, above = ("×".join(map(str, each)) for each in zip(*sides, strict=True))
        return f"{rule}, the nearest {below}" + (f" and {above}" if above != below else "")

    @property
    def _bound(self) -> str:
        return f" up to {self.largest}" if self.largest else ""

    def _counts(self, count: int, own: int) -> tuple[int, int]:
        """The numbers of frames at and below one, and at and above it, that are taken."""
        if not self.frames:
            return own, own
        below = max(count - 1, 0) // self.frames
        return 1 + below * self.frames, 1 + -(-max(count - 1, 0) // self.frames) * self.frames

    def _nearest(self, side: int, multiple: int) -> tuple[int, int]:
        """The sides at and below one, and at and above it, that are taken."""
        low, high = (max(count, 1) * multiple for count in (side // multiple, -(-side // multiple)))
        most = high if self.largest is None else self.largest // multiple * multiple
        return min(low, most), min(high, most)

    def of_images(self, own: tuple[int, ...]) -> Sizes:
        """The sizes of the images whose data have these sizes.

        Args:
            own: The shape (C, H, W) of the images whose data have the shape `own`.
        """
        if self.multiple is None:
            return Sizes(own)
        factor = own[-2] // self.own[-2]
        frames = self.frames and self.frames * (own[1] - 1) // (self.own[1] - 1)
        return Sizes(own, factor * self.multiple, self.largest and factor * self.largest, frames)

    def common(self, other: Sizes) -> Sizes | None:
        """The sizes that are these and others; None if there are none that are one of the two models' own."""
        own = next((each for each in (self.own, other.own) if each in self and each in other), None)
        if own is None:
            return None
        if self.multiple is None or other.multiple is None:
            return Sizes(own)
        bounds = [largest for largest in (self.largest, other.largest) if largest]
        return Sizes(own, math.lcm(self.multiple, other.multiple), min(bounds, default=None))


def counterpart(shape: Sequence[int], ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of images of data, or of data of images, in the proportion of two shapes that belong together.

    Of videos, the first frame stands for itself, and those after it are in proportion.

    Args:
        shape: The shape (C, H, W), or (C, F, H, W).
        ours: A shape on the same side.
        theirs: The shape that belongs to it on the other side.
    """
    if tuple(shape) == ours:
        return theirs
    sizes = list(zip(shape, ours, theirs, strict=True))
    frames = (1 + (count - 1) * (its - 1) // max(own - 1, 1) for count, own, its in sizes[1:-2])
    return (theirs[0], *frames, *(side * its // own for side, own, its in sizes[-2:]))


def check_batch(x: Tensor, sizes: Sizes | None, takes: str) -> None:
    """Raise an InputError unless a batch is one that a model takes.

    Args:
        x: The images or latents, (B, *).
        sizes: The sizes of one of them; None for any.
        takes: Who takes what, in words: "the model 'mine' takes images".

    Raises:
        InputError: If the batch is empty, of another shape, or not finite.
    """
    unlike = x.ndim >= 2 and sizes is not None and x.shape[1:] not in sizes  # which says more than "empty"
    if x.ndim < 2 or len(x) == 0 or (x.numel() == 0 and not unlike):
        raise InputError(f"the batch must be (B, *) with at least one image or latent, not {tuple(x.shape)}")
    if sizes is not None and unlike:
        has, wants = "×".join(map(str, x.shape[1:])), sizes.words(x.shape[1:])
        raise InputError(f"{takes} of {wants}, not {has} ({axes_of(x.shape[1:])})")
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise InputError(f"image {int((~finite).nonzero()[0])} of the batch holds NaN or infinite values: leave it out")
