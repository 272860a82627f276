"""Data packed as tokens: networks that take the 2×2 values of each channel in a patch as one row of numbers.

Their configs give the numbers in a row as in_channels, and no size: `Packed` is 4 times as wide as the data.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PATCH = {"FluxTransformer2DModel": 1, "QwenImageTransformer2DModel": 2}
"""These networks, with the patch_size that their configs need not name."""
SIDE = 128  # of data, where their pipelines are given no size: images of 1024×1024


def packed(x: Tensor) -> Tensor:
    """Data (B, c, h, w) as tokens (B, h/2·w/2, 4·c), row by row."""
    return pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens (B, h/2·w/2, 4·c) as data like x, (B, c, h, w)."""
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(x), -1, x.shape[2] // 2, x.shape[3] // 2), 2)
