"""The hourglass diffusion transformer (Crowson et al. 2024, arXiv 2401.11605), k-diffusion's image_transformer_v2."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from odeddim.models.networks import local_attention
from odeddim.models.networks import told_transformer as told
from odeddim.types import InputError


class Attends(NamedTuple):
    """The attention of a level.

    Args:
        kind: "global", "neighborhood" or "shifted-window".
        head: The width of a head, a multiple of 8.
        side: The side of a neighbourhood or of a window.
    """

    kind: str
    head: int
    side: int = 0

    def of_layer(self, number: int) -> Callable[..., Tensor]:
        """The attention of a layer of the level. Windows are shifted in every other layer."""
        if self.kind == "neighborhood":
            return functools.partial(local_attention.in_neighbourhoods, side=self.side)
        if self.kind == "shifted-window":
            shift = self.side // 2 if number % 2 else 0
            return functools.partial(local_attention.in_windows, side=self.side, shift=shift)
        return local_attention.everywhere


class Frequencies(nn.Module):
    """Frequencies of each head, for rows and columns alike."""

    freqs: Tensor

    def __init__(self, heads: int, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(heads, count))

    def forward(self, where: tuple[Tensor, Tensor]) -> Tensor:
        return told.angles(where, self.freqs, self.freqs)


class HalvedAttention(told.Attention):
    """Attention with the first quarter of a head's channels turned with the second; the other half stays."""

    def __init__(self, features: int, width: int, attends: Attends, number: int) -> None:
        super().__init__(features, width, attends.head, attends.of_layer(number))
        if attends.head % 8:
            raise InputError(f"d_head must be a multiple of 8, not {attends.head}")
        self.scale = nn.Parameter(torch.empty(width // attends.head))
        self.pos_emb = Frequencies(width // attends.head, attends.head // 8)

    def placed(self, x: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        x = told.of_length(x, self.scale.sqrt()[:, None, None, None])
        quarter = self.head // 4
        pairs = told.turned(x[..., :quarter], x[..., quarter : 2 * quarter], self.pos_emb(where))
        return torch.cat([*pairs, x[..., 2 * quarter :]], dim=-1)


class Merge(nn.Module):
    """Patches of pixels, each as one: (B, H, W, C) -> (B, H/tall, W/wide, outer)."""

    def __init__(self, inner: int, outer: int, tall: int = 2, wide: int = 2) -> None:
        super().__init__()
        self.tall, self.wide = tall, wide
        self.proj = nn.Linear(inner * tall * wide, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, inner = x.shape
        parts = x.reshape(batch, height // self.tall, self.tall, width // self.wide, self.wide, inner).transpose(2, 3)
        return self.proj(parts.flatten(3))  # type: ignore[no-any-return]


class Split(nn.Module):
    """The way back: (B, H, W, inner) -> (B, H·tall, W·wide, outer)."""

    def __init__(self, inner: int, outer: int, tall: int = 2, wide: int = 2) -> None:
        super().__init__()
        self.tall, self.wide = tall, wide
        self.proj = nn.Linear(inner, outer * tall * wide, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.proj(x).unflatten(3, (self.tall, self.wide, -1)).transpose(2, 3)
        return parts.flatten(3, 4).flatten(1, 2)  # type: ignore[no-any-return]


class JoinedSplit(Split):
    """A split, a share `fac` of it, and the rest what was there before the merge."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        self.fac = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return torch.lerp(skip, super().forward(x), self.fac.to(skip.dtype))


class HourglassTransformer(told.ToldTransformer):
    """k-diffusion's inner network F(x, ln(σ)/4[, one-hot label]), whose patches are merged from level to level.

    Attributes:
        config: The arguments of the network, JSON-able. `HourglassTransformer(**net.config)` has the same architecture.
    """

    def __init__(
        self,
        *,
        channels: int,
        patch: Sequence[int],
        depths: Sequence[int],
        widths: Sequence[int],
        hidden: Sequence[int],
        attention: Sequence[Sequence[str | int] | None],
        mapping: Sequence[int],
        classes: int = 0,
    ) -> None:
        """Build the network, its weights empty.

        Args:
            channels: The number of channels of the images.
            patch: Height and width of a patch.
            depths: The number of layers of each level, the finest first: on the way down and on the way up.
            widths: The width of each level.
            hidden: The width within feed-forward blocks of each level.
            attention: The attention of each level, the arguments of `Attends`; None for none.
            mapping: The number of blocks that make the features, their width and the width within them.
            classes: The number of classes, that for none among them; 0 if the network has none.

        Raises:
            InputError: If no network can have these settings.
        """
        depth, features, inner = mapping
        super().__init__(depth, features, inner, classes)
        self.config = {
            "channels": channels,
            "patch": list(patch),
            "depths": list(depths),
            "widths": list(widths),
            "hidden": list(hidden),
            "attention": [None if each is None else list(each) for each in attention],
            "mapping": list(mapping),
            "classes": classes,
        }

        def layers(level: int, first: int) -> nn.ModuleList:
            its, width = attention[level], widths[level]
            return nn.ModuleList(
                told.Layer(
                    None if its is None else HalvedAttention(features, width, Attends(*its), number),  # type: ignore[arg-type]
                    features,
                    width,
                    hidden[level],
                )
                for number in range(first, first + depths[level])
            )

        last = len(widths) - 1
        self.patch_in = Merge(channels, widths[0], *patch)
        self.down_levels = nn.ModuleList(layers(level, 0) for level in range(last))
        self.mid_level = layers(last, 0)
        self.up_levels = nn.ModuleList(layers(level, depths[level]) for level in range(last))
        self.merges = nn.ModuleList(Merge(finer, coarser) for finer, coarser in itertools.pairwise(widths))
        self.splits = nn.ModuleList(JoinedSplit(coarser, finer) for finer, coarser in itertools.pairwise(widths))
        self.out_norm = told.Norm(widths[0])
        self.patch_out = Split(widths[0], channels, *patch)

    def forward(self, x: Tensor, t: Tensor, row: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: The scaled images (B, C, H, W).
            t: ln(σ)/4, (B,).
            row: The one-hot labels (B, classes), if the network has classes.

        Returns:
            The output (B, C, H, W).
        """
        features = self.features(x, t, row)

        def through(level: nn.Module, h: Tensor) -> Tensor:
            where = told.positions(h.shape[1], h.shape[2], x)
            for layer in level.children():
                h = layer(h, where, features)
            return h

        h, skips = self.patch_in(x.movedim(1, 3)), []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            skips.append(h := through(level, h))
            h = merge(h)
        h = through(self.mid_level, h)
        for level, split in zip(reversed(self.up_levels), reversed(self.splits), strict=True):
            h = through(level, split(h, skips.pop()))
        return self.patch_out(self.out_norm(h)).movedim(3, 1)  # type: ignore[no-any-return]
