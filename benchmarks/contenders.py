"""What side_by_side.py compares: the same runs by odeddim and by other software, all asking one network.

A `Network` counts what is asked of it. Samplers decode noise on given nodes (None where software has no such method);
ways encode images and bring them back. Each is written as the documentation of its software has it. k-diffusion only
samples: its samplers are given noise levels that rise, which is how its users invert.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

import odeddim

SEED = 7
Sampler = Callable[[Tensor], Tensor]
"""From x_T (B, C, H, W) of unit variance to images."""


class Network:
    """The network ε(x, t) that all software asks, and what was asked: CPU seconds, calls, and images in them."""

    def __init__(self, eps: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.eps = eps
        self.reset()

    def reset(self) -> None:
        """Set the three counts to 0."""
        self.seconds, self.calls, self.rows = 0.0, 0, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        began = process_time()
        answer = self.eps(x, t.expand(len(x)))
        self.seconds += process_time() - began
        self.calls += 1
        self.rows += len(x)
        return answer


@dataclass
class Subject:
    """A model as each software takes it, all of them the same `network`."""

    field: odeddim.VectorField
    shape: tuple[int, int, int]
    network: Network = field(init=False)

    def __post_init__(self) -> None:
        self.network = self.field.eps = Network(self.field.eps)

    @cached_property
    def levels(self) -> list[float]:
        """The σ of the labels 0, 1, ..., rising."""
        return self.field.schedule.levels.tolist()

    @property
    def low(self) -> float:
        """The lowest level σ_1."""
        return self.levels[0]

    @property
    def high(self) -> float:
        """The highest level σ_T."""
        return self.levels[-1]

    def noise(self, count: int) -> Tensor:
        """x_T as diffusers' pipelines draw it, from a generator with the seed."""
        return torch.randn(count, *self.shape, generator=generator())

    @cached_property
    def betas(self) -> list[float]:
        """The β of the levels, which diffusers' schedulers take."""
        alphas = 1 / (1 + np.square(self.levels))
        return (1 - alphas / np.concatenate([[1.0], alphas[:-1]])).tolist()

    def label(self, sigma: float) -> float:
        """The label of a level: linear in log σ between the levels, as odeddim and k-diffusion have it."""
        place = min(max(bisect_right(self.levels, sigma), 1), len(self.levels) - 1)
        low, high = self.levels[place - 1 : place + 1]
        return place - 1 + min(max(math.log(max(sigma, low) / low) / math.log(high / low), 0.0), 1.0)

    def slope(self, sigma: float, xbar: Tensor) -> Tensor:
        """dx̄/dσ, the right-hand side that torchdiffeq is given."""
        return self.network(xbar / math.sqrt(1 + sigma**2), torch.tensor(self.label(sigma)))

    @cached_property
    def unet(self) -> Any:
        """The network as a module of diffusers."""
        from diffusers import ConfigMixin, ModelMixin
        from diffusers.configuration_utils import register_to_config
        from diffusers.models.unets.unet_2d import UNet2DOutput

        network = self.network

        class Unet(ModelMixin, ConfigMixin):  # type: ignore[misc]
            @register_to_config
            def __init__(self, in_channels: int, sample_size: tuple[int, int]) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # it tells device and dtype

            def forward(self, x: Tensor, t: Tensor) -> UNet2DOutput:
                return UNet2DOutput(sample=network(x, t))

        return Unet(self.shape[0], self.shape[1:])

    @cached_property
    def denoiser(self) -> Any:
        """The network as a denoiser of k-diffusion."""
        from k_diffusion.external import DiscreteEpsDDPMDenoiser

        alphas = 1 / (1 + self.field.schedule.levels.float() ** 2)
        return DiscreteEpsDDPMDenoiser(self.network, alphas, quantize=False)


def generator() -> torch.Generator:
    """A generator at its start."""
    return torch.Generator().manual_seed(SEED)


def scheduler(subject: Subject, name: str, **config: Any) -> Any:
    """A scheduler of diffusers on the model's levels."""
    import diffusers

    return getattr(diffusers, name)(trained_betas=subject.betas, **config)


def stepped(subject: Subject, its: Any, steps: int, x: Tensor) -> Tensor:
    """diffusers' loop: the network at each of the timesteps, and a step."""
    its.set_timesteps(steps)
    with torch.no_grad():
        for t in its.timesteps:
            x = its.step(subject.unet(x, t).sample, t, x).prev_sample
    return x


def nodes_of(subject: Subject, method: str, steps: int) -> Tensor:
    """The nodes on which a method is compared: those that diffusers' own scheduler of it has, and Karras's for Heun."""
    schedule = subject.field.schedule
    if method == "dpmpp-2m":
        # With as many steps as levels two round to one.
        labels = np.unique(np.linspace(0, len(subject.levels) - 1, steps + 1).round().astype(int)[1:])
        return torch.cat([torch.zeros(1, dtype=torch.float64), schedule.levels[labels]])
    return odeddim.grid({"euler": "leading", "heun": "karras"}[method], schedule, steps)


def by_odeddim(subject: Subject, method: str, nodes: Tensor) -> Sampler:
    return lambda x_T: odeddim.solve(x_T, method, model=subject.field, grid=nodes)


def by_diffusers(subject: Subject, method: str, nodes: Tensor) -> Sampler | None:
    """DDIMPipeline for Euler's steps, which draws the noise itself; the loop over a scheduler for DPM-Solver++(2M)."""
    steps = len(nodes) - 1
    if method == "euler":
        from diffusers import DDIMPipeline

        pipeline = DDIMPipeline(subject.unet, scheduler(subject, "DDIMScheduler", clip_sample=False))
        pipeline.set_progress_bar_config(disable=True)

        def drawn(x_T: Tensor) -> Tensor:
            said = pipeline(len(x_T), generator(), num_inference_steps=steps, output_type="pt")
            return 2 * said.images - 1

        return drawn
    if method == "dpmpp-2m":
        its = scheduler(subject, "DPMSolverMultistepScheduler")
        return lambda x_T: stepped(subject, its, steps, x_T)
    return None


K_SAMPLERS = {"euler": "sample_euler", "heun": "sample_heun", "dpmpp-2m": "sample_dpmpp_2m"}


def by_k_diffusion(subject: Subject, method: str, nodes: Tensor) -> Sampler:
    from k_diffusion import sampling

    sample, sigmas = getattr(sampling, K_SAMPLERS[method]), nodes.flip(0).float()
    top = math.hypot(1, float(nodes[-1]))
    return lambda x_T: sample(subject.denoiser, x_T * top, sigmas, disable=True)


def by_torchdiffeq(subject: Subject, method: str, nodes: Tensor, *, each: bool = False) -> Sampler | None:
    """odeint in σ, asked for the end only, or for x̄ at each node."""
    from torchdiffeq import odeint

    if method != "euler":
        return None
    falling = nodes.flip(0).float()
    how = {} if each else {"options": {"grid_constructor": lambda *_: falling}}
    times = falling if each else falling[[0, -1]]
    top = math.hypot(1, float(nodes[-1]))

    def run(x_T: Tensor) -> Tensor:
        with torch.no_grad():
            return odeint(lambda s, x: subject.slope(float(s), x), x_T * top, times, method="euler", **how)[-1]

    return run


SAMPLERS: Mapping[str, Callable[[Subject, str, Tensor], Sampler | None]] = {
    "odeddim": by_odeddim,
    "diffusers": by_diffusers,
    "k-diffusion": by_k_diffusion,
    "torchdiffeq": by_torchdiffeq,
    "torchdiffeq, each node": partial(by_torchdiffeq, each=True),
}
"""Software, and how it is asked where there are two ways -> what makes a sampler."""


@dataclass(frozen=True)
class Trip:
    """Images to latents and back. `unit` makes of a latent x_T of unit variance."""

    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]
    unit: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Way:
    """A method that encodes and decodes, at a number of steps or at a tolerance.

    Attributes:
        software: Whose it is.
        words: What it is, as the table has it.
        make: (subject, effort) -> the trip.
        end: Where images lie, "zero" (σ = 0) or "sigma_min" (σ_1).
        each: The evaluations of a step.
        adaptive: Whether the effort is a tolerance and not a number of steps.
    """

    software: str
    words: str
    make: Callable[[Subject, float], Trip]
    end: str = "sigma_min"
    each: int = 1
    adaptive: bool = False

    @property
    def name(self) -> str:
        """The way in words, with its software."""
        return f"{self.software} {self.words}"


def odeddim_way(solver: str, grid: str | None, *, end: str = "sigma_min", each: int = 1) -> Way:
    def make(subject: Subject, effort: float) -> Trip:
        how: dict[str, Any] = {"rtol": effort, "atol": effort} if grid is None else {"steps": int(effort), "grid": grid}
        return Trip(
            lambda x_0: odeddim.encode(x_0, solver, model=subject.field, end=end, **how),
            lambda state: odeddim.decode(state, model=subject.field),
            lambda state: state.x,
        )

    return Way("odeddim", f"`{solver}`, {grid or 'a tolerance'}", make, end, each, grid is None)


def ddim_way() -> Way:
    def make(subject: Subject, effort: float) -> Trip:
        how = {"clip_sample": False, "timestep_spacing": "trailing"}
        up = scheduler(subject, "DDIMInverseScheduler", **how)
        down = scheduler(subject, "DDIMScheduler", **how)
        return Trip(
            lambda x_0: stepped(subject, up, int(effort), x_0),
            lambda x_T: stepped(subject, down, int(effort), x_T),
            lambda x_T: x_T,
        )

    return Way("diffusers", "`DDIMInverseScheduler`, trailing", make, "zero")


def dpm_solver_way(spacing: str, **config: Any) -> Way:
    def make(subject: Subject, effort: float) -> Trip:
        up = scheduler(subject, "DPMSolverMultistepInverseScheduler", **config)
        down = scheduler(subject, "DPMSolverMultistepScheduler", final_sigmas_type="sigma_min", **config)
        unit = math.hypot(1, subject.low)
        return Trip(
            lambda x_0: stepped(subject, up, int(effort), x_0 / unit),
            lambda x_T: stepped(subject, down, int(effort), x_T) * unit,
            lambda x_T: x_T,
        )

    return Way("diffusers", f"`DPMSolverMultistepInverseScheduler`, {spacing}", make)


def k_diffusion_way(method: str, grid: str, *, each: int = 1) -> Way:
    def make(subject: Subject, effort: float) -> Trip:
        from k_diffusion import sampling

        sample = getattr(sampling, K_SAMPLERS[method])
        sigmas = getattr(sampling, f"get_sigmas_{grid}")(int(effort) + 1, subject.low, subject.high)[:-1]
        return Trip(
            lambda x_0: sample(subject.denoiser, x_0, sigmas.flip(0), disable=True),
            lambda xbar: sample(subject.denoiser, xbar, sigmas, disable=True),
            lambda xbar: xbar / math.hypot(1, subject.high),
        )

    return Way("k-diffusion", f"`{K_SAMPLERS[method]}` upwards, {grid}", make, each=each)


def torchdiffeq_way(method: str, *, each: int = 1, adaptive: bool = False) -> Way:
    def make(subject: Subject, effort: float) -> Trip:
        from torchdiffeq import odeint

        ends = torch.tensor([math.log(subject.low), math.log(subject.high)])
        how: dict[str, Any] = {"rtol": effort, "atol": effort}
        if not adaptive:
            how = {"options": {"step_size": float(ends[1] - ends[0]) / effort * (1 + 1e-6)}}

        def slope(s: Tensor, xbar: Tensor) -> Tensor:
            sigma = math.exp(float(s))
            return sigma * subject.slope(sigma, xbar)

        def run(xbar: Tensor, times: Tensor) -> Tensor:
            with torch.no_grad():
                return odeint(slope, xbar, times, method=method, **how)[-1]

        return Trip(
            lambda x_0: run(x_0, ends),
            lambda xbar: run(xbar, ends.flip(0)),
            lambda xbar: xbar / math.hypot(1, subject.high),
        )

    return Way(
        "torchdiffeq",
        f"`{method}` in log σ, {'a tolerance' if adaptive else 'even steps'}",
        make,
        each=each,
        adaptive=adaptive,
    )


WAYS = (
    odeddim_way("belm", "log"),
    odeddim_way("euler", "trailing", end="zero"),
    ddim_way(),
    odeddim_way("dpmpp-2m", "log"),
    dpm_solver_way("linspace"),
    dpm_solver_way("karras", use_karras_sigmas=True),
    dpm_solver_way("exponential", use_exponential_sigmas=True),
    k_diffusion_way("dpmpp-2m", "exponential"),
    odeddim_way("heun", "karras", each=2),
    k_diffusion_way("heun", "karras", each=2),
    odeddim_way("rk4", "log", each=4),
    torchdiffeq_way("rk4", each=4),
    odeddim_way("dopri5", None),
    torchdiffeq_way("dopri5", adaptive=True),
    odeddim_way("unipc-2", "log"),
)
"""One method after the other, odeddim first."""
