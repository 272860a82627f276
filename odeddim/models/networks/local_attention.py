"""Attention over the pixels of a feature map: to all of them, within shifted windows, or to each pixel's neighbourhood.

Queries, keys and values are (B, heads, H, W, E). The logits are q·k: whoever calls has scaled them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 8  # the side of the squares of queries that look at their neighbourhoods together


def everywhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each pixel looks at all pixels."""
    out = F.scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), scale=1.0)
    return out.reshape(q.shape)


def in_windows(q: Tensor, k: Tensor, v: Tensor, *, side: int, shift: int) -> Tensor:
    """Each pixel looks at its window (Liu et al. 2021, arXiv 2103.14030).

    Args:
        q: The queries, as the others (B, heads, H, W, E), H and W multiples of `side`.
        k: The keys.
        v: The values.
        side: The side of the windows, which tile the image.
        shift: How far their tiling begins above and left of the image, less than `side`. The windows at its edges are
            cut there: what lies beyond the opposite edge is not seen.

    Returns:
        What the pixels see, like q.
    """
    moved = [_windows(x.roll((shift, shift), (2, 3)), side, side) for x in (q, k, v)]
    mask = None
    if shift:  # the rows and columns that came in at the top and the left are of the other end
        rows, columns = (torch.arange(length, device=q.device) < shift for length in q.shape[2:4])
        ends = _windows((2 * rows[:, None] + columns)[None, None, ..., None], side, side)[0]
        mask = ends == ends.transpose(1, 2)
    out = F.scaled_dot_product_attention(moved[0], moved[1], moved[2], mask, scale=1.0)
    return _image(out, q, side, side).roll((-shift, -shift), (2, 3))


def in_neighbourhoods(q: Tensor, k: Tensor, v: Tensor, *, side: int) -> Tensor:
    """Each pixel looks at the square of pixels around it (Hassani et al. 2022, arXiv 2204.07143).

    At the edges the square is moved into the image, so that each pixel sees as many others.

    Queries are taken in tiles, of 8×8 where 8 divides H and W. A tile has the (8 + side - 1)² keys that any of its
    queries sees, and a mask. With `side` 7 that is three copies of keys and values, not 49, one for each query.

    Args:
        q: The queries, as the others (B, heads, H, W, E), H and W not below `side`.
        k: The keys.
        v: The values.
        side: The side of the squares, odd.

    Returns:
        What the pixels see, like q.
    """
    tall, rows, sees_rows = _near(q.shape[2], side, q.device)
    wide, columns, sees_columns = _near(q.shape[3], side, q.device)
    keys, values = (x[:, :, rows[:, None, :, None], columns[:, None, :]].flatten(4, 5) for x in (k, v))
    mask = sees_rows[:, None, :, None, :, None] & sees_columns[None, :, None, :, None, :]
    out = F.scaled_dot_product_attention(
        _windows(q, tall, wide),
        keys.flatten(2, 3).flatten(0, 1),
        values.flatten(2, 3).flatten(0, 1),
        mask.flatten(4, 5).flatten(2, 3).flatten(0, 1),
        scale=1.0,
    )
    return _image(out, q, tall, wide)


def _near(length: int, side: int, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """Of one axis: the tile's length T, the indices of the keys of each tile (n, S), and which of them each query sees.

    The last is (n, T, S).
    """
    tile = math.gcd(length, TILE)
    span = min(tile + side - 1, length)
    queries = torch.arange(length, device=device).reshape(-1, tile)
    firsts = (queries - side // 2).clamp(0, length - side)  # the first key that each query sees
    keys = firsts[:, :1].clamp(max=length - span) + torch.arange(span, device=device)
    after = keys[:, None, :] - firsts[:, :, None]
    return tile, keys, (after >= 0) & (after < side)


def _windows(x: Tensor, tall: int, wide: int) -> Tensor:
    """(B, heads, H, W, E) -> (B·heads, windows, pixels of a window, E)."""
    batch, heads, height, width, size = x.shape
    parts = x.reshape(batch * heads, height // tall, tall, width // wide, wide, size)
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _image(windows: Tensor, like: Tensor, tall: int, wide: int) -> Tensor:
    """What `_windows` made, as an image of the shape of `like` again."""
    batch, heads, height, width, size = like.shape
    parts = windows.reshape(batch, heads, height // tall, width // wide, tall, wide, size)
    return parts.transpose(3, 4).reshape(like.shape)
