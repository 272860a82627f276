"""Features of images, for comparing sets of images: from the built-in classifier, Inception, or any network.

    which                      network                                            measure
    fashion-mnist              odeddim's classifier of Fashion-MNIST, 64 features Fréchet distance
    FILE.safetensors           another classifier (`train_classifier.py`)         Fréchet distance
    inception:WEIGHTS.pth      the Inception network of the FID, 2048 features    FID
    FILE.pt2                   a torch.export program                             Fréchet distance
    FILE.pt, FILE.pts          a TorchScript program                              Fréchet distance

A program takes images (B, C, H, W) in [-1, 1] and returns features (B, d) or (B, d, 1, 1). Loading a file never runs
code from the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.models.networks import classifier
from odeddim.models.programs import load_program
from odeddim.storage.errors import read_errors
from odeddim.storage.png import to_bytes
from odeddim.types import InputError, pick

DEFAULT = "fashion-mnist"
INCEPTION = "inception:"
BLOCK = 64
"""The number of images that a network takes in one call."""

_INCEPTION_BLOCK = 16  # fewer, because Inception scales each image to 299×299
_NAMES = (DEFAULT, f"{INCEPTION}WEIGHTS.pth")


class Features:
    """A network that computes features of images.

    The network always takes `block` images in one call; a smaller batch is filled up. The last digits of a convolution
    depend on the shape of the batch. With a fixed shape, an image has the same features, bit for bit, whichever images
    come with it.

    Attributes:
        name: The network in words, for a table's header.
        sha256: The hash of the file with the weights; "" without a file.
        measure: The name of a Fréchet distance between these features: "FID" for Inception only.
        shape: The shape (C, H, W) of the images, or None if the network takes any shape.
        block: The number of images in one call of the network.
        device: The device that the network runs on.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        name: str,
        *,
        sha256: str = "",
        measure: str = "Fréchet distance",
        shape: tuple[int, ...] | None = None,
        block: int = BLOCK,
        device: str | torch.device = "cpu",
    ) -> None:
        """Make features from a network.

        Args:
            network: A function of images (block, C, H, W), float32 in [-1, 1] on `device`. It returns a tensor
                (block, d) or (block, d, 1, 1).
            name: The network in words.
            sha256: The hash of the file with the weights.
            measure: The name of a Fréchet distance between these features.
            shape: The shape (C, H, W) that the images must have; None for any shape.
            block: The number of images in one call of `network`.
            device: The device that `network` runs on.
        """
        self.name = name
        self.sha256 = sha256
        self.measure = measure
        self.shape = shape
        self.block = block
        self.device = torch.device(device)
        self._network = network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features of images.

        Args:
            images: The images (B, C, H, W) in [-1, 1], floating-point, at least one.

        Returns:
            The features (B, d), float32 on the CPU.

        Raises:
            InputError: If the network does not take these images, or if its result has a wrong shape or is not finite.
        """
        if images.ndim != 4 or not len(images) or not images.is_floating_point():
            raise InputError(
                f"a feature network takes floating-point images (B, C, H, W) in [-1, 1], at least one, not of "
                f"{images.dtype} and shape {tuple(images.shape)}"
            )
        if self.shape is not None and tuple(images.shape[1:]) != self.shape:
            has, wants = "×".join(map(str, images.shape[1:])), "×".join(map(str, self.shape))
            raise InputError(
                f"{self.name} takes images of {wants} (channels×height×width), not {has}: choose other features with "
                "features=..."
            )
        return torch.cat([self._block(block) for block in torch.split(images, self.block)])

    def _block(self, images: Tensor) -> Tensor:
        count = len(images)
        # A contiguous copy: a kernel may sum another memory layout in another order, with other last digits.
        block = images.to(self.device, torch.float32).clone(memory_format=torch.contiguous_format)
        if count < self.block:  # the features of these copies are dropped
            block = torch.cat([block, block[:1].expand(self.block - count, -1, -1, -1)])
        out = self._network(block)
        if not isinstance(out, Tensor) or out.shape[:1] != (self.block,) or out[0].numel() != out.shape[1:2].numel():
            is_now = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise InputError(
                f"{self.name} returned {is_now} for {self.block} images instead of features (B, d): choose another "
                "network with features=..."
            )
        features = out.flatten(1)[:count].to("cpu", torch.float32)
        if not bool(torch.isfinite(features).all()):
            if bool(torch.isfinite(images).all()):
                raise InputError(
                    f"{self.name} returned NaN or infinite values for finite images: choose another network with "
                    "features=..."
                )
            raise InputError(
                f"{self.name} returned NaN or infinite values: the images hold such values; leave those images out"
            )
        return features


def load_features(
    which: str | Path | Callable[[Tensor], Tensor] = DEFAULT, *, device: str | torch.device | None = None
) -> Features:
    """Load a feature network in evaluation mode.

    Args:
        which: A name or a file (see the table above), a PyTorch module, or a function of images: (B, C, H, W) float32
            in [-1, 1] -> (B, d). A `Features` object is returned unchanged.
        device: The device that the network runs on; torch's default device if not given. A function gets its images
            on this device.

    Returns:
        The features.

    Raises:
        InputError: If the name is unknown (the message names similar ones), if the file is not a feature network or
            could run code, or if a library is missing.
    """
    place = torch.device(device) if device is not None else torch.get_default_device()
    if isinstance(which, Features):
        return which
    if isinstance(which, torch.nn.Module):
        return Features(which.eval().to(place), f"a network ({type(which).__name__})", device=place)
    if not isinstance(which, (str, Path)):
        if not callable(which):
            raise InputError(
                f"a feature network is a name, a file or a function of images, not a value of type "
                f"{type(which).__name__}: give one of these with features=..."
            )
        return Features(which, f"a function ({getattr(which, '__name__', type(which).__name__)})", device=place)
    if str(which) == DEFAULT:
        return _classifier(classifier.BUILT_IN, place)
    if str(which).startswith(INCEPTION):
        return _inception(Path(str(which).removeprefix(INCEPTION)), place)
    path = Path(which)
    if not os.path.exists(path):
        pick(str(which), _NAMES, "feature network (neither a built-in name nor an existing file)")
    return _classifier(path, place) if path.suffix == ".safetensors" else _program(path, place)


def _classifier(path: Path, device: torch.device) -> Features:
    trained = classifier.read(path)
    network = trained.network.to(device)
    return Features(network.features, trained.name, sha256=trained.sha256, shape=classifier.SHAPE, device=device)


def _program(path: Path, device: torch.device) -> Features:
    with read_errors(path, "a feature network"):
        blob = path.read_bytes()
        try:
            program = load_program(blob, device)
        except InputError as error:
            raise InputError(f"{path} {error}") from error

    def network(images: Tensor) -> Any:
        try:
            return program.network(images)
        except Exception as error:  # PyTorch raises several types for a wrong size, and a program may raise any
            size, reason = "×".join(map(str, images.shape[1:])), " ".join(str(error).split())[-200:]
            raise InputError(f"{path} fails on images of {size} (channels×height×width): {reason}") from error

    block = program.batch if program.fixed else min(BLOCK, program.batch or BLOCK)
    return Features(
        network,
        f"the network {path.name}",
        sha256=hashlib.sha256(blob).hexdigest(),
        shape=program.shape,
        block=block or BLOCK,
        device=device,
    )


def _inception(path: Path, device: torch.device) -> Features:
    """The Inception network of Heusel et al. (arXiv 1706.08500), from torch-fidelity, with its weights from a file."""
    for module, package in (("torchmetrics", "torchmetrics"), ("torch_fidelity", "torch-fidelity")):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"the Inception network needs {package}: pip install 'odeddim[fid]'")
    from torchmetrics.image import fid

    with read_errors(path, "the weights of Inception"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity does not set weights_only
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path} holds more than weights, and that could run code: get the weights from another source"
            ) from error
        inception = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    inception.to(device).requires_grad_(False)

    def network(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(
                f"Inception takes images with 1 or 3 channels, not {images.shape[1]}: choose another network with "
                "features=..."
            )
        out: Tensor = inception(to_bytes(images).expand(-1, 3, -1, -1).to(device))
        return out

    name = f"Inception-v3 (weights {sha256[:8]})"
    return Features(network, name, sha256=sha256, measure="FID", block=_INCEPTION_BLOCK, device=device)
