"""The U-Net of score_sde (Song et al. 2021, arXiv 2011.13456): DDPM, DDPM++ and NCSN++.

DDPM++ adds to DDPM's network the residual blocks of BigGAN and rescaled sums, NCSN++ also smoothed resampling and the
image itself at each level ("progressive" inputs and outputs, as in StyleGAN2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.models.networks.unet import time_embedding
from odeddim.types import InputError

_SMOOTHING = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's filter, before its normalisation
_ROOT = math.sqrt(0.5)


@dataclass(frozen=True)
class ScoreSettings:
    """The settings of a network, JSON-able.

    Attributes:
        channels: The number of channels of the images.
        width: The width of the finest level over its multiplier; the features are 4 times as wide.
        multipliers: The width of each level over `width`, the finest level first.
        blocks: The number of residual blocks in each level on the way down; there is one more on the way up.
        attention: The levels with attention. The middle always has attention.
        big: Whether blocks are BigGAN's, which also change the resolution, or DDPM's.
        smooth: Whether changes of resolution are smoothed by StyleGAN2's filter.
        rescaled: Whether sums of two branches are divided by √2.
        waves: Whether the network is told ln σ through random frequencies, or an index through DDPM's sinusoids.
        inputs: What the image is at each level on the way down: nothing, a channel sum, or a branch with weights.
        outputs: Whether each level adds to the answer.
        groups: The most groups of a norm; DDPM has 32 always, the others fewer in narrow networks.
        fewer: Whether there are fewer groups in narrow networks.
    """

    channels: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    big: bool = True
    smooth: bool = False
    rescaled: bool = True
    waves: bool = False
    inputs: Literal["none", "input_skip", "residual"] = "none"
    outputs: bool = False
    fewer: bool = True

    def norm(self, width: int) -> nn.GroupNorm:
        """The norm of so many channels."""
        return nn.GroupNorm(max(1, min(width // 4, 32)) if self.fewer else 32, width, eps=1e-6)

    def added(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of two branches."""
        return (a + b) * _ROOT if self.rescaled else a + b

    def smoothed(self, width: int) -> Tensor:
        """StyleGAN2's filter for so many channels, (width, 1, 4, 4)."""
        row = torch.tensor(_SMOOTHING) / sum(_SMOOTHING)
        return torch.outer(row, row).expand(width, 1, 4, 4)

    def halved(self, x: Tensor) -> Tensor:
        """Half the resolution: the mean of 2×2 pixels, smoothed or not."""
        if not self.smooth:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self.smoothed(x.shape[1]).to(x), stride=2, padding=1, groups=x.shape[1])

    def doubled(self, x: Tensor) -> Tensor:
        """Twice the resolution: pixels repeated, smoothed or not."""
        if not self.smooth:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        weight = 4 * self.smoothed(x.shape[1]).to(x)
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


class Across(nn.Module):
    """A linear map of the channels of each pixel, its weights (inner, outer)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, outer))
        self.bias = nn.Parameter(torch.empty(outer))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.T[:, :, None, None], self.bias)


class Waves(nn.Module):
    """Sines and cosines of ln σ at random frequencies: (B,) -> (B, 2·width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(width))

    def forward(self, sigma: Tensor) -> Tensor:
        kind = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = torch.outer(torch.log(sigma.to(kind)), self.frequencies.to(kind)) * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Residual(nn.Module):
    """A residual block: x (B, inner, H, W), features (B, F) -> (B, outer, H, W), or "half" or "double" the size."""

    def __init__(self, settings: ScoreSettings, inner: int, outer: int, resized: str = "") -> None:
        super().__init__()
        self.settings, self.resized = settings, resized
        self.norm1 = settings.norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.told = nn.Linear(4 * settings.width, outer)
        self.norm2 = settings.norm(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if inner != outer or resized:
            self.shortcut = nn.Conv2d(inner, outer, 1) if settings.big else Across(inner, outer)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resized:
            resize = self.settings.halved if self.resized == "half" else self.settings.doubled
            h, x = resize(h), resize(x)
        h = self.conv1(h) + self.told(F.silu(features))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.settings.added(self.shortcut(x), h)


class Attention(nn.Module):
    """Self-attention over pixels with one head."""

    def __init__(self, settings: ScoreSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.norm = settings.norm(width)
        self.q, self.k, self.v, self.out = (Across(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return self.settings.added(x, self.out(h))


class Halving(nn.Module):
    """Half the resolution by a convolution, smoothed before it or padded at the right and below, as in DDPM."""

    def __init__(self, settings: ScoreSettings, inner: int, outer: int) -> None:
        super().__init__()
        self.settings = settings
        self.conv = nn.Conv2d(inner, outer, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.settings.smooth:
            x = F.conv2d(x, self.settings.smoothed(x.shape[1]).to(x), padding=2, groups=x.shape[1])
        else:
            x = F.pad(x, (0, 1, 0, 1))
        h: Tensor = self.conv(x)
        return h


class Doubling(nn.Module):
    """Twice the resolution, pixels repeated, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class Answer(nn.Module):
    """What a level adds to the answer."""

    def __init__(self, settings: ScoreSettings, width: int) -> None:
        super().__init__()
        self.norm = settings.norm(width)
        self.conv = nn.Conv2d(width, settings.channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(F.silu(self.norm(h)))
        return out


class Level(nn.Module):
    """The blocks of one resolution; on the way down what halves it, on the way up what doubles it."""

    def __init__(self, blocks: Sequence[nn.Module], attends: Sequence[nn.Module], resized: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.attends = nn.ModuleList(blocks), nn.ModuleList(attends)
        self.resized = resized
        self.image: nn.Module | None = None  # on the way down: the image into the next level
        self.answer: nn.Module | None = None  # on the way up

    def resize(self, h: Tensor, features: Tensor) -> Tensor:
        """Half or double the resolution."""
        assert self.resized is not None
        out: Tensor = self.resized(h, features) if isinstance(self.resized, Residual) else self.resized(h)
        return out


class ScoreUNet(nn.Module):
    """The network of a `ScoreSettings`, a function of x (B, C, H, W) and a label (B,): σ, or an index.

    Attributes:
        settings: The settings.

    Source:
        Song et al. 2021, arXiv 2011.13456, section 4 and appendix H.
    """

    def __init__(self, settings: ScoreSettings) -> None:
        super().__init__()
        self.settings = settings
        width, widths = settings.width, [settings.width * times for times in settings.multipliers]
        if width < 4 or width % 2 or (not settings.fewer and any(wide % 32 for wide in widths)):
            raise InputError(f"no network of score_sde has the widths {', '.join(map(str, widths))}")
        if settings.smooth and not settings.big:
            raise InputError("smoothed resampling (fir) goes with BigGAN's blocks (resblock_type biggan)")
        self.waves = Waves(width) if settings.waves else None
        self.dense1 = nn.Linear(2 * width if settings.waves else width, 4 * width)
        self.dense2 = nn.Linear(4 * width, 4 * width)
        self.first = nn.Conv2d(settings.channels, width, 3, padding=1)
        self.down, skips = _down(settings, widths)
        inner = widths[-1]
        self.middle = nn.ModuleList(
            [Residual(settings, inner, inner), Attention(settings, inner), Residual(settings, inner, inner)]
        )
        self.up = _up(settings, widths, skips)
        self.last = None if settings.outputs else Answer(settings, widths[0])

    @property
    def config(self) -> dict[str, Any]:
        """The settings, JSON-able."""
        return asdict(self.settings)

    def in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts with weights in the order of score_sde's list of modules, each with its name here."""
        if self.waves is not None:
            yield "waves", self.waves
        yield from (("dense1", self.dense1), ("dense2", self.dense2), ("first", self.first))
        sides = (("down", self.down), ("middle", self.middle), ("up", self.up))
        for side, parts in sides:
            for number, part in enumerate(parts):
                name = f"{side}.{number}"
                yield from _of_level(name, part) if isinstance(part, Level) else [(name, part)]
        if self.last is not None:
            yield from (("last.norm", self.last.norm), ("last.conv", self.last.conv))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: The images (B, C, H, W) in the dtype of the weights.
            t: The labels (B,), floating-point.

        Returns:
            The output (B, C, H, W).
        """
        sines = self.waves(t) if self.waves is not None else time_embedding(t, self.settings.width)
        features = self.dense2(F.silu(self.dense1(sines.to(self.dense1.weight.dtype))))
        h, image = self.first(x), x
        skips = [h]
        answer: Tensor | None = None
        for level in _levels(self.down):
            for block, attend in zip(level.blocks, level.attends, strict=True):
                skips.append(h := attend(block(h, features)))
            if level.resized is not None:
                h, image = self._with_image(level, level.resize(h, features), image)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, features)), features)
        for level in _levels(self.up):
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), features)
            for attend in level.attends:
                h = attend(h)
            if level.answer is not None:
                its = level.answer(h)
                answer = its if answer is None else self.settings.doubled(answer) + its
            if level.resized is not None:
                h = level.resize(h, features)
        if self.last is not None:
            answer = self.last(h)
        assert answer is not None
        return answer

    def _with_image(self, level: Level, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The branch and the image at the next level, the branch with the image in it."""
        if level.image is None:
            return h, image
        if self.settings.inputs == "input_skip":
            image = self.settings.halved(image)
            return level.image(image) + h, image
        image = self.settings.added(level.image(image), h)
        return image, image


def _levels(parts: nn.ModuleList) -> Iterator[Level]:
    for part in parts:
        assert isinstance(part, Level)
        yield part


def _down(settings: ScoreSettings, widths: Sequence[int]) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the widths of the tensors that the way up takes."""
    levels, skips, inner, image = nn.ModuleList(), [settings.width], settings.width, settings.channels
    for number, width in enumerate(widths):
        blocks = [Residual(settings, before, width) for before in (inner, *[width] * (settings.blocks - 1))]
        attends = number in settings.attention
        skips += [width] * settings.blocks
        inner = width
        last = number == len(widths) - 1
        halve = Residual(settings, width, width, "half") if settings.big else Halving(settings, width, width)
        level = Level(
            blocks,
            [Attention(settings, width) if attends else nn.Identity() for _ in blocks],
            None if last else halve,
        )
        if not last:
            skips.append(width)
            if settings.inputs == "input_skip":
                level.image = nn.Conv2d(settings.channels, width, 1)
            elif settings.inputs == "residual":
                level.image, image = Halving(settings, image, width), width
        levels.append(level)
    return levels, skips


def _up(settings: ScoreSettings, widths: Sequence[int], skips: list[int]) -> nn.ModuleList:
    """The levels on the way up, the coarsest first."""
    levels, inner = nn.ModuleList(), widths[-1]
    for number, width in reversed(list(enumerate(widths))):
        blocks = [Residual(settings, before + skips.pop(), width) for before in (inner, *[width] * settings.blocks)]
        double = Residual(settings, width, width, "double") if settings.big else Doubling(width)
        attends = [Attention(settings, width)] if number in settings.attention else []
        level = Level(blocks, attends, double if number else None)
        level.answer = Answer(settings, width) if settings.outputs else None
        levels.append(level)
        inner = width
    return levels


def _of_level(name: str, level: Level) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a level with weights, in order: on the way down attention follows each block, on the way up all."""
    for number, block in enumerate(level.blocks):
        yield f"{name}.blocks.{number}", block
        if len(level.attends) > number and name.startswith("down") and isinstance(level.attends[number], Attention):
            yield f"{name}.attends.{number}", level.attends[number]
    if name.startswith("up"):
        yield from ((f"{name}.attends.{number}", attend) for number, attend in enumerate(level.attends))
    if level.answer is not None:
        yield from ((f"{name}.answer.{part}", getattr(level.answer, part)) for part in ("norm", "conv"))
    yield from ((f"{name}.{part}", its) for part in ("resized", "image") if (its := getattr(level, part)) is not None)
