"""The autoencoders of video models: Wan's (arXiv 2503.20314) and CogVideoX's (2408.06072), as diffusers has them.

Both are causal in time: the first frame is encoded by itself, and each of those after it together with the ones before
it. So they work on a few frames at a time, 4 of Wan and 8 of CogVideoX, and keep what the next ones need of those
before them: memory does not grow with the number of frames, but for the video itself, and nothing is approximated.
(CogVideoX normalizes over the frames that it takes together, so that their number belongs to the model.)

CogVideoX's makes 8k+1 frames of 2k+1 frames of data. A network that takes an even number of them (CogVideoX 1.5) gets
the first one twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SCALES = {"AutoencoderKLWan": 1.0, "AutoencoderKLCogVideoX": 1.15258426}
"""The classes, each with the scale of the data that holds where its config gives none."""


class About(NamedTuple):
    """What the config of an autoencoder says of its images and data.

    Attributes:
        channels: The channels of the data.
        image_shape: The shape of the images, or videos, of data of the network's own shape.
        scale: The scale of the data where the config gives none.
        leading: How many copies of the first frame the data begin with.
    """

    channels: int
    image_shape: tuple[int, ...]
    scale: float
    leading: int = 0


def about(config: Mapping[str, Any], data_shape: Sequence[int]) -> About:
    """What an autoencoder of videos is.

    Args:
        config: Its config.
        data_shape: The shape (c, f, h, w) of the network's data.
    """
    if "z_dim" in config:
        patch = config.get("patch_size") or 1
        channels, pixels = config["z_dim"], config["in_channels"] // patch**2
        ratio, leading = 2 ** sum(config["temperal_downsample"]), 0
        scale = SCALES["AutoencoderKLWan"]
    else:
        channels, pixels = config["latent_channels"], config["in_channels"]
        ratio, leading = int(config["temporal_compression_ratio"]), 1 - data_shape[1] % 2
        scale = SCALES["AutoencoderKLCogVideoX"]
    frames = 1 + ratio * (data_shape[1] - leading - 1)
    sides = (factor_of(config) * side for side in data_shape[2:])
    return About(channels, (pixels, frames, *sides), scale, leading)


def factor_of(config: Mapping[str, Any]) -> int:
    """How many times the height and the width of videos are those of their data.

    Args:
        config: The config of the autoencoder; what it does not hold is as its class has it.
    """
    levels = len(config.get("block_out_channels") or config.get("dim_mult") or range(4))
    return int(2 ** (levels - 1) * (config.get("patch_size") or 1))
