"""The autoencoder of a latent model, between images and the data that the network was trained on.

Latent diffusion (arXiv 2112.10752) trains on data = (z - shift)·scale, where z is the autoencoder's code of an image.
The autoencoder's config holds shift and scale, which differ between models. z is the mean of the autoencoder's
distribution, not a sample: a sample would differ from call to call. For a VQ model, z is the value before quantization;
`decode` quantizes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeddim.models.components import CONFIG, changed_settings, class_of, config_of, made
from odeddim.models.networks import video_autoencoders
from odeddim.models.networks.video_autoencoders import About
from odeddim.models.weights import hash_of_networks
from odeddim.types import InputError

SCALE = 0.18215  # the documented default of AutoencoderKL and VQModel in diffusers


@dataclass(frozen=True)
class _Kind:
    """How a class of autoencoders names its settings.

    Attributes:
        channels: The settings that may give the number of channels of z; the first one holds.
        images: The setting that gives the number of channels of images.
        levels: The list with an item for each level, between which images are halved.
        between: Whether the list has an item for each halving, and not for each level.
        scale: The scale of a config that has none.
    """

    channels: tuple[str, ...] = ("latent_channels",)
    images: str = "in_channels"
    levels: str = "block_out_channels"
    between: bool = False
    scale: float = SCALE


KINDS = {
    "AutoencoderKL": _Kind(),
    "VQModel": _Kind(channels=("vq_embed_dim", "latent_channels")),
    "AutoencoderDC": _Kind(levels="encoder_block_out_channels", scale=1.0),
    "AutoencoderKLQwenImage": _Kind(
        channels=("z_dim",), images="input_channels", levels="temperal_downsample", between=True, scale=1.0
    ),
}
"""The classes for images. Qwen-Image's is one of videos, for which an image is a video of one frame."""
CLASSES = (*KINDS, *video_autoencoders.SCALES)
"""The supported classes."""


class Units(NamedTuple):
    """The units of an autoencoder's data, (z - shift)·scale/spread, and of its images.

    Attributes:
        scale: The scale.
        shift: One number, or one for each channel of z.
        spread: One number, or one for each channel of z.
        from_zero: Whether the module was used on images in [0, 1]; otherwise in [-1, 1].
    """

    scale: float
    shift: Sequence[float] = (0.0,)
    spread: Sequence[float] = (1.0,)
    from_zero: bool = False


class Autoencoder:
    """An autoencoder of diffusers, of one of the `CLASSES`, as the codec of a VectorField.

    The autoencoder runs in float32, because some autoencoders overflow in 16 bits. The result has the dtype of the
    input. Each image is a batch of its own, so that it does not depend on the other images.

    Attributes:
        network: The module.
        image_shape: The shape (C, H, W) of the images, or (C, F, H, W) of videos.
        sha256: The hash of the weights and the units.
    """

    def __init__(
        self,
        network: Any,
        image_shape: tuple[int, ...],
        units: Units,
        *,
        leading: int = 0,
        sha256: str = "",
    ) -> None:
        """Make a codec.

        Args:
            network: The module.
            image_shape: The shape (C, H, W) of the images, or (C, F, H, W) of videos.
            units: The units of data and images.
            leading: How many copies of the first frame the data of a video begin with, which `decode` leaves out.
            sha256: The hash of the weights.
        """
        self.network = network.float().eval().requires_grad_(False)
        self.image_shape = image_shape
        scale, shift, spread, self._from_zero = units
        more = ("from zero",) if self._from_zero else ()
        self.sha256 = hashlib.sha256(repr((sha256, scale, *shift, *spread, *more)).encode()).hexdigest()
        ones = [1] * (len(image_shape) - 1)
        self._shift = torch.tensor(shift, dtype=torch.float32).reshape(-1, *ones)
        self._scale = scale / torch.tensor(spread, dtype=torch.float32).reshape(-1, *ones)
        self._of_frames = type(network).__name__ == "AutoencoderKLQwenImage"
        self._leading = leading

    @property
    def words(self) -> str:
        """The relation between the data and z in words, such as "0.18215·z"."""
        if self._shift.numel() > 1 or self._scale.numel() > 1:
            images = ", and images in [0, 1]" if self._from_zero else ""
            return f"of z, shifted and scaled channel by channel{images}"
        shift, scale = float(self._shift), float(self._scale)
        return f"{scale:g}·(z - {shift:g})" if shift else f"{scale:g}·z"

    def to(self, device: torch.device | str) -> Autoencoder:
        """Move this codec to a device, and return it."""
        self.network.to(device=device)
        self._shift, self._scale = self._shift.to(device), self._scale.to(device)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [-1, 1] as data (B, c, h, w) on this codec's device."""
        return self._each(images, lambda image: (self._latent(image) - self._shift) * self._scale)

    def decode(self, data: Tensor) -> Tensor:
        """Decode data (B, c, h, w) to images (B, C, H, W) in about [-1, 1]: the autoencoder may overshoot."""
        return self._each(data, lambda each: self._image(each / self._scale + self._shift))

    def _latent(self, image: Tensor) -> Tensor:
        image = (image + 1) / 2 if self._from_zero else image
        found = self.network.encode(image[:, :, None] if self._of_frames else image)
        z: Tensor = found.latent_dist.mean if hasattr(found, "latent_dist") else found[0]
        z = torch.cat([z[:, :, :1]] * self._leading + [z], dim=2) if self._leading else z
        return z[:, :, 0] if self._of_frames else z

    def _image(self, z: Tensor) -> Tensor:
        z = z[:, :, self._leading :] if self._leading else z
        image: Tensor = self.network.decode(z[:, :, None] if self._of_frames else z).sample
        image = 2 * image - 1 if self._from_zero else image
        return image[:, :, 0] if self._of_frames else image

    def _each(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        rows = [function(row[None].to(self._scale.device, torch.float32)) for row in batch]
        return torch.cat(rows).to(batch.dtype)


def read(folder: Path, data_shape: tuple[int, ...], units: Units | None = None) -> tuple[Autoencoder, str, list[str]]:
    """Read the autoencoder in a folder.

    Args:
        folder: The folder of the autoencoder.
        data_shape: The shape (c, h, w) of the network's data, or (c, f, h, w) of those of videos.
        units: The units that the network was trained in; by default those of the autoencoder's config.

    Returns:
        The codec, its description in words, and the assumed values in words.

    Raises:
        InputError: If the class is unknown, if a file is missing or damaged, if the settings contradict each other, or
            if the autoencoder and the network have different numbers of channels.
    """
    where, config = folder / CONFIG, config_of(folder)
    kind = str(config.get("_class_name"))
    if kind not in CLASSES:
        raise InputError(f"{where} describes a {kind}, but odeddim supports only {', '.join(CLASSES)}")
    make = class_of("diffusers", kind).from_config
    network: Any = made(lambda: make(config), folder)
    its = network.config
    about = _about(KINDS[kind], its, data_shape) if kind in KINDS else video_autoencoders.about(its, data_shape)
    if about.channels != data_shape[0]:
        raise InputError(
            f"{folder} has latents of {about.channels} channels, but the network takes {data_shape[0]}: copy both "
            "from one pipeline"
        )
    its_units, assumed = _units_of(config, its, about, where) if units is None else (units, [])
    codec = Autoencoder(
        network,
        about.image_shape,
        its_units,
        leading=about.leading,
        sha256=hash_of_networks(network, settings=changed_settings(network)),
    )
    return codec, f"{kind} with data {codec.words}", assumed


def _units_of(config: Mapping[str, Any], its: Mapping[str, Any], about: About, where: Path) -> tuple[Units, list[str]]:
    """The units that a config gives, and the assumed values in words. its: the config with the class's defaults."""
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    both = ("latents_mean", "latents_std")
    mean, spread = ((config if any(name in config for name in both) else its).get(name) for name in both)
    if (mean is None) != (spread is None) or (mean is not None and shift):
        raise InputError(
            f"{where} must hold both latents_mean and latents_std and no shift_factor, or neither of the two: correct "
            "the file"
        )
    units = Units(
        _numbers(about.scale if scale is None else scale, 1, 0.0, where)[0],
        _numbers(shift or 0.0 if mean is None else mean, about.channels, -math.inf, where),
        _numbers(1.0 if spread is None else spread, about.channels, 0.0, where),
    )
    known = scale is not None or about.scale == 1
    return units, [] if known else [f"the autoencoder's scaling factor {about.scale}, which its config does not give"]


def _about(names: _Kind, config: Mapping[str, Any], data_shape: tuple[int, ...]) -> About:
    """What an autoencoder of images is, by its config."""
    factor = 2 ** (len(config[names.levels]) - (not names.between))
    shape = (config[names.images], *(factor * side for side in data_shape[1:]))
    return About(next(config[name] for name in names.channels if config.get(name)), shape, names.scale)


def _numbers(value: Any, count: int, above: float, where: Path) -> list[float]:
    """Return one finite number above a bound, or `count` of them, as a list. Raises InputError for other values."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(numbers) not in (1, count) or not all(type(n) in (int, float) and above < n < math.inf for n in numbers):
        raise InputError(f"{where}: a scale or shift of the data must be 1 or {count} numbers, not {value!r:.80}")
    return [float(number) for number in numbers]
