"""Codec: what stands between images and the data of a latent model, an autoencoder."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """An autoencoder as a latent model uses it. Images are (B, C, H, W) in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        """Images -> data (B, c, h, w), in the units that the network was trained on."""
        ...

    def decode(self, data: Tensor) -> Tensor:
        """Data -> images."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move the autoencoder to a device."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images that it is made for."""
        ...

    @property
    def sha256(self) -> str:
        """The hash of this autoencoder: data of two different autoencoders are not in the same units."""
        ...
