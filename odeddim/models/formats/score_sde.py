"""Checkpoints of score_sde (Song et al. 2021, arXiv 2011.13456; github.com/yang-song/score_sde_pytorch).

A checkpoint_N.pth holds {"model": weights, "ema": averaged weights in order, "optimizer", "step"}, or the model's state
dict alone. Its buffer `sigmas` says the range of noise levels. The sidecar, NAME.json for NAME.pth, states the rest: by
the name of score_sde's configuration,

    {"config": "ve/cifar10_ncsnpp_continuous"}

or by the settings in it, as {"sde": "vesde", "continuous": true, "fir": true, ...}, which also change a named
configuration. {"weights": "raw"} takes the weights that are not averaged.

A network of the VE SDE returns the score, others ε. Where data.centered is false, score_sde's images lie in [0, 1].
Noise levels here are those of images in [-1, 1], twice score_sde's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from odeddim.models import components, weights
from odeddim.models import sidecar as beside
from odeddim.models.guarded import Loaded
from odeddim.models.networks import score_unet
from odeddim.models.networks.score_unet import ScoreSettings, ScoreUNet
from odeddim.models.score_sde_configs import CONFIGS
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, pick

_MARK = re.compile(rb"all_modules\.0\.(W|weight)")
_PARALLEL = "module."
_DDPM = {
    "resblock_type": "ddpm",
    "progressive": "none",
    "progressive_input": "none",
    "fir": False,
    "skip_rescale": False,
    "embedding_type": "positional",
}
"""What score_sde's `ddpm` network has of the settings of `ncsnpp`."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "sde": ("vpsde", "subvpsde", "vesde"),
    "model": ("ncsnpp", "ddpm"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip"),
    "progressive_input": ("none", "input_skip", "residual"),
    "embedding_type": ("positional", "fourier"),
}
_FLAGS = ("continuous", "centered", "scale_by_sigma", "fir", "skip_rescale")
_COUNTS = ("image_size", "num_res_blocks")
_LISTS = ("ch_mult", "attn_resolutions")
_BETAS = {"beta_min": 0.1, "beta_max": 20.0}
_NEEDED = (*_CHOICES, *_FLAGS, *_COUNTS, *_LISTS)
_ATTENTION = ("q", "k", "v", "out")
_LABEL = 999  # what a network of continuous time is told at t = 1
_ABOVE = 10**5  # above any count of levels, blocks or pixels


def matches(path: Path) -> bool:
    """Return whether a weights file holds the names of score_sde's networks. Nothing is unpickled."""
    return path.suffix.lower() in weights.SUFFIXES and _MARK.search(weights.names_in(path)) is not None


def read(path: Path) -> VectorField:
    """Read a checkpoint of score_sde.

    Args:
        path: The checkpoint.

    Returns:
        The model, with the averaged weights if the file holds them and the sidecar does not choose the raw ones.

    Raises:
        InputError: If the file or its sidecar cannot be used.
    """
    said = beside.read(path, ("config", "weights", *_NEEDED, *_BETAS))
    state, which = _chosen(weights.read(path), said.get("weights"), path)
    try:
        flags = _flags(said, path)
        settings, shape = _settings(flags, state)
        network = weights.described(lambda: ScoreUNet(settings))
        schedule, time, wrapped = _told(network, flags, _levels(state))
    except InputError as error:
        raise InputError(f"{path}, with {beside.place(path).name} beside it: {error}") from error
    called = {theirs: ours for ours, theirs in _called(network)}
    mine = {called.get(name, name): tensor for name, tensor in state.items() if name != "sigmas"}
    weights.fit(network, mine, path, called={ours: theirs for theirs, ours in called.items()})
    names = {"ddpm": "DDPM", "ncsnpp": "NCSN++" if settings.smooth else "DDPM++"}
    times = ",".join(map(str, settings.multipliers))
    found = f"score_sde checkpoint, {flags['sde']}, {names[flags['model']]} {settings.width}×({times})"
    betas = [f"{key} {value:g}" for key, value in _BETAS.items() if key not in said]
    return Loaded(
        wrapped,
        schedule,
        predicts="score" if flags["sde"] == "vesde" else "eps",
        time=time,
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={**network.config, **flags, "weights": which}),
        details={
            "architecture": network.config,
            "found": f"{found}, {components.size(network)}",
            "weights": which,
            "assumed": [] if flags["sde"] == "vesde" or not betas else [f"{' and '.join(betas)}, as in score_sde"],
        },
    )


class ScoreModel(nn.Module):
    """The network of score_sde in the units of images in [-1, 1].

    Attributes:
        unit: score_sde's σ over this one's: 0.5 where its images lie in [0, 1].
        divides: Whether the answer is divided by σ.
    """

    def __init__(self, network: ScoreUNet, unit: float, *, divides: bool, levels: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.unit, self.divides = network, unit, divides
        self.levels = levels  # float64: of a network that knows no others, and counts them from the highest

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score by x (B, C, H, W) for σ, or the index of a level, (B,)."""
        if self.levels is None:
            label, sigma = t * self.unit, t
        else:
            places = t.round().long()
            label = len(self.levels) - 1 - t.round()
            sigma = self.levels.to(t.device)[places].to(t.dtype)
        out: Tensor = self.network(x, label)
        return out / sigma[:, None, None, None] if self.divides else out * self.unit


class InTime(nn.Module):
    """The network of a VP or sub-VP SDE in continuous time: ε(x, t), t from 0 to 1."""

    def __init__(self, network: ScoreUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """ε for x (B, C, H, W) and t (B,)."""
        out: Tensor = self.network(x, t * _LABEL)
        return out


# The settings in the sidecar.


def _flags(said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of the sidecar, by score_sde's names."""
    for key in ("schedule", "predicts", "time", "classes", "null"):
        if key in said:
            raise InputError(f"{key} follows from the other settings of score_sde: leave it out")
    config = said.get("config")
    if config is not None and not isinstance(config, str):
        raise InputError(f"config must be a name, such as {next(iter(CONFIGS))!r}, not {config!r:.50}")
    flags = {**({} if config is None else CONFIGS[pick(config, CONFIGS, "configuration of score_sde")]), **said}
    flags = {**(_DDPM if flags.get("model") == "ddpm" else {}), **_BETAS, **flags}
    missing = [key for key in _NEEDED if key not in flags]
    if missing:
        example = json.dumps({"config": "ve/cifar10_ncsnpp_continuous"})
        raise InputError(
            f"the file does not hold the settings {', '.join(missing)} of its network: write the name of score_sde's "
            f"configuration into {beside.place(path)}, for example {example}, or its settings"
        )
    for key, choices in _CHOICES.items():
        if not isinstance(flags[key], str):
            raise InputError(f"{key} must be one of {', '.join(choices)}, not {flags[key]!r:.50}")
        pick(flags[key], choices, key)
    for key in _FLAGS:
        if not isinstance(flags[key], bool):
            raise InputError(f"{key} must be true or false, not {flags[key]!r:.50}")
    for key in _COUNTS:
        if type(flags[key]) is not int or not 0 < flags[key] < _ABOVE:
            raise InputError(f"{key} must be a whole number above 0, not {flags[key]!r:.50}")
    for key in _LISTS:
        if not isinstance(flags[key], list) or not all(type(n) is int and 0 < n < _ABOVE for n in flags[key]):
            raise InputError(f"{key} must be a list of whole numbers above 0, not {flags[key]!r:.50}")
    for key in _BETAS:
        if not isinstance(flags[key], (int, float)) or isinstance(flags[key], bool):
            raise InputError(f"{key} must be a number, not {flags[key]!r:.50}")
    return {key: flags[key] for key in (*_NEEDED, *_BETAS)} | ({"shape": said["shape"]} if "shape" in said else {})


def _settings(flags: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ScoreSettings, tuple[int, int, int]]:
    """Return the settings of the network, and the shape (C, H, W) of the images."""
    waves = flags["embedding_type"] == "fourier"
    first = state.get(f"all_modules.{3 if waves else 2}.weight")
    if first is None or first.ndim != 4:
        raise InputError("the weights are not those of this network, whose first convolution is missing")
    width, channels = first.shape[:2]
    size, times = flags["image_size"], flags["ch_mult"]
    if not times or len(times) > 20 or size % 2 ** (len(times) - 1) or flags["num_res_blocks"] > len(state):
        raise InputError(
            f"images of {size} pixels cannot be halved {len(times) - 1} times: correct image_size or ch_mult"
        )
    if flags["sde"] != "vesde" and not flags["centered"]:
        raise InputError("networks of a VP SDE are read for images in [-1, 1] only: centered must be true")
    if flags["sde"] != "vesde" and flags["scale_by_sigma"]:
        raise InputError("the network of a VP SDE is not divided by σ: scale_by_sigma must be false")
    if waves and not flags["continuous"]:
        raise InputError("a network with Fourier features knows continuous time only: continuous must be true")
    if flags["sde"] == "vesde" and flags["continuous"] and not waves:
        raise InputError("a network of the VE SDE in continuous time has Fourier features: correct embedding_type")
    if (shape := (channels, size, size)) != flags.get("shape", shape):
        raise InputError(f"shape is {list(flags['shape'])}, but image_size and the weights say {list(shape)}")
    return ScoreSettings(
        channels=channels,
        width=width,
        multipliers=tuple(times),
        blocks=flags["num_res_blocks"],
        attention=tuple(level for level in range(len(times)) if size >> level in flags["attn_resolutions"]),
        big=flags["resblock_type"] == "biggan",
        smooth=flags["fir"],
        rescaled=flags["skip_rescale"],
        waves=waves,
        inputs=flags["progressive_input"],
        outputs=flags["progressive"] == "output_skip",
        fewer=flags["model"] == "ncsnpp",
    ), shape


def _told(network: ScoreUNet, flags: Mapping[str, Any], levels: Tensor) -> tuple[Schedule, str, nn.Module]:
    """Return the schedule, the kind of label, and the network as the model evaluates it; `levels` rise."""
    T, (low, high) = len(levels), (float(levels[0]), float(levels[-1]))
    betas = flags["beta_min"], flags["beta_max"]
    if flags["sde"] == "vesde":
        unit = 1.0 if flags["centered"] else 0.5
        divides = flags["scale_by_sigma"]
        if flags["continuous"]:
            schedule = Schedule.exploding(T, float(f"{low / unit:.10g}"), float(f"{high / unit:.10g}"))
            return schedule, "sigma", ScoreModel(network, unit, divides=divides)
        schedule = Schedule.from_sigmas(levels / unit)
        return schedule, "integer", ScoreModel(network, unit, divides=divides, levels=schedule.levels)
    if flags["sde"] == "subvpsde":
        return Schedule.sub_vp_sde(T, *betas), "unit", InTime(network)
    if flags["continuous"]:
        return Schedule.vp_sde(T, *betas), "unit", InTime(network)
    return Schedule.linear(T, betas[0] / T, betas[1] / T), "index", network


# The weights.


def _levels(state: Mapping[str, Tensor]) -> Tensor:
    """Return score_sde's noise levels, rising."""
    levels = state.get("sigmas")
    if levels is None or levels.ndim != 1 or not 2 <= len(levels) <= _ABOVE or not levels.is_floating_point():
        raise InputError("the file lacks the noise levels (sigmas) of score_sde's network")
    return levels.double().flip(0)


def _chosen(held: Any, wanted: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights by score_sde's names, and which they are: "ema", "raw" or "as saved"."""
    place = beside.place(path)
    if wanted not in (None, "ema", "raw"):
        raise InputError(f"{place}: weights must be ema or raw, not {wanted!r:.50}")
    model: Any = held.get("model") if isinstance(held, Mapping) and not weights.is_state(held) else held
    if not weights.is_state(model):
        raise InputError(f"{path} holds no weights of score_sde's network under 'model': save its state_dict by itself")
    state = {name.removeprefix(_PARALLEL): tensor for name, tensor in model.items()}
    averages = held.get("ema") if isinstance(held, Mapping) and model is not held else None
    if averages is None:
        if wanted is not None:
            raise InputError(f'{path} holds one set of weights: leave "weights" out of {place}')
        return state, "as saved"
    if wanted == "raw":
        return state, "raw"
    shadows = averages.get("shadow_params") if isinstance(averages, Mapping) else None
    # Averaged are the parameters that are trained, in their order: not the levels, nor the random frequencies.
    names = [name for name in state if name != "sigmas" and not re.fullmatch(r"all_modules\.\d+\.W", name)]
    if not isinstance(shadows, list) or len(shadows) != len(names):
        raise InputError(f"{path} does not hold an average of each of its {len(names)} weights: copy it again")
    for name, shadow in zip(names, shadows, strict=True):
        if not isinstance(shadow, Tensor) or shadow.shape != state[name].shape:
            raise InputError(f"{path} is damaged (the average of {name} has another shape): copy it again")
    return state | dict(zip(names, shadows, strict=True)), "ema"


def _called(network: ScoreUNet) -> Iterator[tuple[str, str]]:
    """Yield our name of each tensor, and score_sde's."""
    smooth = network.settings.smooth
    for number, (name, part) in enumerate(network.in_order()):
        for ours in part.state_dict():
            yield f"{name}.{ours}", f"all_modules.{number}.{_theirs(part, ours, smooth)}"


def _theirs(part: nn.Module, ours: str, smooth: bool) -> str:
    """Return score_sde's name of a tensor of one of its modules."""
    layer, _, kind = ours.rpartition(".")
    across = {"weight": "W", "bias": "b"}
    if isinstance(part, score_unet.Residual):
        if layer == "shortcut":
            return f"Conv_2.{kind}" if isinstance(part.shortcut, nn.Conv2d) else f"NIN_0.{across[kind]}"
        names = {
            "norm1": "GroupNorm_0",
            "conv1": "Conv_0",
            "told": "Dense_0",
            "norm2": "GroupNorm_1",
            "conv2": "Conv_1",
        }
        return f"{names[layer]}.{kind}"
    if isinstance(part, score_unet.Attention):
        return f"GroupNorm_0.{kind}" if layer == "norm" else f"NIN_{_ATTENTION.index(layer)}.{across[kind]}"
    if isinstance(part, score_unet.Waves):
        return "W"
    if isinstance(part, score_unet.Halving):
        return f"Conv2d_0.{kind}" if smooth else f"Conv_0.{kind}"
    if isinstance(part, score_unet.Doubling) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)):
        return f"Conv_0.{kind}"
    return kind
