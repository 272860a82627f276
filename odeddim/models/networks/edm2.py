"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, arXiv 2312.02696): its layers keep activations at rms 1.

Weights are stored before their normalisation, and normalised in each evaluation. No layer has a bias: a channel of ones
beside the image takes its place. Equations are those of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.types import InputError

_EPS = 1e-4  # what is added to each norm
_SILU = 0.596  # the rms of SiLU of a normal number (eq. 81)
LARGEST = 256.0  # activations are clipped to it after each block, for float16


def normalised(x: Tensor, *dims: int) -> Tensor:
    """x over its rms along some dimensions, which is taken in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rms = wide.square().mean(dim=dims, keepdim=True).sqrt()
    return x / (rms + _EPS).to(x.dtype)


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The sum of two tensors of rms 1, `share` of it the second: again of rms 1 (eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def joined(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The channels of two tensors side by side, the second with `share` of the magnitude (eq. 103)."""
    first, second = a.shape[1], b.shape[1]
    whole = math.sqrt((first + second) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (whole * (1 - share) / math.sqrt(first)), b * (whole * share / math.sqrt(second))], dim=1)


def silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of normal numbers (eq. 81)."""
    return F.silu(x) / _SILU


class Waves(nn.Module):
    """Cosines of random frequencies and phases of a number, at rms 1 (eq. 75): (B,) -> (B, width)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(width))
        self.register_buffer("phases", torch.empty(width))

    def forward(self, t: Tensor) -> Tensor:
        # In float32 or better: the frequencies reach 20, and bfloat16 has three digits.
        kind = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = torch.outer(t.to(kind), self.frequencies.to(kind)) + self.phases.to(kind)
        return math.sqrt(2) * angles.cos()


class Mix(nn.Module):
    """A convolution or, with `side` 0, a linear layer, whose normalised weights keep the magnitude (eq. 47)."""

    def __init__(self, inner: int, outer: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outer, inner, *([side, side] if side else [])))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = normalised(self.weight, *range(1, self.weight.ndim))
        weight = weight * (gain / math.sqrt(self.weight[0].numel()))
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """A residual block with attention or without (figure 21): x (B, inner, H, W), features (B, F) -> (B, outer, ...).

    On the way down the shortcut comes first and pixels are normalised; on the way up neither.
    """

    def __init__(
        self, inner: int, outer: int, features: int, *, down: bool, resized: str = "", heads: int = 0, balance: float
    ) -> None:
        super().__init__()
        self.down, self.resized, self.heads, self.balance = down, resized, heads, balance
        self.gain = nn.Parameter(torch.empty([]))
        self.first = Mix(outer if down else inner, outer, 3)
        self.told = Mix(features, outer, 0)
        self.second = Mix(outer, outer, 3)
        self.shortcut = Mix(inner, outer, 1) if inner != outer else None
        self.qkv = Mix(outer, 3 * outer, 1) if heads else None
        self.out = Mix(outer, outer, 1) if heads else None

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        if self.resized == "half":
            x = F.avg_pool2d(x, 2)
        elif self.resized == "double":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.down:
            x = normalised(x if self.shortcut is None else self.shortcut(x), 1)
        scale = self.told(features, self.gain) + 1
        h = self.second(silu(self.first(silu(x)) * scale[:, :, None, None]))
        if not self.down and self.shortcut is not None:
            x = self.shortcut(x)
        x = mixed(x, h, self.balance)
        if self.qkv is not None and self.out is not None:
            x = mixed(x, self.out(self._attended(self.qkv(x))), self.balance)
        return x.clamp(-LARGEST, LARGEST)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Cosine attention over pixels: (B, 3·C, H, W) -> (B, C, H, W). Of each head q, k, v alternate."""
        parts = normalised(
            qkv.reshape(len(qkv), self.heads, -1, 3, qkv.shape[2] * qkv.shape[3]), 2
        )  # (B, heads, C/heads, 3, HW)
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(2, 3).reshape(len(qkv), -1, *qkv.shape[2:])


class MagnitudeUNet(nn.Module):
    """EDM2's inner network F(x, ln(σ)/4[, one-hot label]).

    Attributes:
        config: The arguments of the network, JSON-able. `MagnitudeUNet(**net.config)` has the same architecture.

    Source:
        Karras et al. 2024, arXiv 2312.02696, configuration G, figure 21 and table 6.
    """

    def __init__(  # one argument for each setting in which networks differ
        self,
        *,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        waves: int,
        features: int,
        classes: int = 0,
        head_channels: int = 64,
        balance: float = 0.3,
    ) -> None:
        """Build the network, its weights empty.

        Args:
            channels: The number of channels of the images.
            widths: The width of each level, the finest first.
            blocks: The number of blocks in each level on the way down; there is one more on the way up.
            attention: The levels with attention. The middle always has attention.
            waves: The width of the embedding of the noise level.
            features: The width of the features that the blocks are told.
            classes: The number of classes; 0 for an unconditional network.
            head_channels: The width of an attention head.
            balance: The share of a block's branch in its sum.

        Raises:
            InputError: If a level with attention cannot be divided into heads.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
            "attention": list(attention),
            "waves": waves,
            "features": features,
            "classes": classes,
            "head_channels": head_channels,
            "balance": balance,
        }
        last = len(widths) - 1
        for level in {*attention, last}:
            if widths[level] % head_channels:
                raise InputError(f"{widths[level]} channels cannot be divided into attention heads of {head_channels}")

        def block(inner: int, level: int, *, attends: bool = False, **how: Any) -> Block:
            heads = widths[level] // head_channels if attends else 0
            return Block(inner, widths[level], features, heads=heads, balance=balance, **how)

        self.fourier = Waves(waves)
        self.noise = Mix(waves, features, 0)
        self.label = Mix(classes, features, 0) if classes else None
        self.first = Mix(channels + 1, widths[0], 3)  # with the channel of ones
        self.down, skips, inner = nn.ModuleList(), [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level:  # halves the image at the width of the level above
                self.down.append(Block(inner, inner, features, down=True, resized="half", balance=balance))
                skips.append(inner)
            for _ in range(blocks):
                self.down.append(block(inner, level, attends=level in attention, down=True))
                skips.append(inner := width)
        self.middle = nn.ModuleList([block(inner, last, attends=True, down=False), block(inner, last, down=False)])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            if level < last:
                self.up.append(Block(inner, inner, features, down=False, resized="double", balance=balance))
            for _ in range(blocks + 1):
                self.up.append(block(inner + skips.pop(), level, attends=level in attention, down=False))
                inner = width
        self.last = Mix(inner, channels, 3)
        self.gain = nn.Parameter(torch.empty([]))

    def forward(self, x: Tensor, t: Tensor, row: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: The scaled images (B, C, H, W).
            t: ln(σ)/4, (B,).
            row: The one-hot labels (B, classes), zeros for none, if the network has classes.

        Returns:
            The output (B, C, H, W).
        """
        features = self.noise(self.fourier(t).to(x.dtype))
        if self.label is not None and row is not None:
            features = mixed(features, self.label(row * math.sqrt(row.shape[1])), 0.5)
        features = silu(features)
        h = self.first(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.down:
            skips.append(h := block(h, features))
        for block in self.middle:
            h = block(h, features)
        for block in self.up:
            h = block(h if block.resized else joined(h, skips.pop(), 0.5), features)
        out: Tensor = self.last(h, self.gain)
        return out
