"""The shape of a network's data, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odeddim.models.components import CONFIG
from odeddim.models.pipelines import packed
from odeddim.models.pipelines.videos import SIDES
from odeddim.types import InputError


def shape_of(kind: str, config: Mapping[str, Any], where: Path, autoencoder: Path) -> tuple[int, ...]:
    """Return the shape (c, h, w) of the data, or (c, f, h, w) of those of videos.

    Args:
        kind: The class of the network.
        config: Its config.
        where: The folder of the network.
        autoencoder: The folder of the autoencoder, which may be missing.

    Raises:
        InputError: If the config does not give the shape, or the network also takes an image or a mask.
    """
    channels, sides = config.get("in_channels"), config.get("sample_size")
    answer = config.get("out_channels") or channels
    if kind in packed.PATCH:
        # Of the numbers in a token: 4 for each channel, as many as patch_size² times the channels of the answer.
        sides, patch = packed.SIDE, config.get("patch_size", packed.PATCH[kind])
        answer = answer * patch**2 // 4 if type(answer) is type(patch) is int else answer
        answer = channels // 4 if config.get("out_channels") is None and type(channels) is int else answer
        channels = channels // 4 if type(channels) is int and channels % 4 == 0 else None
    if of_video := kind in SIDES:
        sides = SIDES[kind](config, autoencoder)
    shape: list[Any] = [channels, *(sides if isinstance(sides, list) else [sides, sides])]
    if len(shape) != 3 + of_video or not all(type(each) is int and 0 < each < 1 << 16 for each in shape):
        named = "sample_frames, sample_height and sample_width" if of_video else "sample_size"
        raise InputError(f"{where / CONFIG} must give in_channels and {named} as whole numbers: write them into it")
    if answer not in (shape[0], 2 * shape[0]):  # twice as many: it predicts variances too
        raise InputError(
            f"{where / CONFIG}: the network takes {channels} channels and returns {answer}, so it also needs an image "
            "or a mask as its input, which odeddim does not support"
        )
    return tuple(shape)
