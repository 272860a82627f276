"""A small classifier of Fashion-MNIST. Its pooled last layer gives features for comparing sets of images.

`benchmarks/train_classifier.py` trained it. Distances between its features have another scale than those between
Inception's: compare them only with each other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.storage.atomic import replacing
from odeddim.types import InputError

FORMAT, VERSION = "odeddim classifier", 1
SHAPE, CLASSES, FEATURES = (1, 28, 28), 10, 64
DATA = Path(__file__).resolve().parent.parent.parent / "data"
BUILT_IN = DATA / "fashion-mnist-features.safetensors"
REFERENCE = DATA / "fashion-mnist-reference.npz"


class Classifier(nn.Module):
    """Images (B, 1, 28, 28) in [-1, 1] -> logits of the 10 classes, (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(1, 16),
            _convolution(16, 32, stride=2),  # 14×14
            _Residual(32),
            _convolution(32, FEATURES, stride=2),  # 7×7
            _Residual(FEATURES),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Compute the features (B, 64) of images (B, 1, 28, 28): the mean of the last layer over the image.

        The logits are a linear function of the features.
        """
        h: Tensor = self.body(x)
        return h.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class _Residual(nn.Module):
    """x plus two convolutions of x: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def _convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()
    )


# Files.


@dataclass(frozen=True)
class Trained:
    """A classifier from a file.

    Attributes:
        network: The classifier, in evaluation mode.
        description: The description in the file.
        sha256: The hash of the file.
    """

    network: Classifier
    description: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """The classifier in words, such as "a classifier of Fashion-MNIST (test accuracy 92.9%)"."""
        return f"a classifier of {self.description['data']} (test accuracy {self.description['accuracy']:.1%})"


def write(path: Path, network: Classifier, description: dict[str, Any]) -> None:
    """Write a classifier to a safetensors file. The same weights and description give the same bytes.

    Args:
        path: The file.
        network: The classifier.
        description: The description, JSON-able, with at least `data` (the data set) and `accuracy` (from 0 to 1).

    Raises:
        InputError: If the file cannot be written.
    """
    # A single entry of metadata, because safetensors writes several in an arbitrary order.
    header = json.dumps({"format": FORMAT, "version": VERSION, **description}, ensure_ascii=False)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"description": header}))


def read(path: Path = BUILT_IN) -> Trained:
    """Read a classifier from a file of `write`.

    Args:
        path: The file; by default the built-in classifier.

    Returns:
        The classifier.

    Raises:
        InputError: If the file cannot be read, is damaged, or is of another kind.
    """
    try:
        blob = path.read_bytes()
        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        description = json.loads(header["__metadata__"]["description"])
        if (description["format"], description["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it holds {description['format']!r}, version {description['version']!r}")
        description["accuracy"] = float(description["accuracy"])
        network = Classifier()
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be read as a classifier of odeddim ({reason}): copy or train it again"
        ) from error
    network.eval().requires_grad_(False)
    return Trained(network, description, hashlib.sha256(blob).hexdigest())
