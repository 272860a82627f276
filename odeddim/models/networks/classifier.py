"""A small classifier of Fashion-MNIST, whose pooled last layer gives the features that sets of images are compared by.

`benchmarks/train_classifier.py` trained it.

It is no Inception network: its distances have a scale of their own, and are comparable among themselves alone.
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
        """What the logits are linear in: the last layer's mean over the image, (B, 64)."""
        h: Tensor = self.body(x)
        return h.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class _Residual(nn.Module):
    """(B, C, H, W) of the same shape: x plus two convolutions of it."""

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
    """A classifier in evaluation mode, what its file says of it, and the file's SHA-256."""

    network: Classifier
    description: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """What it is, in words: "a classifier of Fashion-MNIST (test accuracy 92.9%)"."""
        return f"a classifier of {self.description['data']} (test accuracy {self.description['accuracy']:.1%})"


def write(path: Path, network: Classifier, description: dict[str, Any]) -> None:
    """Weights and description into one safetensors file; the same bytes for the same weights.

    description: what `read` gives back; `data` and `accuracy` at least. Raises InputError if it cannot be written.
    """
    # One entry of metadata: safetensors writes several in an order of its own.
    header = json.dumps({"format": FORMAT, "version": VERSION, **description}, ensure_ascii=False)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"description": header}))


def read(path: Path = BUILT_IN) -> Trained:
    """The classifier of a file that `write` wrote. Raises InputError naming the file, if it is anything else."""
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
