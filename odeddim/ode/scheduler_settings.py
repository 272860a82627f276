"""The conventions of a network in the settings of a scheduler of diffusers: schedule, prediction and labels.

The file describes a sampler (github.com/huggingface/diffusers, `schedulers/`), but it is also the only place where a
pipeline states what its network was trained on. This module reads only these conventions. The spacing of the sampler's
nodes, the sampler's order and the shift of its flow times are not properties of the network. Clipping and thresholding
of x0 are ignored too: a clipped image cannot be encoded back.

The last level may be pure noise: α = 0 if β was rescaled to zero terminal SNR (arXiv 2305.08891), and t = 1 on flow
paths. There σ is infinite and x̄ = x/√α has no value, so no step in σ can start from it. This level is left out, and
the other levels keep their labels. The top is then the last level that still holds some of the image. With rescaled β,
it is the level before the last, where the image's share √α of x is 7e-5 for DDPM's β and 4e-4 for Stable Diffusion's.
On flow paths it is t = 0.999, where the share is 1e-3. At α = 0 a predicted ε says nothing about x0, so a network with
zero terminal SNR must predict v or x0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odeddim.types import InputError, pick

MOST_LEVELS = 1_000_000  # of a description: one from a stranger must not fill the memory

PREDICTS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""prediction_type -> the name in `odeddim.ode.predictions`."""

_DDPM = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
_LATENT = _DDPM | {"beta_start": 0.00085, "beta_end": 0.012}
_COSINE = {"prediction_type": "epsilon", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
_VIDEO = _LATENT | {"beta_schedule": "scaled_linear", "snr_shift_scale": 3.0}
_STRAIGHT = {"num_train_timesteps": 1000}

DISCRETE: dict[str, Mapping[str, Any]] = {
    "CogVideoXDDIMScheduler": _VIDEO,
    "CogVideoXDPMScheduler": _VIDEO,
    "DDIMInverseScheduler": _DDPM,
    "DDIMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDPMScheduler": _DDPM,
    "DEISMultistepScheduler": _DDPM,
    "DPMSolverMultistepInverseScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverSDEScheduler": _LATENT,
    "DPMSolverSinglestepScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "LMSDiscreteScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "SASolverScheduler": _DDPM,
    "UnCLIPScheduler": _COSINE,
    "UniPCMultistepScheduler": _DDPM,
}
"""Scheduler classes for networks that take the index of one of T levels, with the defaults of each class."""

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Scheduler classes for networks on straight paths x = (1-t)·x0 + t·ε, which take t·T and predict ε - x0."""


Description = dict[str, Any]
"""A schedule as `Schedule.from_dict` takes it."""


@dataclass(frozen=True)
class Said:
    """What the settings of a scheduler say of its network.

    Attributes:
        description: The schedule, before the shift and the rescaling.
        rescaled: Whether β is rescaled to zero terminal SNR, and the last level left out.
        predicts: The prediction type, a name in `odeddim.ode.predictions`.
        time: The kind of label, a name in `odeddim.ode.schedule.TIMES`.
        found: The scheduler, in words.
        assumed: The values that the settings do not state, in words.
        variances: Whether the network also predicts variances; None if the settings do not say.
        shift: What the signal-to-noise ratio α/(1-α) of all levels is divided by: CogVideoX's (arXiv 2408.06072).
    """

    description: Description
    rescaled: bool
    predicts: str
    time: str
    found: str
    assumed: list[str] = field(default_factory=list)
    variances: bool | None = None
    shift: float = 1.0


def said_by(scheduler: Any) -> Said:
    """What a scheduler says of its network.

    Args:
        scheduler: A scheduler of diffusers, or its settings by name, its class as "_class_name".

    Returns:
        What it says.

    Raises:
        InputError: If its class is unknown, or the settings are unusable or contradict each other.
    """
    config = settings_of(scheduler)
    name = config.get("_class_name")
    if not isinstance(name, str) or not (name in FLOW or name in DISCRETE):
        raise InputError(
            f"odeddim does not know the conventions of the scheduler {name!r:.60}: write the equivalent settings of a "
            "DDIMScheduler or a FlowMatchEulerDiscreteScheduler into this file, or use VectorField.from_network"
        )
    take = _Settings(config, DISCRETE.get(name, _STRAIGHT))
    # A flow-matching scheduler has no such setting: its class implies the prediction.
    kind = config.get("prediction_type", "flow_prediction") if name in FLOW else take("prediction_type")
    predicts = PREDICTS[pick(str(kind), PREDICTS, "prediction_type")]
    straight = name in FLOW or bool(config.get("use_flow_sigmas"))
    if straight != (predicts == "flow"):
        paths = "straight flow paths" if straight else "DDPM's noise levels"
        raise InputError(f"the settings contradict each other: a {name} on {paths} has prediction_type {kind!r}")
    if config.get("invert_sigmas"):
        raise InputError("the labels start with 0 at pure noise (invert_sigmas): use VectorField.from_network")
    if config.get("timestep_type") == "continuous" and predicts == "v":
        raise InputError("the labels are ln(σ)/4 (timestep_type 'continuous'): use VectorField.from_network")
    variance = config.get("variance_type")
    flow = {"name": "rectified_flow", "T": take.levels()} if straight else None
    description, rescaled = (flow, False) if flow else _discrete(take, predicts)
    return Said(
        description=description,
        rescaled=rescaled,
        predicts=predicts,
        time="index",
        found=name + _left_out(config),
        assumed=take.assumed,
        variances=None if variance is None else str(variance).startswith("learned"),
        shift=take.positive("snr_shift_scale") if "snr_shift_scale" in take.defaults else 1.0,
    )


def _left_out(config: Mapping[str, Any]) -> str:
    """What of a sampler's settings is no convention of its network, in words."""
    words = ["without its clipping"] if config.get("clip_sample") or config.get("thresholding") else []
    shift = config.get("shift", config.get("flow_shift"))
    if config.get("use_dynamic_shifting"):
        words.append("without its shift by the size of images")
    elif (
        isinstance(shift, (int, float))
        and shift != 1
        and (config["_class_name"] in FLOW or config.get("use_flow_sigmas"))
    ):
        words.append(f"without its shift by {shift:g}")
    return "".join(f", {each}" for each in words)


def settings_of(scheduler: Any) -> Mapping[str, Any]:
    """The settings of a scheduler of diffusers, as its file would hold them; a Mapping is returned as it is."""
    if isinstance(scheduler, Mapping):
        return scheduler
    if not hasattr(scheduler, "to_json_string"):
        kind = type(scheduler).__name__
        raise InputError(f"a schedule is made of a scheduler of diffusers, or of its settings by name, not of a {kind}")
    found: Mapping[str, Any] = json.loads(scheduler.to_json_string())
    return found


class _Settings:
    """A scheduler's settings by name. A missing setting takes the default of its class, and `assumed` notes it."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.config, self.defaults = config, defaults
        self.assumed: list[str] = []

    def __call__(self, key: str) -> Any:
        if key in self.config:
            return self.config[key]
        if key not in self.defaults:
            raise InputError(f"the setting {key} is missing: copy the file again")
        said = f"{key} {self.defaults[key]!r} (its class's default)"
        self.assumed += [] if said in self.assumed else [said]
        return self.defaults[key]

    def number(self, key: str) -> float:
        value = self(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise InputError(f"{key} must be a number between 0 and 1, not {value!r:.50}")
        return float(value)

    def positive(self, key: str) -> float:
        value = self(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"{key} must be a number above 0, not {value!r:.50}")
        return float(value)

    def levels(self) -> int:
        value = self("num_train_timesteps")
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= MOST_LEVELS:
            raise InputError(f"num_train_timesteps must be a whole number from 2 to {MOST_LEVELS:,}, not {value!r:.50}")
        return value


def _discrete(take: _Settings, predicts: str) -> tuple[Description, bool]:
    """The schedule of β_1..β_T without the last level if that is pure noise, and whether β is to be rescaled."""
    trained = take.config.get("trained_betas")
    if trained is None:
        description, noise_only = _named(take), False
    else:
        betas = _trained(trained, take)
        noise_only = float(betas[-1]) == 1
        description = _of_betas(betas[:-1] if noise_only else betas)
    rescaled = bool(take.config.get("rescale_betas_zero_snr")) and not noise_only
    if (noise_only or rescaled) and predicts == "eps":
        raise InputError(
            "the settings contradict each other: the last level is pure noise (zero terminal SNR), where a predicted ε "
            "says nothing about the image: prediction_type must be v_prediction or sample"
        )
    return description, rescaled


def _named(take: _Settings) -> Description:
    kind = pick(str(take("beta_schedule")), _BETAS, "beta_schedule")
    T = take.levels()
    if kind == "squaredcos_cap_v2":
        return {"name": "cosine", "T": T}
    if kind in _ALPHA:
        alphas = torch.tensor([_ALPHA[kind](i / T) for i in range(T + 1)], dtype=torch.float64)
        return _of_betas((1 - alphas[1:] / alphas[:-1]).clamp(max=0.999))
    first, last = take.number("beta_start"), take.number("beta_end")
    if kind == "sigmoid":  # GeoDiff's (arXiv 2203.02923)
        return _of_betas(first + (last - first) * torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64)))
    return {"name": kind, "T": T, "beta_1": first, "beta_T": last}


def _trained(betas: Any, take: _Settings) -> Tensor:
    """Check trained_betas, and return them as (T,) float64."""
    good = isinstance(betas, list) and all(isinstance(b, (int, float)) and 0 < b <= 1 for b in betas)
    if not good or len(betas) < 3 or 1 in betas[:-1]:
        raise InputError("trained_betas must be a list of at least three numbers between 0 and 1")
    if "num_train_timesteps" in take.config and take.levels() != len(betas):
        raise InputError(
            f"the settings contradict each other: there are {len(betas)} trained_betas, but num_train_timesteps is "
            f"{take.levels()}"
        )
    return torch.tensor(betas, dtype=torch.float64)


def _of_betas(betas: Tensor) -> Description:
    return {"name": "from_alphas", "alphas_cumprod": torch.exp(torch.cumsum(torch.log1p(-betas), dim=0))}


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


_ALPHA: dict[str, Callable[[float], float]] = {
    "exp": lambda t: math.exp(-12 * t),
    "laplace": _laplace,
}
"""The function t in [0, 1] -> α of each beta_schedule that is defined by α."""
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", *_ALPHA)
