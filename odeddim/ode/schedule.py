"""The noise schedule: α, σ and the network's time label t as functions of each other.

The ODE knows noise levels only (σ = √(1-α)/√α, α cumulative as in DDIM). A schedule says which levels a network was
trained on, by which label t the network knows a level, and in which units it takes its input: x = scale(σ)·x̄.

    from            x =                     scale(σ)       label t(σ)
    DDPM, DDIM      √α·x0 + √(1-α)·ε        1/√(1+σ²)      index of the level, linear in log σ between levels
    rectified flow  (1-t)·x0 + t·ε          1/(1+σ)        σ/(1+σ)
    EDM, VE         x0 + σ·ε                1              σ
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from odeddim.types import InputError, pick

Kind = Literal["preserving", "flow", "exploding"]

Time = str | Callable[[Tensor], Tensor]
"""How a network is told its noise level: a name of TIMES, or label(sigma float64) -> labels of sigma's shape."""

TIMES = {
    "index": "0..T-1, real-valued between the levels: DDPM, DDIM, Stable Diffusion; on flow paths t·T, as in diffusers",
    "integer": "the index rounded to a whole number, for networks that look it up in a table",
    "unit": "(0, 1]: (index + 1)/T, on flow paths t itself",
    "reversed": "1 - unit: flow matching with the noise at 0 and the image at 1",
    "sigma": "σ itself: EDM, k-diffusion, VE",
    "log-sigma": "ln(σ)/4, the c_noise of EDM's inner networks",
}

MOST_LEVELS = 1_000_000  # of a description: one from a stranger must not fill the memory
_MADE_BY = ("linear", "scaled_linear", "cosine", "from_alphas", "rectified_flow", "exploding", "edm", "from_sigmas")


class Schedule:
    """Noise levels σ_1 < ... < σ_T of a network, its labels for them, and the units of its input.

    levels: (T,) float64 on the CPU, rising; levels[i] is the paper's t = i+1 and the label i of a DDPM network.
    discrete: whether the network knows these levels only, and takes the nearest one for any other.
    Make one with `linear`, `scaled_linear`, `cosine`, `from_alphas`, `rectified_flow`, `exploding`, `edm` or
    `from_sigmas`.
    """

    def __init__(
        self, levels: Tensor, kind: Kind, made_by: str, parameters: dict[str, Any], *, discrete: bool = False
    ) -> None:
        levels = levels.detach().to("cpu", torch.float64)
        good = levels.ndim == 1 and len(levels) >= 2 and bool(torch.isfinite(levels).all())
        if not good or not bool((levels[1:] > levels[:-1]).all()) or not float(levels[0]) > 0:
            raise InputError(
                "a schedule needs at least two finite noise levels σ > 0 that rise strictly: "
                "check its alphas_cumprod (they fall from below 1 to above 0) or betas"
            )
        self.levels = levels
        self.kind: Kind = kind
        self.name = made_by
        self.discrete = discrete
        self._parameters = parameters
        self._ratio = torch.log(levels[1:] / levels[:-1])  # log σ_{i+1}/σ_i, what t is linear in

    # Constructors: the published schedules.

    @classmethod
    def linear(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
        """DDPM's schedule, β rising linearly (Ho et al. 2020, section 4), which DDIM uses in all its experiments."""
        _check_betas(T, beta_1, beta_T)
        betas = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
        return cls(_levels_from_betas(betas), "preserving", "linear", {"T": T, "beta_1": beta_1, "beta_T": beta_T})

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> Schedule:
        """Latent diffusion's schedule, √β rising linearly (Rombach et al. 2022, arXiv 2112.10752)."""
        _check_betas(T, beta_1, beta_T)
        betas = torch.linspace(math.sqrt(beta_1), math.sqrt(beta_T), T, dtype=torch.float64) ** 2
        parameters = {"T": T, "beta_1": beta_1, "beta_T": beta_T}
        return cls(_levels_from_betas(betas), "preserving", "scaled_linear", parameters)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008) -> Schedule:
        """Improved DDPM's schedule, α_t ∝ cos²((t/T+s)/(1+s)·π/2), β capped at 0.999 (arXiv 2102.09672, eq. 17)."""
        t = torch.arange(T + 1, dtype=torch.float64) / T
        alphas = torch.cos((t + s) / (1 + s) * (math.pi / 2)) ** 2
        betas = (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)
        return cls(_levels_from_betas(betas), "preserving", "cosine", {"T": T, "s": s})

    @classmethod
    def from_alphas(cls, alphas_cumprod: Tensor | list[float]) -> Schedule:
        """A variance-preserving schedule from its α_1 > ... > α_T (DDIM's α; `alphas_cumprod` in other code), (T,)."""
        alphas = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
        if alphas.ndim != 1 or not bool(((alphas > 0) & (alphas < 1)).all()):
            raise InputError(
                "alphas_cumprod must be one row of numbers strictly between 0 and 1; "
                "a level with α = 0 or 1 has no finite σ > 0: leave it out"
            )
        levels = torch.sqrt(torch.expm1(-torch.log(alphas)))
        return cls(levels, "preserving", "from_alphas", {"alphas_cumprod": alphas.tolist()})

    @classmethod
    def rectified_flow(cls, T: int = 1000, t_max: float = 0.999) -> Schedule:
        """Straight paths x = (1-t)·x0 + t·ε (arXiv 2209.03003): σ = t/(1-t), label t in (0, t_max].

        At t = 1, σ is infinite; the levels end at t_max instead, where the image's share is 1 - t_max.
        """
        if not 0 < t_max < 1:
            raise InputError(f"t_max must lie strictly between 0 and 1, not {t_max}: σ = t/(1-t) must be finite")
        t = torch.arange(1, T + 1, dtype=torch.float64) * (t_max / T)
        return cls(t / (1 - t), "flow", "rectified_flow", {"T": T, "t_max": t_max})

    @classmethod
    def exploding(cls, T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
        """x = x0 + σ·ε with σ in geometric progression, label σ (the VE of Song et al. 2021, arXiv 2011.13456)."""
        return cls._geometric("exploding", T, sigma_min, sigma_max)

    @classmethod
    def edm(cls, T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
        """EDM's range of noise levels, label σ (Karras et al. 2022, arXiv 2206.00364, table 1)."""
        return cls._geometric("edm", T, sigma_min, sigma_max)

    @classmethod
    def from_sigmas(cls, sigmas: Tensor | list[float]) -> Schedule:
        """x = x0 + σ·ε, label σ, of a network that looks σ up among these levels, (T,) rising: EDM's iDDPM networks."""
        levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
        return cls(levels, "exploding", "from_sigmas", {"sigmas": levels.tolist()}, discrete=True)

    @classmethod
    def _geometric(cls, made_by: str, T: int, sigma_min: float, sigma_max: float) -> Schedule:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InputError(f"sigma_min and sigma_max must satisfy 0 < {sigma_min} < {sigma_max} < ∞")
        levels = torch.logspace(math.log10(sigma_min), math.log10(sigma_max), T, dtype=torch.float64)
        levels[0], levels[-1] = sigma_min, sigma_max  # logspace misses its ends by a rounding
        return cls(levels, "exploding", made_by, {"T": T, "sigma_min": sigma_min, "sigma_max": sigma_max})

    # Written into files, read from them.

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to make this schedule again; JSON-able."""
        return {"name": self.name, **self._parameters}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Schedule:
        """The schedule that `to_dict` described."""
        if not isinstance(description, dict):
            raise InputError(f"a schedule is described by its name and parameters, not by {description!r}")
        parameters = dict(description)
        name = pick(str(parameters.pop("name", "")), _MADE_BY, "schedule")
        if (T := parameters.get("T", 0)) and not (isinstance(T, int) and T <= MOST_LEVELS):
            raise InputError(f"schedule {name!r} has at most {MOST_LEVELS:,} levels, not T = {T!r:.50}")
        try:
            made = getattr(cls, name)(**parameters)
        except InputError:
            raise
        except (TypeError, ValueError, ZeroDivisionError, IndexError, OverflowError, RuntimeError) as error:
            raise InputError(f"schedule {name!r} cannot be made from {parameters!r:.200}: {error}") from error
        assert isinstance(made, Schedule)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.T, self.sigma_min, self.sigma_max))

    def __repr__(self) -> str:
        return f"Schedule.{self.name}(T={self.T}, σ {self.sigma_min:.4g} to {self.sigma_max:.4g})"

    # α, σ and t as functions of each other.

    @property
    def T(self) -> int:
        """How many levels the schedule has."""
        return len(self.levels)

    @property
    def time(self) -> str:
        """The name in `TIMES` of the labels that `t` gives: what networks of this kind of schedule usually know."""
        return {"preserving": "index", "flow": "unit", "exploding": "sigma"}[self.kind]

    @property
    def sigma_min(self) -> float:
        """σ_1, the lowest level the network knows."""
        return float(self.levels[0])

    @property
    def sigma_max(self) -> float:
        """σ_T, the highest level, where latents live."""
        return float(self.levels[-1])

    def t(self, sigma: Tensor) -> Tensor:
        """The network's label of noise levels, float64, of sigma's shape; held at the ends outside [σ_1, σ_T].

        For DDPM's networks a float: i exactly at levels[i] (so 0 at the paper's t = 1), linear in log σ between.
        """
        return self.label(sigma, self.time)

    def label(self, sigma: Tensor, time: Time) -> Tensor:
        """What a network that counts time in its own way is told of noise levels: float64, of sigma's shape.

        time: a name of `TIMES`, or a function of σ. As in `t`, it is held at the ends outside [σ_1, σ_T].
        """
        sigma = sigma.detach().to("cpu", torch.float64).clamp(self.sigma_min, self.sigma_max)
        if callable(time):
            return time(sigma)
        if time == "sigma":
            return sigma
        if time == "log-sigma":
            return torch.log(sigma) / 4
        if time == "integer":
            return self.label(sigma, "index").round()
        if self.kind == "flow":
            t = sigma / (1 + sigma)
            return t if time == "unit" else t * self.T if time == "index" else 1 - t
        below = torch.searchsorted(self.levels, sigma, right=True) - 1
        # At the last level there is none above: log(1) is 0, and any ratio does.
        index = below + torch.log(sigma / self.levels[below]) / self._ratio[below.clamp(max=self.T - 2)]
        if time == "index":
            return index
        unit = (index + 1) / self.T
        return unit if time == "unit" else 1 - unit

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of labels, float64, of t's shape: the inverse of `t`."""
        t = t.detach().to("cpu", torch.float64)
        if self.kind == "flow":
            return t / (1 - t)
        if self.kind == "exploding":
            return t
        t = t.clamp(0, self.T - 1)
        below = t.floor().long()
        return self.levels[below] * torch.exp((t - below) * self._ratio[below.clamp(max=self.T - 2)])

    def scale(self, sigma: Tensor) -> Tensor:
        """The factor of x = scale·x̄, of sigma's shape: what the network takes is x."""
        if self.kind == "flow":
            return 1 / (1 + sigma)
        if self.kind == "exploding":
            return torch.ones_like(sigma)
        return 1 / torch.sqrt(1 + sigma**2)


def _check_betas(T: int, beta_1: float, beta_T: float) -> None:
    if T < 2 or not 0 < beta_1 <= beta_T < 1:
        raise InputError(f"betas need T >= 2 and 0 < beta_1 <= beta_T < 1, not T={T}, {beta_1}, {beta_T}")


def _levels_from_betas(betas: Tensor) -> Tensor:
    """σ_t from β_t, (T,). Through logarithms: 1-α loses half its digits at small t when written 1 - cumprod(1-β)."""
    return torch.sqrt(torch.expm1(-torch.cumsum(torch.log1p(-betas), dim=0)))
