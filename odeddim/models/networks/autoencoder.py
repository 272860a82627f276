"""The autoencoder of a latent model: images to the data that its network was trained on, and back.

Latent diffusion (arXiv 2112.10752) trains on data = (z - shift)·scale, where z is what an autoencoder makes of an
image. shift and scale are in its config, and differ between models. z is the mean of the autoencoder's
distribution and never a sample of it, which would come back another time; of a VQ model z is what is quantized on the
way back only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.models.components import CONFIG, changed_settings, config_of, library, made
from odeddim.models.weights import hash_of_networks
from odeddim.types import InputError

CLASSES = ("AutoencoderKL", "VQModel")
SCALE = 0.18215  # diffusers' documented default of both classes


class Autoencoder:
    """An AutoencoderKL or VQModel of diffusers as the codec of a VectorField.

    network: the module. image_shape: (C, H, W). shift, spread: one number, or one for each channel of z, and
    data = (z - shift)·scale/spread. sha256: the hash of its weights; with the numbers it makes this codec's own.

    It runs in float32, whatever the dtype of what it is given, for in 16 bits some overflow; and on one image at a
    time, so that no image depends on its neighbours. What comes out has the dtype of what went in.
    """

    def __init__(
        self,
        network: Any,
        image_shape: tuple[int, ...],
        *,
        scale: float,
        shift: Sequence[float] = (0.0,),
        spread: Sequence[float] = (1.0,),
        sha256: str = "",
    ) -> None:
        self.network = network.float().eval().requires_grad_(False)
        self.image_shape = image_shape
        self.sha256 = hashlib.sha256(repr((sha256, scale, *shift, *spread)).encode()).hexdigest()
        self._shift = torch.tensor(shift, dtype=torch.float32).reshape(-1, 1, 1)
        self._scale = scale / torch.tensor(spread, dtype=torch.float32).reshape(-1, 1, 1)

    @property
    def words(self) -> str:
        """What is done to z, in words: "0.18215·z"."""
        if self._shift.numel() > 1 or self._scale.numel() > 1:
            return "of z, shifted and scaled channel by channel"
        shift, scale = float(self._shift), float(self._scale)
        return f"{scale:g}·(z - {shift:g})" if shift else f"{scale:g}·z"

    def to(self, device: torch.device | str) -> Autoencoder:
        """This codec, moved to a device."""
        self.network.to(device=device)
        self._shift, self._scale = self._shift.to(device), self._scale.to(device)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> data (B, c, h, w), on this codec's device."""
        return self._each(images, lambda image: (self._latent(image) - self._shift) * self._scale)

    def decode(self, data: Tensor) -> Tensor:
        """Data (B, c, h, w) -> images (B, C, H, W), in [-1, 1] but for what the autoencoder overshoots."""
        return self._each(data, lambda each: self.network.decode(each / self._scale + self._shift).sample)

    def _latent(self, image: Tensor) -> Tensor:
        found = self.network.encode(image)
        z: Tensor = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
        return z

    def _each(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            rows = [function(row[None].to(self._scale.device, torch.float32)) for row in batch]
        return torch.cat(rows).to(batch.dtype)


def read(folder: Path, data_shape: tuple[int, ...]) -> tuple[Autoencoder, str, list[str]]:
    """The autoencoder in a folder.

    Args:
        folder: of the part.
        data_shape: (c, h, w) of what the network takes.

    Returns:
        The codec, what it is in words, and what had to be assumed.

    Raises:
        InputError: for another class, and for an autoencoder whose data have another number of channels.
    """
    where, config = folder / CONFIG, config_of(folder)
    kind = str(config.get("_class_name"))
    if kind not in CLASSES:
        raise InputError(f"{where} describes a {kind}: odeddim reads {' and '.join(CLASSES)}")
    make = getattr(library("diffusers"), kind).from_config
    network: Any = made(lambda: make(config), folder)
    its = network.config
    channels = its.get("vq_embed_dim") or its["latent_channels"]
    if channels != data_shape[0]:
        raise InputError(
            f"{folder} makes latents of {channels} channels, but the network takes {data_shape[0]}: "
            "they do not belong together"
        )
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    mean, spread = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (spread is None) or (mean is not None and shift):
        raise InputError(f"{where} says one of latents_mean and latents_std, or a shift_factor too: which holds?")
    factor = 2 ** (len(its["block_out_channels"]) - 1)
    codec = Autoencoder(
        network,
        (its["in_channels"], factor * data_shape[1], factor * data_shape[2]),
        scale=_numbers(SCALE if scale is None else scale, 1, 0.0, where)[0],
        shift=_numbers(shift or 0.0 if mean is None else mean, channels, -math.inf, where),
        spread=_numbers(1.0 if spread is None else spread, channels, 0.0, where),
        sha256=hash_of_networks(network, settings=changed_settings(network)),
    )
    assumed = [] if scale is not None else [f"the autoencoder's scaling factor {SCALE}, which its config does not say"]
    return codec, f"{kind} with data {codec.words}", assumed


def _numbers(value: Any, count: int, above: float, where: Path) -> list[float]:
    """A finite number above another, or `count` of them, as a list. Raises InputError for anything else."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(numbers) not in (1, count) or not all(type(n) in (int, float) and above < n < math.inf for n in numbers):
        raise InputError(f"{where}: what data are shifted and scaled by is not {value!r:.80}, but 1 or {count} numbers")
    return [float(number) for number in numbers]
