"""Dequantisation: images of whole numbers as points of a continuum, and what that makes of a density.

A pixel of k bits is one of 2^k values in [-1, 1], the middles of bins of width w = 2/(2^k - 1). A model's probability
of the image is the integral of its density over the box of bins. For noise u ~ q within the box,

    log P(x) ≥ E[log p(x + u)] + H(q)

with the entropy H(q). For uniform noise H = D·log w, and the bound is what most papers report. Normal noise of σ_1, cut
off where the bin ends, is what the network was trained on, where bins are wide against σ_1: with τ = w/(2σ_1) and
Z = erf(τ/√2), H = D·(½·log(2πe·σ_1²) + log Z - τ·exp(-τ²/2)/(√(2π)·Z)).

Sources: Theis et al. 2016, arXiv 1511.01844, section 3.1; Zheng et al. 2023, arXiv 2305.03935, section 4 (i-DODE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.checks.divergence import stream
from odeddim.types import InputError, pick

KINDS = ("uniform", "normal", "none")
_MOST_BITS = 16
_TAG = 1  # keeps the streams of these draws apart from those of probes


@dataclass(frozen=True)
class Dequantisation:
    """How images become points of a continuum.

    Attributes:
        kind: A name of `KINDS`; "none" leaves them as they are.
        bits: The bits of a pixel.
        sigma: The noise level σ_1 where the density is taken.

    Raises:
        InputError: For an unknown kind, or bits outside 1 to 16.
    """

    kind: str
    bits: int
    sigma: float

    def __post_init__(self) -> None:
        pick(self.kind, KINDS, "dequantisation")
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= _MOST_BITS:
            raise InputError(f"bits must be a whole number from 1 to {_MOST_BITS}, not {self.bits!r}")

    @property
    def width(self) -> float:
        """The width w of a bin, in [-1, 1]."""
        return 2 / float(2**self.bits - 1)

    @property
    def entropy(self) -> float:
        """The entropy of the noise of one pixel, in nats; 0 without noise."""
        if self.kind == "none":
            return 0.0
        if self.kind == "uniform":
            return math.log(self.width)
        tau = self.width / 2 / self.sigma
        inside = math.erf(tau / math.sqrt(2))
        edge = tau * math.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * inside)
        return 0.5 * math.log(2 * math.pi * math.e * self.sigma**2) + math.log(inside) - edge

    @property
    def words(self) -> str:
        """What the density is of, in words."""
        if self.kind == "none":
            return f"of continuous data in [-1, 1] with noise of σ = {self.sigma:.4g}"
        how = {"uniform": "uniform noise", "normal": "normal noise cut off at the bin"}[self.kind]
        return f"a bound for images of {self.bits} bits in bins {self.width:.4g} wide, by {how}"

    def check(self, images: Tensor, start: int = 0) -> None:
        """Raise an InputError unless images (B, *) hold the values that pixels of so many bits have."""
        if self.kind == "none":
            return
        place = (images.double() + 1) / self.width
        off = (place - place.round()).abs().flatten(1).amax(1)
        outside = (images.abs() > 1 + 1e-6).flatten(1).any(1)
        if bool((bad := (off > 0.02) | outside).any()):
            first = int(bad.nonzero()[0])
            raise InputError(
                f"image {start + first} holds values that no pixel of {self.bits} bits in [-1, 1] has: give bits=..., "
                "or dequantise='none' for continuous data"
            )

    def noise(self, count: int, shape: Sequence[int], *, seed: int, start: int, draw: int) -> Tensor:
        """The noise of images, which depends on (seed, the image's index, the draw) only.

        Args:
            count: The number of images.
            shape: The shape of an image.
            seed, start, draw: The seed, the index of the first image, and the number of the draw.

        Returns:
            u, (count, *shape) float64, on the CPU.
        """
        inside = math.erf(self.width / 2 / self.sigma / math.sqrt(2)) if self.sigma else 1.0
        images = []
        for i in range(start, start + count):
            if self.kind == "none":
                images.append(torch.zeros(tuple(shape), dtype=torch.float64))
                continue
            even = 2 * torch.rand(tuple(shape), generator=stream(_TAG, seed, draw, i), dtype=torch.float64) - 1
            if self.kind == "uniform":
                images.append(even * self.width / 2)
            else:
                images.append(torch.special.erfinv(even * inside) * math.sqrt(2) * self.sigma)
        return torch.stack(images)
