"""The U-Net of k-diffusion (github.com/crowsonkb/k-diffusion, its type image_v1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.types import InputError

GROUP = 32  # channels in a group of a norm
HEAD = 64  # channels in an attention head
_SMOOTHING = (1.0, 3.0, 3.0, 1.0)  # over their sum


def _smoothing(x: Tensor) -> Tensor:
    """The filter of all changes of resolution, for each channel of x: (C, 1, 4, 4)."""
    row = torch.tensor(_SMOOTHING, dtype=x.dtype, device=x.device) / sum(_SMOOTHING)
    return torch.outer(row, row).expand(x.shape[1], 1, 4, 4)


def halved(x: Tensor) -> Tensor:
    """Half the resolution, smoothed; the image is mirrored at its edges."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), _smoothing(x), stride=2, groups=x.shape[1])


def doubled(x: Tensor) -> Tensor:
    """Twice the resolution, smoothed; the image is mirrored at its edges."""
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    return F.conv_transpose2d(padded, 4 * _smoothing(x), stride=2, padding=3, groups=x.shape[1])


def waves(t: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines and sines of t (B,) at frequencies (n, 1): (B, 2n), in float32 or better."""
    kind = torch.promote_types(frequencies.dtype, torch.float32)
    angles = 2 * math.pi * t.to(kind)[:, None] @ frequencies.to(kind).T
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ToldNorm(nn.Module):
    """A group norm whose scale and shift come from the features (B, F)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.groups = max(1, width // GROUP)
        self.told = nn.Linear(features, 2 * width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.told(features)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = F.group_norm(x, self.groups) * (1 + scale) + shift
        return out


class Residual(nn.Module):
    """A residual block: x (B, inner, H, W), features (B, F) -> (B, outer, H, W)."""

    def __init__(self, features: int, inner: int, middle: int, outer: int) -> None:
        super().__init__()
        self.norm1 = ToldNorm(features, inner)
        self.conv1 = nn.Conv2d(inner, middle, 3, padding=1)
        self.norm2 = ToldNorm(features, middle)
        self.conv2 = nn.Conv2d(middle, outer, 3, padding=1)
        self.shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1, bias=False)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.conv1(F.gelu(self.norm1(x, features)))
        h = self.conv2(F.gelu(self.norm2(h, features)))
        return h + self.shortcut(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over pixels, in heads of 64 channels."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        if width % self.heads:
            raise InputError(f"{width} channels cannot be divided among {self.heads} attention heads")
        self.norm = ToldNorm(features, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x, features)).reshape(len(x), 3, self.heads, -1, x.shape[2] * x.shape[3])
        q, k, v = qkv.transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return x + self.out(h)  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if the level has it."""

    def __init__(self, features: int, widths: Sequence[int], middle: int, *, attends: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.blocks = nn.ModuleList(Residual(features, inner, middle, outer) for inner, outer in pairs)
        self.attends = nn.ModuleList(Attention(features, outer) for _, outer in pairs if attends)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            h = block(h, features)
            if len(self.attends):
                h = self.attends[number](h, features)
        return h


class KarrasUNet(nn.Module):
    """k-diffusion's inner network F(x, ln(σ)/4).

    Attributes:
        config: The arguments of the network, JSON-able. `KarrasUNet(**net.config)` has the same architecture.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        attention: Sequence[bool],
        features: int,
        patch: int = 1,
        variance: bool = False,
    ) -> None:
        """Build the network.

        Args:
            channels: The number of channels of the images.
            widths: The width of each level, the finest first.
            depths: The number of blocks of each level, on the way down and up.
            attention: Whether each level has attention.
            features: The width of the features of the noise level, even.
            patch: The side of the squares of pixels that become channels first.
            variance: Whether the network also predicts a variance, which is left out.

        Raises:
            InputError: If no network can have these settings.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels,
            "widths": list(widths),
            "depths": list(depths),
            "attention": list(attention),
            "features": features,
            "patch": patch,
            "variance": variance,
        }
        if features % 2 or not len(widths) == len(depths) == len(attention):
            raise InputError("mapping_out must be even, and channels, depths and self_attn_depths of one length")
        self.patch, self.variance = patch, variance
        self.register_buffer("frequencies", torch.empty(features // 2, 1))
        self.dense1, self.dense2 = nn.Linear(features, features), nn.Linear(features, features)
        self.first = nn.Conv2d(channels * patch**2, widths[0], 1)
        self.last = nn.Conv2d(widths[0], channels * patch**2 + variance, 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        coarsest = len(widths) - 1
        for level, width in enumerate(widths):
            finer = widths[max(0, level - 1)]
            its = [width] * (depths[level] - 1)
            joined = width if level == coarsest else 2 * width
            attends = attention[level]
            self.down.append(Level(features, [finer, *its, width], width, attends=attends))
            self.up.insert(0, Level(features, [joined, *its, finer], width, attends=attends))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: The scaled images (B, C, H, W).
            t: ln(σ)/4, (B,).

        Returns:
            The output (B, C, H, W).
        """
        told = waves(t, self.frequencies).to(x.dtype)
        features = F.gelu(self.dense2(F.gelu(self.dense1(told))))
        h = self.first(F.pixel_unshuffle(x, self.patch))
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            skips.append(h := level(halved(h) if number else h, features))
        for number, level in enumerate(self.up):
            h = level(torch.cat([h, skips.pop()], dim=1) if number else skips.pop(), features)
            h = h if number == len(self.up) - 1 else doubled(h)
        out = self.last(h)
        return F.pixel_shuffle(out[:, :-1] if self.variance else out, self.patch)
