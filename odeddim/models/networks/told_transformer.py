"""What the two transformers of k-diffusion share: layers that are told features of the noise level and of the class.

Pixels, or the patches that stand for them, lie in the last but two dimensions: (B, H, W, C). The modules have the
names of k-diffusion's, which are those of the tensors in its files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.models.networks.karras_unet import waves
from odeddim.types import InputError

_EPS = 1e-6  # what is added to each mean square


def _wide(x: Tensor) -> torch.dtype:
    """The dtype that norms and angles are computed in: float32 or better."""
    return torch.promote_types(x.dtype, torch.float32)


def of_rms(x: Tensor, scale: Tensor) -> Tensor:
    """x with an rms of 1 along its last dimension, times a scale."""
    kind = _wide(x)
    squares = x.to(kind).square().mean(-1, keepdim=True)
    return x * (scale.to(kind) * torch.rsqrt(squares + _EPS)).to(x.dtype)


def of_length(x: Tensor, length: Tensor, eps: float = _EPS) -> Tensor:
    """x with a length along its last dimension."""
    kind = _wide(x)
    squares = x.to(kind).square().sum(-1, keepdim=True)
    return x * (length.to(kind) * torch.rsqrt(squares + eps)).to(x.dtype)


def turned(x: Tensor, y: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """The points (x, y), each turned by its angle (Su et al. 2021, arXiv 2104.09864)."""
    cos, sin = angles.cos(), angles.sin()
    return (x * cos - y * sin).to(x.dtype), (y * cos + x * sin).to(x.dtype)


def positions(height: int, width: int, x: Tensor, aspect: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where the centres of H×W patches lie: the rows (H, 1) and the columns (W, 1).

    The longer side of the image lies from -1 to 1.

    Args:
        height: H.
        width: W.
        x: A tensor whose device, and whose dtype in float32 or better, they have.
        aspect: The height of a patch over its width.
    """
    longer = max(height * aspect, width)
    sides = ((height, height * aspect / longer), (width, width / longer))
    rows, columns = (
        (torch.arange(count, dtype=_wide(x), device=x.device)[:, None] + 0.5) * (2 * reach / count) - reach
        for count, reach in sides
    )
    return rows, columns


def angles(where: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """The angles of patches, (heads, H, W, n + m): positions times the frequencies (heads, n) and (heads, m)."""
    down, right = where
    tall = (down * rows.to(down.dtype)[:, None])[:, :, None]
    wide = (right * columns.to(right.dtype)[:, None])[:, None]
    heads, height, width = len(rows), len(down), len(right)
    return torch.cat([tall.expand(heads, height, width, -1), wide.expand(heads, height, width, -1)], dim=-1)


class Norm(nn.Module):
    """An rms norm with a scale of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return of_rms(x, self.scale)


class ToldNorm(nn.Module):
    """An rms norm whose scale comes from the features (B, F)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width, bias=False)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return of_rms(x, self.linear(features)[:, None, None] + 1)


class FeedForward(nn.Module):
    """A residual block of two linear layers, the first gated by a GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, norm: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = norm
        self.up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, *told: Tensor) -> Tensor:
        h, gate = self.up_proj(self.norm(x, *told)).chunk(2, dim=-1)
        return x + self.down_proj(h * F.gelu(gate))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A residual block of attention: cosines of queries and keys, which are turned by where they lie.

    Args:
        features: The width of the features.
        width: The width of the block.
        head: The width of a head.
        attend: The attention of queries, keys and values (`odeddim.models.networks.local_attention`).
    """

    def __init__(self, features: int, width: int, head: int, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        if width % head:
            raise InputError(f"{width} channels cannot be divided into attention heads of {head}")
        self.head, self.attend = head, attend
        self.norm = ToldNorm(features, width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def placed(self, x: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys (B, heads, H, W, E) as they are compared: of a length of each head, and turned."""
        raise NotImplementedError

    def forward(self, x: Tensor, where: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.norm(x, features)).unflatten(-1, (3, -1, self.head))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)
        h = self.attend(self.placed(q, where), self.placed(k, where), v)
        return x + self.out_proj(h.permute(0, 2, 3, 1, 4).flatten(3))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention, if the layer has it, and a feed-forward block."""

    def __init__(self, attention: Attention | None, features: int, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = attention
        self.ff = FeedForward(ToldNorm(features, width), width, hidden)

    def forward(self, x: Tensor, where: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        h = x if self.self_attn is None else self.self_attn(x, where, features)
        return self.ff(h, features)  # type: ignore[no-any-return]


class Waves(nn.Module):
    """Cosines and sines of random frequencies of a number: (B,) -> (B, width)."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(width // 2, 1))

    def forward(self, t: Tensor) -> Tensor:
        return waves(t, self.weight)


class Mapping(nn.Module):
    """The features of what a network is told, (B, F) -> (B, F)."""

    def __init__(self, depth: int, width: int, hidden: int) -> None:
        super().__init__()
        self.in_norm, self.out_norm = Norm(width), Norm(width)
        self.blocks = nn.ModuleList(FeedForward(Norm(width), width, hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.out_norm(x)  # type: ignore[no-any-return]


class ToldTransformer(nn.Module):
    """A network that makes features (B, F) of the noise level and of the class, for all its layers.

    Args:
        depth: The number of blocks that make the features.
        width: F, even.
        hidden: The width within these blocks.
        classes: The number of classes, that for none among them; 0 if the network has none.

    Attributes:
        config: The arguments of the network, JSON-able.

    Raises:
        InputError: If the width is odd.
    """

    config: dict[str, Any]

    def __init__(self, depth: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        if width % 2:
            raise InputError(f"the width of the features of the noise level must be even, not {width}")
        self.time_emb = Waves(width)
        self.time_in_proj = nn.Linear(width, width, bias=False)
        self.aug_in_proj = nn.Linear(width, width, bias=False)
        self.class_emb = nn.Embedding(classes, width) if classes else None
        self.mapping = Mapping(depth, width, hidden)

    def features(self, x: Tensor, t: Tensor, row: Tensor | None) -> Tensor:
        """The features (B, F) of t (B,) and a one-hot row (B, classes), in the dtype of x."""
        weight = self.aug_in_proj.weight  # of waves of augmentations: of none, all cosines are 1 and all sines 0
        told = self.time_in_proj(self.time_emb(t).to(x.dtype)) + weight[:, : weight.shape[1] // 2].sum(1)
        if self.class_emb is not None and row is not None:
            told = told + row @ self.class_emb.weight
        return self.mapping(told)  # type: ignore[no-any-return]
