"""The U-Net of Improved DDPM (arXiv 2102.09672) and of *Diffusion Models Beat GANs* (arXiv 2105.05233, ADM).

Sub-modules have the names of github.com/openai/guided-diffusion (`UNetModel`, as in improved-diffusion), so that the
state dicts of both fit without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.types import InputError

GROUPS = 32  # in each group norm: all widths are multiples of it

Resampling = Literal["convolution", "block", "pooling"]
"""What changes the resolution: a convolution (improved-diffusion), a residual block (resblock_updown), or pooling."""


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Compute the sinusoids of a real-valued label.

    The frequencies fall geometrically from 1 to just above 1/10000 (denominator width/2).

    Args:
        t: The label (B,).
        width: The width of the embedding.

    Returns:
        The cosines, the sines, and a 0 if the width is odd: (B, width), in float32 or better.
    """
    half = width // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10000.0) / half))
    angles = t[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling (B, C, H, W) -> (B, C, 2H, 2W), followed by a convolution if `learned`."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class Downsample(nn.Module):
    """Downsampling (B, C, H, W) -> (B, C, H/2, W/2): a convolution if `learned`, otherwise the mean of 2×2 pixels."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.op(x)
        return h


class ResBlock(nn.Module):
    """A residual block: x (B, inner, H, W) and features of label and class (B, features) -> (B, outer, H, W).

    With `resized`, the block also changes the resolution.
    """

    def __init__(
        self, inner: int, outer: int, features: int, *, scale_shift: bool, resized: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resized = nn.Identity() if resized is None else resized
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(features, 2 * outer if scale_shift else outer))
        # The Identity takes the place of dropout, so that the layers keep their numbers.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outer), nn.SiLU(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h: Tensor = conv(self.resized(activation(norm(x))))
        told: Tensor = self.emb_layers(features)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        h = h + self.skip_connection(self.resized(x))
        return h


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), in heads.

    With `heads_first`, the legacy order, the 3·C channels of `qkv` are split into heads first, and then into q, k and
    v. Otherwise they are split into q, k and v first.
    """

    def __init__(self, channels: int, heads: int, *, heads_first: bool) -> None:
        super().__init__()
        if channels % heads:
            raise InputError(f"{channels} channels cannot be divided among {heads} attention heads")
        self.heads, self.heads_first = heads, heads_first
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        split = (self.heads, 3, -1) if self.heads_first else (3, self.heads, -1)
        qkv = self.qkv(self.norm(x).flatten(2)).unflatten(1, split)
        q, k, v = (part.transpose(2, 3) for part in qkv.unbind(2 if self.heads_first else 1))  # (B, heads, HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        out: Tensor = x + self.proj_out(h).reshape(x.shape)
        return out


class Stage(nn.ModuleList):
    """A sequence of blocks. Residual blocks also take the features."""

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """Apply the blocks to h (B, C, H, W), with features (B, F)."""
        for block in self:
            h = block(h, features) if isinstance(block, ResBlock) else block(h)
        return h


@dataclass(frozen=True)
class _Parts:
    """The settings from which the blocks of one network are built."""

    widths: Sequence[int]
    attention: Sequence[int]
    features: int
    head_channels: int | None
    heads_first: bool
    scale_shift: bool
    resampling: Resampling

    def residual(self, inner: int, outer: int, resized: nn.Module | None = None) -> ResBlock:
        return ResBlock(inner, outer, self.features, scale_shift=self.scale_shift, resized=resized)

    def attending(self, level: int, heads: int) -> AttentionBlock:
        width = self.widths[level]
        if self.head_channels is not None and width % self.head_channels:
            raise InputError(f"{width} channels cannot be divided into attention heads of {self.head_channels}")
        heads = heads if self.head_channels is None else width // self.head_channels
        return AttentionBlock(width, heads, heads_first=self.heads_first)

    def stage(self, inner: int, level: int, heads: int) -> Stage:
        """Make a residual block with the width of a level, and the level's attention if it has one."""
        block = self.residual(inner, self.widths[level])
        return Stage([block, *([self.attending(level, heads)] if level in self.attention else [])])

    def resampled(self, width: int, way: type[Downsample] | type[Upsample]) -> nn.Module:
        """Make the module that halves or doubles the resolution."""
        if self.resampling == "block":
            return self.residual(width, width, way(width, learned=False))
        return way(width, learned=self.resampling == "convolution")


class ADM(nn.Module):
    """The U-Net of guided-diffusion and improved-diffusion, a function of x, a label t and perhaps a class.

    Attributes:
        config: The arguments of the network, JSON-able. `ADM(**net.config)` has the same architecture.

    Source:
        Nichol & Dhariwal 2021, arXiv 2102.09672; Dhariwal & Nichol 2021, arXiv 2105.05233.
    """

    def __init__(  # one argument for each setting in which the published networks differ
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        widths: Sequence[int] = (128, 256, 384, 512),
        blocks: int = 2,
        attention: Sequence[int] = (2, 3),
        heads: int = 4,
        up_heads: int = 4,
        head_channels: int | None = None,
        heads_first: bool = True,
        scale_shift: bool = True,
        resampling: Resampling = "convolution",
        classes: int | None = None,
        time_scale: float = 1.0,
    ) -> None:
        """Build the network.

        Args:
            in_channels: The number of channels of x.
            out_channels: The number of channels of the output.
            channels: The width of the sinusoids of the label; the features are 4 times as wide.
            widths: The width of each level, the finest level first: multiples of 32.
            blocks: The number of residual blocks in each level on the way down; there is one more on the way up.
            attention: The levels with attention. The middle always has attention.
            heads: The number of attention heads on the way down and in the middle.
            up_heads: The number of attention heads on the way up.
            head_channels: The width of an attention head, in place of their number; None for `heads` and `up_heads`.
            heads_first: Whether attention has the legacy order, see `AttentionBlock`.
            scale_shift: Whether the features scale and shift the second norm of a residual block, or are added.
            resampling: What changes the resolution.
            classes: The number of classes; None for an unconditional network.
            time_scale: The factor by which the label is multiplied first.

        Raises:
            InputError: If no network can have these settings.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "up_heads": up_heads,
            "head_channels": head_channels,
            "heads_first": heads_first,
            "scale_shift": scale_shift,
            "resampling": resampling,
            "classes": classes,
            "time_scale": time_scale,
        }
        if any(width % GROUPS for width in widths):
            raise InputError(f"the widths {', '.join(map(str, widths))} must all be multiples of {GROUPS}")
        self.channels, self.time_scale = channels, time_scale
        features = 4 * channels
        parts = _Parts(widths, attention, features, head_channels, heads_first, scale_shift, resampling)
        self.time_embed = nn.Sequential(nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features))
        self.label_emb = None if classes is None else nn.Embedding(classes, features)
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(in_channels, widths[0], 3, padding=1)])])
        skips = [inner := widths[0]]  # the widths of the tensors that the way up takes
        coarsest = len(widths) - 1
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(parts.stage(inner, level, heads))
                skips.append(inner := width)
            if level < coarsest:
                self.input_blocks.append(Stage([parts.resampled(width, Downsample)]))
                skips.append(width)

        self.middle_block = Stage(
            [parts.residual(inner, inner), parts.attending(coarsest, heads), parts.residual(inner, inner)]
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                stage = parts.stage(inner + skips.pop(), level, up_heads)
                inner = width
                if level and i == blocks:
                    stage.append(parts.resampled(width, Upsample))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: The images (B, C, H, W) in the dtype of the weights.
            t: The labels (B,), floating-point.
            label: The classes (B,) int64, if the network has classes.

        Returns:
            The output (B, out_channels, H, W).
        """
        embedded = time_embedding(t * self.time_scale, self.channels)
        features = self.time_embed(embedded.to(next(self.parameters()).dtype))
        if self.label_emb is not None:
            features = features + self.label_emb(label)
        h, skips = x, []
        for stage in self.input_blocks:
            skips.append(h := stage(h, features))
        h = self.middle_block(h, features)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), features)
        out: Tensor = self.out(h)
        return out
