"""EDM's and EDM2's network pickles (github.com/NVlabs/edm and edm2): {"ema": network, ...} in a .pkl.

Reading a pickle runs the code that it holds, and needs its own code (`torch_utils`, `dnnlib`) on the PYTHONPATH. The
network is D(x, σ[, one-hot classes]), which returns the denoised image. Its input x is x0 + σ·ε, and its label is σ.
Networks with other preconditionings (VP, VE, iDDPM) are stored as the same function. The noise levels are those that
the network says it supports. Where a network says 0 or ∞, as EDM's own do, the limits are 0.002 and 80, as in EDM's
sampler; EDM2's networks (arXiv 2312.02696) name none. An iDDPM network rounds σ to the nearest of its 1000 levels. The
schedule then consists of these levels, and the grid "edm" uses only them.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from odeddim.models import weights
from odeddim.models.guarded import failures_of
from odeddim.ode.conditions import Classes
from odeddim.ode.field import VectorField
from odeddim.ode.grids import EDM_RANGE
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

RUNS_CODE = True
LATENT = "images of 4 channels are the data of Stable Diffusion's autoencoder, which is not loaded"


def matches(path: Path) -> bool:
    """Return whether a path is a file with the suffix .pkl. The file is not opened."""
    return path.suffix.lower() == ".pkl" and path.is_file()


def read(path: Path) -> VectorField:
    """Read the EMA network of a pickle. This runs the code in the file.

    Args:
        path: The pickle.

    Returns:
        The model, in float32 on every device.

    Raises:
        InputError: If the pickle cannot be read or holds no network of EDM, or if it needs a module that is missing.
    """
    network, kind = _network(path)
    channels, size, classes = (_number(network, name, path) for name in ("img_channels", "img_resolution", "label_dim"))
    schedule = _schedule(network, path)
    if channels < 1 or size < 1:
        raise InputError(
            f"{path} holds no network of EDM, because its images would be {channels}×{size}×{size}: check that it is "
            "the right file"
        )
    network.eval().requires_grad_(False).float()
    network.use_fp16 = False  # EDM's samplers use float16 on GPUs, which is too coarse for an inversion
    # A network that was trained without dropout of labels does not know the row of zeros.
    null = classes if classes and getattr(getattr(network, "model", None), "label_dropout", 0) else None
    words = f"{type(network).__name__}, {channels}×{size}×{size}" + (f", {classes} classes" if classes else "")
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    return VectorField(
        Denoiser(network, classes, path),
        schedule,
        predicts="x0",
        shape=(channels, size, size),
        name=str(path.absolute()),
        sha256=weights.hash_of(path),
        details={
            "found": f"{'EDM2' if _is_edm2(network) else 'EDM'} pickle, {words}, {millions:.1f} M parameters",
            "weights": kind,
            "architecture": {"network": type(network).__name__, "label_dim": classes},
            "assumed": [LATENT] if _is_edm2(network) and channels == 4 else [],
        },
        conditions=Classes(classes, null) if classes else None,
    )


class Denoiser(nn.Module):
    """D(x, σ[, label]) with class labels (B,) int64 in place of EDM's one-hot rows. The label `classes` means none."""

    def __init__(self, network: nn.Module, classes: int, path: Path) -> None:
        super().__init__()
        self.network, self.classes, self.path = network, classes, path

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), sigma (B,) -> (B, C, H, W)."""
        told = None if label is None else F.one_hot(label, self.classes + 1)[:, : self.classes].to(sigma.dtype)
        with failures_of(self.path, x):
            out = self.network(x, sigma, told)
        if not isinstance(out, Tensor):
            raise InputError(f"the network in {self.path} returns a {type(out).__name__}, not a denoised image")
        return out


def _network(path: Path) -> tuple[Any, str]:
    """Return the network in a pickle, and which weights it has."""
    try:
        with path.open("rb") as file:
            found = pickle.load(file)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} needs the module {error.name!r} of the code that wrote it: get github.com/NVlabs/edm or edm2 "
            "(or the code that the network was trained with), and add its folder to PYTHONPATH"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or weights.line(error)}): check the path and its permissions"
        ) from error
    except Exception as error:  # a damaged file, or the code in it, may raise any type
        words = f"{type(error).__name__}: {weights.line(error)}"
        raise InputError(f"{path} cannot be read as a pickle of EDM ({words}): copy it again") from error
    network, kind = (found["ema"], "ema") if isinstance(found, Mapping) and "ema" in found else (found, "as saved")
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} holds no network of EDM under 'ema', but a {type(network).__name__}")
    return network, kind


def _schedule(network: nn.Module, path: Path) -> Schedule:
    """Return the noise levels of a network: a range, or the levels `u` of an iDDPM network, which fall to 0."""
    levels = getattr(network, "u", None)
    if isinstance(levels, Tensor) and levels.ndim == 1 and len(levels) > 2 and float(levels[-1]) == 0:
        try:
            return Schedule.from_sigmas(levels[:-1].flip(0))
        except InputError as error:
            raise InputError(f"{path}: the noise levels u of the network are not usable: {error}") from error
    if _is_edm2(network):
        return Schedule.edm()
    low, high = _level(network, "sigma_min", path), _level(network, "sigma_max", path)
    low, high = low or EDM_RANGE[0], EDM_RANGE[1] if high == math.inf else high
    if not 0 < low < high:
        raise InputError(
            f"{path} holds no network of EDM, because its noise levels σ go from {low} to {high}: check that it is the "
            "right file"
        )
    return Schedule.edm(sigma_min=low, sigma_max=high)


def _is_edm2(network: nn.Module) -> bool:
    """Return whether a network is EDM2's, which names no noise levels and keeps its U-Net as `unet`."""
    return isinstance(getattr(network, "unet", None), nn.Module) and not hasattr(network, "sigma_min")


def _number(network: nn.Module, name: str, path: Path) -> int:
    value = getattr(network, name, None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(
            f"{path} holds a {type(network).__name__}, which is not a network of EDM, because its {name} is "
            f"{value!r:.50}: check that it is the right file"
        )
    return value


def _level(network: nn.Module, name: str, path: Path) -> float:
    value = getattr(network, name, None)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InputError(
            f"{path} holds a {type(network).__name__}, which is not a network of EDM, because its {name} is "
            f"{value!r:.50}: check that it is the right file"
        )
    return float(value)
