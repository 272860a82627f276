"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B) as DDIM's experiments use it.

Sub-modules have the names of DDIM's own code (github.com/ermongroup/ddim, `Model`), so that the state dict of a DDIM
checkpoint fits without renaming. One class serves every size, from three levels at 28×28 to the 128-channel networks of
the paper.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.types import InputError


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Compute the sinusoids of a real-valued label.

    The frequencies fall geometrically from 1 to 1/10000, both included (DDPM's denominator width/2 - 1). The result is
    in float32 or better, whatever the network's precision: bfloat16 would round t = 999 to 1000.

    Args:
        t: The label (B,).
        width: The width of the embedding, an even number.

    Returns:
        The sines, then the cosines, (B, width).
    """
    half = width // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10000.0) / (half - 1)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


Norm = Callable[[int], nn.Module]
"""A function that makes a norm layer: channels -> module."""


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-6) -> nn.GroupNorm:
    """Make a group norm with DDPM's 32 groups, or with fewer, so that a group has at least 4 channels as in DDPM."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)) if groups is None else groups, channels, eps=eps)


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids of a label: (B,) -> features (B, 4·channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense = nn.ModuleList([nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)])

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.dense
        h: Tensor = first(time_embedding(t, self.channels).to(next(self.parameters()).dtype))
        h = second(F.silu(h))
        return h


class ResnetBlock(nn.Module):
    """A residual block: x (B, inner, H, W) and time features (B, 4·channels) -> (B, outer, H, W)."""

    def __init__(self, inner: int, outer: int, temb: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.temb_proj = nn.Linear(temb, outer)
        self.norm2 = norm(outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of (B, C, H, W)."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # (B, 1, HW, C)
        h = self.proj_out(F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape))
        return x + h


class Downsample(nn.Module):
    """A convolution (B, C, H, W) -> (B, C, H/2, W/2), padded at the right and below, as in DDPM's TensorFlow code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """Nearest-neighbour upsampling (B, C, H, W) -> (B, C, 2H, 2W), followed by a convolution if `convolves`."""

    def __init__(self, channels: int, *, convolves: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class Down(nn.Module):
    """One level on the way down: a residual block for each input width in `inner`, then `downsample` if given."""

    def __init__(
        self,
        inner: list[int],
        width: int,
        temb: int,
        dropout: float,
        norm: Norm,
        *,
        attends: bool,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(n, width, temb, dropout, norm) for n in inner)
        self.attn = nn.ModuleList(AttnBlock(width, norm) for _ in inner if attends)
        self.downsample = downsample

    def forward(self, h: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        """Map h (B, C, H, W) to (B, width, H/2, W/2), and append each intermediate result to `skips`."""
        for i, block in enumerate(self.block):
            h = block(h, temb)
            if self.attn:
                h = self.attn[i](h)
            skips.append(h)
        if self.downsample is not None:
            h = self.downsample(h)
            skips.append(h)
        return h


class Up(nn.Module):
    """One level on the way up: residual blocks that also take a tensor of `skips` each, then `upsample` if given."""

    def __init__(
        self,
        inner: list[int],
        width: int,
        temb: int,
        dropout: float,
        norm: Norm,
        *,
        attends: bool,
        upsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(n, width, temb, dropout, norm) for n in inner)
        self.attn = nn.ModuleList(AttnBlock(width, norm) for _ in inner if attends)
        self.upsample = upsample

    def forward(self, h: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        """Map h (B, C, H, W) to (B, width, 2H, 2W). Each block removes the last tensor of `skips`."""
        for i, block in enumerate(self.block):
            h = block(torch.cat([h, skips.pop()], dim=1), temb)
            if self.attn:
                h = self.attn[i](h)
        return h if self.upsample is None else self.upsample(h)


class Middle(nn.Module):
    """Two residual blocks with an attention block between them, at the lowest resolution."""

    def __init__(self, channels: int, temb: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, temb, dropout, norm)
        self.attn_1 = AttnBlock(channels, norm)
        self.block_2 = ResnetBlock(channels, channels, temb, dropout, norm)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = self.attn_1(self.block_1(h, temb))
        h = self.block_2(h, temb)
        return h


class UNet(nn.Module):
    """DDPM's network ε(x, t), for x in the units of DDPM and a real-valued label t from 0 to T-1.

    Attributes:
        config: The arguments of the network, JSON-able. `UNet(**net.config)` has the same architecture.

    Source:
        Ho et al. 2020, arXiv 2006.11239, appendix B.

    Example:
        >>> import torch
        >>> from odeddim.models.networks.unet import UNet
        >>> UNet()(torch.zeros(2, 1, 28, 28), torch.tensor([0.0, 999.0])).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(  # one argument for each setting in which the published networks differ
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
        groups: int | None = None,
        eps: float = 1e-6,
        convolves: bool = True,
    ) -> None:
        """Build the network.

        Args:
            in_channels: The number of channels of x.
            out_channels: The number of channels of the output; None for `in_channels`.
            image_size: The height and width of the images in pixels, which decide the levels of `attention`. The
                network also takes other sizes that can be halved between all levels.
            channels: The base width.
            multipliers: The width of each level over the base width, the finest level first.
            blocks: The number of residual blocks in each level on the way down; there is one more on the way up.
            attention: The resolutions with attention, in pixels.
            dropout: The dropout rate in training, from 0 to 1.
            groups: The number of groups of each group norm; None for DDPM's 32, or fewer in narrow networks.
            eps: The ε of each group norm.
            convolves: Whether a convolution changes the resolution, as in DDPM. Otherwise pixels are averaged and
                repeated.

        Raises:
            InputError: If no network can have these settings.
        """
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
        if (groups, eps, convolves) != (
            None,
            1e-6,
            True,
        ):  # otherwise left out, so that older versions of odeddim read the config too
            self.config |= {"groups": groups, "eps": eps, "convolves": convolves}
        _check_config(self.config)
        self.in_channels = in_channels
        self.factor = 2 ** (len(multipliers) - 1)  # between the finest and the coarsest level

        temb = 4 * channels
        norm = functools.partial(group_norm, groups=groups, eps=eps)
        widths = [channels * m for m in multipliers]
        attends = [image_size // 2**level in attention for level in range(len(widths))]
        coarsest = len(widths) - 1
        self.temb = TimeEmbedding(channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        self.down = nn.ModuleList()
        inner = channels
        skips = [channels]  # the widths of the tensors that the way up takes
        for level, width in enumerate(widths):
            blocks_in = [inner, *[width] * (blocks - 1)]
            last = level == coarsest
            halved = None if last else Downsample(width) if convolves else nn.AvgPool2d(2)
            self.down.append(Down(blocks_in, width, temb, dropout, norm, attends=attends[level], downsample=halved))
            inner = width
            skips += [width] * (blocks if last else blocks + 1)

        self.mid = Middle(inner, temb, dropout, norm)

        self.up = nn.ModuleList()  # up[0] is the finest level, as in DDIM's code
        for level, width in reversed(list(enumerate(widths))):
            blocks_in = [n + skips.pop() for n in (inner, *[width] * blocks)]
            doubled = None if level == 0 else Upsample(width, convolves=convolves)
            self.up.insert(0, Up(blocks_in, width, temb, dropout, norm, attends=attends[level], upsample=doubled))
            inner = width

        self.norm_out = norm(inner)
        self.conv_out = nn.Conv2d(inner, out_channels, 3, padding=1)
        self._zero_last_layers()

    @property
    def words(self) -> str:
        """The network in words, such as "U-Net 128×(1,2,2,2)"."""
        return f"U-Net {self.config['channels']}×({','.join(map(str, self.config['multipliers']))})"

    def _zero_last_layers(self) -> None:
        """Set the last layers to 0, as in DDPM: each residual block starts as the identity, the output as 0."""
        for module in self.modules():
            last = {ResnetBlock: "conv2", AttnBlock: "proj_out", UNet: "conv_out"}.get(type(module))
            if last is not None:
                layer = getattr(module, last)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: The images (B, C, H, W) in the dtype of the weights.
            t: The labels (B,), floating-point.

        Returns:
            The output (B, out_channels, H, W).

        Raises:
            InputError: If x has another number of channels, or a size that cannot be halved between all levels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise InputError(
                f"this network takes (B, {self.in_channels}, H, W) with H and W divisible by {self.factor}, "
                f"but the input is {tuple(x.shape)}"
            )
        temb = self.temb(t)
        h: Tensor = self.conv_in(x)
        skips = [h]
        for level in self.down:
            h = level(h, temb, skips)
        h = self.mid(h, temb)
        for level in reversed(self.up):
            h = level(h, temb, skips)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h


def _check_config(config: dict[str, Any]) -> None:
    """Raise an InputError for the first setting that no network can have."""
    for name in ("in_channels", "out_channels", "image_size", "channels", "blocks"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise InputError(f"the U-Net's {name} must be a whole number above 0, not {config[name]!r}")
    if config["channels"] < 4 or config["channels"] % 2:
        raise InputError(
            f"the U-Net's channels must be even and at least 4 (sines and cosines), not {config['channels']}"
        )
    if not config["multipliers"] or not all(isinstance(m, int) and m > 0 for m in config["multipliers"]):
        raise InputError(
            f"the U-Net's multipliers must be whole numbers above 0, one per level, not {config['multipliers']}"
        )
    factor = 2 ** (len(config["multipliers"]) - 1)
    if config["image_size"] % factor:
        raise InputError(
            f"images of {config['image_size']} pixels cannot be halved {len(config['multipliers']) - 1} times: "
            f"give fewer multipliers, or images whose size is divisible by {factor}"
        )
    groups, eps = config.get("groups"), config.get("eps", 1e-6)
    if groups is not None and (not isinstance(groups, int) or groups < 1 or config["channels"] % groups):
        raise InputError(f"the U-Net's groups must divide its {config['channels']} channels, not {groups!r}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise InputError(f"the U-Net's eps must be a number between 0 and 1, not {eps!r}")
    if not 0 <= config["dropout"] < 1:
        raise InputError(f"the U-Net's dropout must lie in [0, 1), not {config['dropout']}")
