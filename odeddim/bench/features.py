"""Features of images, by which sets of images are compared: the built-in classifier, Inception, or any network.

    which                      what                                               measure
    fashion-mnist              odeddim's classifier of Fashion-MNIST, 64          Fréchet distance
    FILE.safetensors           another one (`train_classifier.py`)            Fréchet distance
    inception:WEIGHTS.pth      the Inception network of the FID, 2048             FID
    FILE.pt2                   a torch.export program                             Fréchet distance
    FILE.pt, FILE.pts          a TorchScript program                              Fréchet distance

Programs take images (B, C, H, W) in [-1, 1] and return (B, d) or (B, d, 1, 1). No file runs code of its own.
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
"""Images that a network sees at once."""

_INCEPTION_BLOCK = 16  # of 299×299
_NAMES = (DEFAULT, f"{INCEPTION}WEIGHTS.pth")


class Features:
    """A network as features: images (B, C, H, W) in [-1, 1] -> (B, d) float32 on the CPU.

    name: what the network is, in words for a table's header. sha256: of its weights' file, "" without one. measure:
    what a Fréchet distance of these features is called, "FID" of Inception's and of no others.

    The network always sees `block` images at once, filled up if need be: the last digits of convolutions depend on the
    shape of their batch, and so an image has the same features, bit for bit, in whatever company it comes.
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
        """network: images (block, C, H, W) float32 on `device` -> (block, d) or (block, d, 1, 1). shape: (C, H, W)."""
        self.name = name
        self.sha256 = sha256
        self.measure = measure
        self.shape = shape
        self.block = block
        self.device = torch.device(device)
        self._network = network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Errors: InputError for images that the network does not take, and for results that are no finite numbers."""
        if images.ndim != 4 or not len(images) or not images.is_floating_point():
            raise InputError(
                f"features are of images (B, C, H, W) in [-1, 1], at least one, not of {images.dtype} values of shape "
                f"{tuple(images.shape)}"
            )
        if self.shape is not None and tuple(images.shape[1:]) != self.shape:
            has, wants = "×".join(map(str, images.shape[1:])), "×".join(map(str, self.shape))
            raise InputError(
                f"{self.name} takes images of {wants} (channels×height×width), not {has}: choose other features"
            )
        return torch.cat([self._block(block) for block in torch.split(images, self.block)])

    def _block(self, images: Tensor) -> Tensor:
        count = len(images)
        # A copy: what lies elsewhere in memory may be read, and rounded, in another order.
        block = images.to(self.device, torch.float32).clone(memory_format=torch.contiguous_format)
        if count < self.block:  # any image will do
            block = torch.cat([block, block[:1].expand(self.block - count, -1, -1, -1)])
        out = self._network(block)
        if not isinstance(out, Tensor) or out.shape[:1] != (self.block,) or out[0].numel() != out.shape[1:2].numel():
            is_now = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise InputError(f"{self.name} returned {is_now} for {self.block} images, where features (B, d) are needed")
        features = out.flatten(1)[:count].to("cpu", torch.float32)
        if not bool(torch.isfinite(features).all()):
            culprit = "the features" if bool(torch.isfinite(images).all()) else "the images"
            raise InputError(f"{self.name} gave NaN or infinite values: look at {culprit}, which are so")
        return features


def load_features(
    which: str | Path | Callable[[Tensor], Tensor] = DEFAULT, *, device: str | torch.device | None = None
) -> Features:
    """A feature network by its name or file (see the table above), or any function of images; in evaluation mode.

    device: where it runs (torch's default device if not given); of a function, where its images are.
    Errors: InputError for an unknown name (with its nearest neighbours), for a file that is no feature network or might
    run code, and for libraries that are missing.
    """
    place = torch.device(device) if device is not None else torch.get_default_device()
    if isinstance(which, Features):
        return which
    if isinstance(which, torch.nn.Module):
        return Features(which.eval().to(place), f"a network ({type(which).__name__})", device=place)
    if not isinstance(which, (str, Path)):
        if not callable(which):
            raise InputError(
                f"a feature network is a name, a file or a function of images, not a {type(which).__name__}"
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
        except Exception as error:  # PyTorch's for images of another size, and whatever a program raises itself
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
    """The network of Heusel et al. (arXiv 1706.08500) as torch-fidelity has it, with its weights from a file."""
    for module, package in (("torchmetrics", "torchmetrics"), ("torch_fidelity", "torch-fidelity")):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"the Inception network needs {package}: pip install 'odeddim[fid]'")
    from torchmetrics.image import fid

    with read_errors(path, "the weights of Inception"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity leaves that to PyTorch's default
        except pickle.UnpicklingError as error:
            raise InputError(f"{path} holds more than weights, which could run code: get it from elsewhere") from error
        inception = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    inception.to(device).requires_grad_(False)

    def network(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"Inception takes images with 1 or 3 channels, not {images.shape[1]}: choose another")
        out: Tensor = inception(to_bytes(images).expand(-1, 3, -1, -1).to(device))
        return out

    name = f"Inception-v3 (weights {sha256[:8]})"
    return Features(network, name, sha256=sha256, measure="FID", block=_INCEPTION_BLOCK, device=device)
