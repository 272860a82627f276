"""Codec: the autoencoder of a latent model, which maps images to the data that the ODE moves, and back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """The autoencoder of a latent model. Images are (B, C, H, W) in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        """The data (B, c, h, w) of images (B, C, H, W), in the units that the network was trained on."""
        ...

    def decode(self, data: Tensor) -> Tensor:
        """The images (B, C, H, W) of data (B, c, h, w)."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move the autoencoder to a device."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of the images that the autoencoder takes."""
        ...

    @property
    def sha256(self) -> str:
        """The hash of the autoencoder. Data of two different autoencoders are not in the same units."""
        ...
