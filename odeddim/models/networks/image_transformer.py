"""The first transformer of k-diffusion (github.com/crowsonkb/k-diffusion, its type image_transformer_v1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odeddim.models.networks import told_transformer as told
from odeddim.models.networks.local_attention import everywhere

HEAD = 64  # channels in an attention head
_MAPPING = 2  # blocks that make the features
_LARGEST = math.log(100)  # the largest logarithm of a cosine's scale


class Scale(nn.Module):
    """The logarithm of the scale of cosines, of each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(heads))

    def forward(self) -> Tensor:
        """The length of queries and of keys, (heads, 1, 1, 1)."""
        return (self.scale.clamp(max=_LARGEST) / 2).exp()[:, None, None, None]


class Frequencies(nn.Module):
    """Logarithms of frequencies of each head, of rows and of columns."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.freqs_h = nn.Parameter(torch.empty(heads, HEAD // 4))
        self.freqs_w = nn.Parameter(torch.empty(heads, HEAD // 4))

    def forward(self, where: tuple[Tensor, Tensor]) -> Tensor:
        return told.angles(where, self.freqs_h.exp(), self.freqs_w.exp())


class PairedAttention(told.Attention):
    """Attention whose channels 2i and 2i + 1 are turned together."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, HEAD, everywhere)
        self.qk_norm, self.pos_emb = Scale(width // HEAD), Frequencies(width // HEAD)

    def placed(self, x: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        x = told.of_rms(x, self.qk_norm() / math.sqrt(HEAD))
        pairs = told.turned(x[..., 0::2], x[..., 1::2], self.pos_emb(where))
        return torch.stack(pairs, dim=-1).flatten(-2)


class ImageTransformer(told.ToldTransformer):
    """k-diffusion's inner network F(x, ln(σ)/4[, one-hot label]), whose patches all look at each other.

    Attributes:
        config: The arguments of the network, JSON-able. `ImageTransformer(**net.config)` has the same architecture.
    """

    def __init__(
        self, *, channels: int, patch: Sequence[int], depth: int, width: int, hidden: int, classes: int = 0
    ) -> None:
        """Build the network, its weights empty.

        Args:
            channels: The number of channels of the images.
            patch: Height and width of a patch.
            depth: The number of layers.
            width: The width of the layers and of the features.
            hidden: The width within feed-forward blocks.
            classes: The number of classes, that for none among them; 0 if the network has none.

        Raises:
            InputError: If no network can have these settings.
        """
        super().__init__(_MAPPING, width, hidden, classes)
        self.config = {
            "channels": channels,
            "patch": list(patch),
            "depth": depth,
            "width": width,
            "hidden": hidden,
            "classes": classes,
        }
        self.patch = (patch[0], patch[1])
        self.in_proj = nn.Linear(channels * math.prod(patch), width, bias=False)
        self.blocks = nn.ModuleList(told.Layer(PairedAttention(width), width, width, hidden) for _ in range(depth))
        self.out_norm = told.Norm(width)
        self.out_proj = nn.Linear(width, channels * math.prod(patch), bias=False)

    def forward(self, x: Tensor, t: Tensor, row: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: The scaled images (B, C, H, W).
            t: ln(σ)/4, (B,).
            row: The one-hot labels (B, classes), if the network has classes.

        Returns:
            The output (B, C, H, W).
        """
        tall, wide = self.patch
        batch, channels, height, width = x.shape
        patches = x.reshape(batch, channels, height // tall, tall, width // wide, wide).permute(0, 2, 4, 1, 3, 5)
        where = told.positions(patches.shape[1], patches.shape[2], x, aspect=tall / wide)
        features = self.features(x, t, row)
        h = self.in_proj(patches.flatten(3))
        for block in self.blocks:
            h = block(h, where, features)
        h = self.out_proj(self.out_norm(h)).unflatten(3, (-1, tall, wide))
        return h.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # type: ignore[no-any-return]
