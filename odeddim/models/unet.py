"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B) as DDIM's experiments use it.

Sub-modules carry the names of DDIM's own code (github.com/ermongroup/ddim, `Model`), so that the state dict of one
of its checkpoints fits without renaming. One class serves every size: three levels at 28×28 as well as the
128-channel networks of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.types import InputError


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the real-valued label t (B,): (B, width), sines first, then cosines.

    Frequencies fall geometrically from 1 to 1/10000, both included (DDPM's denominator width/2 - 1).
    Computed in float32 or better whatever the network's precision: bfloat16 would make 1000 of t = 999.
    """
    half = width // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10000.0) / (half - 1)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """DDPM's 32 groups, or fewer so that a group never has fewer than 4 channels (as in the paper's smallest network)."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels, eps=1e-6)


class TimeEmbedding(nn.Module):
    """Label (B,) -> features (B, 4·channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense = nn.ModuleList([nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)])

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.dense
        h: Tensor = first(time_embedding(t, self.channels).to(first.weight.dtype))
        h = second(F.silu(h))
        return h


class ResnetBlock(nn.Module):
    """(B, inner, H, W) and time features (B, 4·channels) -> (B, outer, H, W)."""

    def __init__(self, inner: int, outer: int, temb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.temb_proj = nn.Linear(temb, outer)
        self.norm2 = group_norm(outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)
        self.widens = inner != outer

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if self.widens else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # (B, 1, HW, C)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2); zeros are added on the right and below only, as in DDPM's TensorFlow code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up; `resample` names the module that leaves the level."""

    def __init__(self, blocks: list[ResnetBlock], attention: list[AttnBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)

    def step(self, index: int, h: Tensor, temb: Tensor) -> Tensor:
        """Block `index` and its attention, if the level has any."""
        h = self.block[index](h, temb)
        return self.attn[index](h) if len(self.attn) else h


class Middle(nn.Module):
    """Two residual blocks round one attention block, at the lowest resolution."""

    def __init__(self, channels: int, temb: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, temb, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, temb, dropout)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = self.attn_1(self.block_1(h, temb))
        h = self.block_2(h, temb)
        return h


class UNet(nn.Module):
    """ε(x, t): x (B, C, H, W) in the units of DDPM, t (B,) its real-valued label 0..T-1 -> ε (B, C, H, W).

    in_channels, out_channels: of the image and of ε (None: the same). image_size: height and width it is made for; it
    decides at which levels `attention` (resolutions, in pixels) applies. channels: width of the first level, times
    `multipliers` for each level. blocks: residual blocks per level on the way down (one more on the way up).
    `config` holds all of it as JSON-able values: `UNet(**net.config)` is the same network.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        out_channels: int | None = None,
        image_size: int = 28,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (7,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "image_size": image_size,
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "dropout": dropout,
        }
        self.in_channels = in_channels
        self.halvings = len(multipliers) - 1
        _check_config(self.config)

        temb = 4 * channels
        widths = [channels * m for m in multipliers]
        sizes = [image_size // 2**i for i in range(len(widths))]
        self.temb = TimeEmbedding(channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        def level(inner: list[int], width: int, size: int) -> Level:
            attended = len(inner) if size in attention else 0
            return Level([ResnetBlock(n, width, temb, dropout) for n in inner], [AttnBlock(width) for _ in range(attended)])

        skips, inner = [channels], channels  # channels of every feature map that the way up will take back
        self.down = nn.ModuleList()
        for i, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            down = level([inner] + [width] * (blocks - 1), width, size)
            inner = width
            skips += [width] * blocks
            if i < self.halvings:
                down.downsample = Downsample(width)
                skips.append(width)
            self.down.append(down)

        self.mid = Middle(inner, temb, dropout)

        up: list[Level] = []
        for i, (width, size) in reversed(list(enumerate(zip(widths, sizes, strict=True)))):
            taken = [skips.pop() for _ in range(blocks + 1)]
            up.append(level([n + skip for n, skip in zip([inner] + [width] * blocks, taken, strict=True)], width, size))
            inner = width
            if i > 0:
                up[-1].upsample = Upsample(width)
        self.up = nn.ModuleList(reversed(up))  # up[0] is the finest level, as in DDIM's code

        self.norm_out = group_norm(inner)
        self.conv_out = nn.Conv2d(inner, out_channels, 3, padding=1)
        self._zero_last_layers()

    def _zero_last_layers(self) -> None:
        """As in DDPM, every residual branch and the output start at zero: the fresh network is near the identity."""
        for module in self.modules():
            last = {ResnetBlock: "conv2", AttnBlock: "proj_out", UNet: "conv_out"}.get(type(module))
            if last is not None:
                layer = getattr(module, last)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) real-valued -> ε (B, C, H, W)."""
        factor = 2**self.halvings
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise InputError(
                f"this network takes (B, {self.in_channels}, H, W) with H and W divisible by {factor}, "
                f"but the input is {tuple(x.shape)}"
            )
        temb = self.temb(t)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for i in range(len(level.block)):
                h = level.step(i, h, temb)
                skips.append(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
                skips.append(h)
        h = self.mid(h, temb)
        for level in reversed(self.up):
            for i in range(len(level.block)):
                h = level.step(i, torch.cat([h, skips.pop()], dim=1), temb)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h


def _check_config(config: dict[str, Any]) -> None:
    """An InputError naming the first value that no network can be built from."""
    for name in ("in_channels", "out_channels", "image_size", "channels", "blocks"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise InputError(f"the U-Net's {name} must be a whole number above 0, not {config[name]!r}")
    if config["channels"] < 4 or config["channels"] % 2:
        raise InputError(f"the U-Net's channels must be even and at least 4 (sines and cosines), not {config['channels']}")
    if not config["multipliers"] or not all(isinstance(m, int) and m > 0 for m in config["multipliers"]):
        raise InputError(f"the U-Net's multipliers must be whole numbers above 0, one per level, not {config['multipliers']}")
    factor = 2 ** (len(config["multipliers"]) - 1)
    if config["image_size"] % factor:
        raise InputError(
            f"images of {config['image_size']} pixels cannot be halved {len(config['multipliers']) - 1} times: "
            f"give fewer multipliers, or images whose size {factor} divides"
        )
    if not 0 <= config["dropout"] < 1:
        raise InputError(f"the U-Net's dropout must lie in [0, 1), not {config['dropout']}")
