"""The noise schedule: α, σ and the network's time label t as functions of each other.

The ODE is written in noise levels only (σ = √(1-α)/√α, α cumulative as in DDIM). A schedule says which levels a network
was trained on, which label t the network takes for a level, and the units of its input: x = scale(σ)·x̄.

    from            x =                     scale(σ)       label t(σ)
    DDPM, DDIM      √α·x0 + √(1-α)·ε        1/√(1+σ²)      index of the level, linear in log σ between levels
    rectified flow  (1-t)·x0 + t·ε          1/(1+σ)        σ/(1+σ)
    EDM, VE         x0 + σ·ε                1              σ
    score_sde       see odeddim.ode.sdes                   t in (0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from odeddim.ode.scheduler_settings import MOST_LEVELS, Said, said_by
from odeddim.ode.sdes import ContinuousTime, index_of
from odeddim.types import InputError, pick

Kind = Literal["preserving", "flow", "exploding", "continuous"]

Time = str | Callable[[Tensor], Tensor]
"""The labels that a network takes: a name of TIMES, or a function label(sigma float64) -> labels of sigma's shape."""

TIMES = {
    "index": "0..T-1, real-valued between the levels: DDPM, DDIM, Stable Diffusion; on flow paths t·T, as in diffusers",
    "integer": "the index rounded to a whole number, for networks that look it up in a table",
    "unit": "(0, 1]: (index + 1)/T, on flow paths and in score_sde's continuous time t itself",
    "reversed": "1 - unit: flow matching with the noise at 0 and the image at 1",
    "sigma": "σ itself: EDM, k-diffusion, VE",
    "log-sigma": "ln(σ)/4, the c_noise of EDM's inner networks",
}

_MADE_BY = (
    *("linear", "scaled_linear", "cosine", "from_alphas", "rectified_flow", "exploding", "edm", "from_sigmas"),
    *("vp_sde", "sub_vp_sde"),
)


class Schedule:
    """The rising noise levels σ_1 to σ_T of a network, its labels for them, and the units of its input.

    Make one with `linear`, `scaled_linear`, `cosine`, `from_alphas`, `rectified_flow`, `exploding`, `edm`,
    `from_sigmas`, `vp_sde`, `sub_vp_sde` or `from_diffusers`.

    Args:
        levels: The noise levels, (T,), rising; levels[i] is the paper's t = i+1 and the label i of a DDPM network.
        kind: The path from image to noise, which sets the units of x: "preserving", "flow", "exploding", or
            "continuous" as `continuous` says.
        made_by: The name of the class method that made the schedule.
        parameters: The arguments of that method.
        discrete: Whether the network has these levels only, and takes the nearest one for any other.
        continuous: σ and t of a VP or sub-VP SDE in continuous time; None for other kinds.

    Attributes:
        levels: The noise levels, (T,) float64 on the CPU.
        kind: As given.
        name: The name of the class method, `made_by`.
        discrete: As given.

    Raises:
        InputError: If there are fewer than two levels, or they are not finite, positive and strictly rising.

    Example:
        >>> schedule = odeddim.Schedule.linear()
        >>> schedule
        Schedule.linear(T=1000, σ 0.01 to 157.4)
        >>> schedule.t(schedule.levels[[0, 499, 999]])
        tensor([  0., 499., 999.], dtype=torch.float64)
    """

    def __init__(
        self,
        levels: Tensor,
        kind: Kind,
        made_by: str,
        parameters: dict[str, Any],
        *,
        discrete: bool = False,
        continuous: ContinuousTime | None = None,
    ) -> None:
        levels = levels.detach().to("cpu", torch.float64)
        good = levels.ndim == 1 and len(levels) >= 2 and bool(torch.isfinite(levels).all())
        if not good or not bool((levels[1:] > levels[:-1]).all()) or not float(levels[0]) > 0:
            raise InputError(
                "a schedule needs at least two finite noise levels σ > 0 that rise strictly: "
                "correct alphas_cumprod (which must fall from below 1 to above 0) or the betas"
            )
        self.levels = levels
        self.kind: Kind = kind
        self.name = made_by
        self.discrete = discrete
        self._parameters = parameters
        self._continuous = continuous
        self._ratio = torch.log(levels[1:] / levels[:-1])  # log σ_{i+1}/σ_i, what t is linear in

    # The published schedules.

    @classmethod
    def linear(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
        """DDPM's schedule, which DDIM uses in all its experiments: β rises linearly.

        Args:
            T: The number of levels.
            beta_1: The first β.
            beta_T: The last β.

        Returns:
            The schedule.

        Raises:
            InputError: If T < 2, or not 0 < beta_1 <= beta_T < 1.

        Source:
            Ho et al. 2020, arXiv 2006.11239, section 4.
        """
        _check_betas(T, beta_1, beta_T)
        betas = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
        return cls(_levels_from_betas(betas), "preserving", "linear", {"T": T, "beta_1": beta_1, "beta_T": beta_T})

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> Schedule:
        """Latent diffusion's schedule: √β rises linearly.

        Args:
            T: The number of levels.
            beta_1: The first β.
            beta_T: The last β.

        Returns:
            The schedule.

        Raises:
            InputError: If T < 2, or not 0 < beta_1 <= beta_T < 1.

        Source:
            Rombach et al. 2022, arXiv 2112.10752.
        """
        _check_betas(T, beta_1, beta_T)
        betas = torch.linspace(math.sqrt(beta_1), math.sqrt(beta_T), T, dtype=torch.float64) ** 2
        parameters = {"T": T, "beta_1": beta_1, "beta_T": beta_T}
        return cls(_levels_from_betas(betas), "preserving", "scaled_linear", parameters)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008) -> Schedule:
        """Improved DDPM's schedule: α_t ∝ cos²((t/T+s)/(1+s)·π/2), with β at most 0.999.

        Args:
            T: The number of levels.
            s: The offset, which keeps β from being too small near the image.

        Returns:
            The schedule.

        Source:
            Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17.
        """
        t = torch.arange(T + 1, dtype=torch.float64) / T
        alphas = torch.cos((t + s) / (1 + s) * (math.pi / 2)) ** 2
        betas = (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)
        return cls(_levels_from_betas(betas), "preserving", "cosine", {"T": T, "s": s})

    @classmethod
    def from_alphas(cls, alphas_cumprod: Tensor | list[float]) -> Schedule:
        """A variance-preserving schedule from its α.

        Args:
            alphas_cumprod: α_1 > ... > α_T, (T,), between 0 and 1: DDIM's α, the cumulative product.

        Returns:
            The schedule.

        Raises:
            InputError: If an α is not strictly between 0 and 1, or the α do not fall strictly.
        """
        alphas = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
        if alphas.ndim != 1 or not bool(((alphas > 0) & (alphas < 1)).all()):
            raise InputError(
                "alphas_cumprod must be one row of numbers strictly between 0 and 1: leave out levels with α = 0 or 1, "
                "which have no finite σ > 0"
            )
        levels = torch.sqrt(torch.expm1(-torch.log(alphas)))
        return cls(levels, "preserving", "from_alphas", {"alphas_cumprod": alphas.tolist()})

    @classmethod
    def rectified_flow(cls, T: int = 1000, t_max: float = 0.999) -> Schedule:
        """Straight paths x = (1-t)·x0 + t·ε: σ = t/(1-t), with labels t in (0, t_max].

        At t = 1, σ is infinite. The levels end at t_max instead, where the share of the image in x is 1 - t_max.

        Args:
            T: The number of levels.
            t_max: The last label, strictly between 0 and 1.

        Returns:
            The schedule.

        Raises:
            InputError: If t_max is not strictly between 0 and 1.

        Source:
            Liu et al. 2022, arXiv 2209.03003.
        """
        if not 0 < t_max < 1:
            raise InputError(f"t_max must lie strictly between 0 and 1, not {t_max}: σ = t/(1-t) must be finite")
        t = torch.arange(1, T + 1, dtype=torch.float64) * (t_max / T)
        return cls(t / (1 - t), "flow", "rectified_flow", {"T": T, "t_max": t_max})

    @classmethod
    def exploding(cls, T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
        """The VE schedule: x = x0 + σ·ε with σ in geometric progression, and the label σ.

        Args:
            T: The number of levels.
            sigma_min: The lowest level.
            sigma_max: The highest level.

        Returns:
            The schedule.

        Raises:
            InputError: If not 0 < sigma_min < sigma_max < ∞.

        Source:
            Song et al. 2021, arXiv 2011.13456.
        """
        return cls._geometric("exploding", T, sigma_min, sigma_max)

    @classmethod
    def edm(cls, T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
        """EDM's range of noise levels: x = x0 + σ·ε, and the label σ.

        Args:
            T: The number of levels.
            sigma_min: The lowest level.
            sigma_max: The highest level.

        Returns:
            The schedule.

        Raises:
            InputError: If not 0 < sigma_min < sigma_max < ∞.

        Source:
            Karras et al. 2022, arXiv 2206.00364, table 1.
        """
        return cls._geometric("edm", T, sigma_min, sigma_max)

    @classmethod
    def from_sigmas(cls, sigmas: Tensor | list[float]) -> Schedule:
        """The schedule of a network that looks σ up in a list, such as EDM's iDDPM networks: x = x0 + σ·ε, label σ.

        Args:
            sigmas: The noise levels, (T,), rising.

        Returns:
            The schedule, with `discrete` set.

        Raises:
            InputError: If there are fewer than two levels, or they are not finite, positive and strictly rising.
        """
        levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
        return cls(levels, "exploding", "from_sigmas", {"sigmas": levels.tolist()}, discrete=True)

    @classmethod
    def vp_sde(cls, T: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
        """score_sde's variance preserving SDE in continuous time, with the label t itself.

        Its levels are even in t. `linear` is the same SDE in T steps, with the index as label.

        Args:
            T: The number of levels.
            beta_min: β at t = 0.
            beta_max: β at t = 1.
            t_min: The lowest t, where score_sde's samplers end.

        Returns:
            The schedule.

        Raises:
            InputError: If not 0 < beta_min <= beta_max, or t_min is not strictly between 0 and 1.

        Source:
            Song et al. 2021, arXiv 2011.13456, equation 29 and appendix C.
        """
        return cls._sde("vp_sde", T, beta_min, beta_max, t_min)

    @classmethod
    def sub_vp_sde(cls, T: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
        """score_sde's sub-VP SDE, whose noise has the variance (1-a²)² where the image is scaled by a.

        Args:
            T, beta_min, beta_max, t_min: As of `vp_sde`.

        Returns:
            The schedule.

        Raises:
            InputError: As of `vp_sde`.

        Source:
            Song et al. 2021, arXiv 2011.13456, equation 30 and appendix C.
        """
        return cls._sde("sub_vp_sde", T, beta_min, beta_max, t_min)

    @classmethod
    def _sde(cls, made_by: str, T: int, beta_min: float, beta_max: float, t_min: float) -> Schedule:
        time = ContinuousTime(beta_min, beta_max, sub=made_by == "sub_vp_sde")
        parameters = {"T": T, "beta_min": beta_min, "beta_max": beta_max, "t_min": t_min}
        return cls(time.levels(T, t_min), "continuous", made_by, parameters, continuous=time)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> Schedule:
        """The schedule of a network that was trained with a scheduler of diffusers.

        The scheduler also says what the network predicts (`prediction_type`), which `odeddim.load(unet,
        scheduler=scheduler)` reads too. On flow paths the labels are "index", `time="index"` of a VectorField. A last
        level that is noise only (zero terminal SNR) is left out, because σ is infinite there.

        Args:
            scheduler: The scheduler, or its settings by name, its class as "_class_name": what scheduler_config.json
                holds.

        Returns:
            The schedule.

        Raises:
            InputError: If the class of the scheduler is unknown, or its settings contradict each other.

        Example:
            >>> odeddim.Schedule.from_diffusers({"_class_name": "DDIMScheduler", "num_train_timesteps": 500})
            Schedule.linear(T=500, σ 0.01 to 12.51)
        """
        return cls.of_settings(said_by(scheduler))

    @classmethod
    def of_settings(cls, said: Said) -> Schedule:
        """The schedule that the settings of a scheduler describe; see `from_diffusers`."""
        made = cls.from_dict(said.description)
        if said.shift != 1:
            made = cls.from_alphas(1 / (1 + said.shift * made.levels**2))
        if not said.rescaled:
            return made
        # √α shifted to end at 0 and scaled to begin as before (arXiv 2305.08891, algorithm 1), without that end.
        root = 1 / torch.sqrt(1 + made.levels**2)
        return cls.from_alphas(((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1] ** 2)

    @classmethod
    def _geometric(cls, made_by: str, T: int, sigma_min: float, sigma_max: float) -> Schedule:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InputError(
                f"noise levels must satisfy 0 < sigma_min < sigma_max < ∞, unlike sigma_min = {sigma_min} and "
                f"sigma_max = {sigma_max}"
            )
        levels = torch.logspace(math.log10(sigma_min), math.log10(sigma_max), T, dtype=torch.float64)
        levels[0], levels[-1] = sigma_min, sigma_max  # logspace rounds its ends
        return cls(levels, "exploding", made_by, {"T": T, "sigma_min": sigma_min, "sigma_max": sigma_max})

    # Descriptions of schedules in files.

    def to_dict(self) -> dict[str, Any]:
        """A description of the schedule, as values that JSON can hold, from which `from_dict` makes it again."""
        return {"name": self.name, **self._parameters}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Schedule:
        """The schedule of a description.

        Args:
            description: What `to_dict` returns: {"name": ..., and the arguments of the class method of that name}.

        Returns:
            The schedule.

        Raises:
            InputError: If the name is unknown, or the arguments make no schedule.
        """
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
        """The number of levels."""
        return len(self.levels)

    @property
    def time(self) -> str:
        """The name in `TIMES` of the labels that `t` returns: those that networks on such schedules usually take."""
        return {"preserving": "index", "flow": "unit", "exploding": "sigma", "continuous": "unit"}[self.kind]

    @property
    def sigma_min(self) -> float:
        """σ_1, the lowest level that the network was trained on."""
        return float(self.levels[0])

    @property
    def sigma_max(self) -> float:
        """σ_T, the highest level, where latents lie."""
        return float(self.levels[-1])

    def t(self, sigma: Tensor) -> Tensor:
        """The label of noise levels in the schedule's usual labels (`time`).

        For DDPM's networks it is exactly i at levels[i] (so 0 at the paper's t = 1), and linear in log σ in between.

        Args:
            sigma: The noise levels. Outside [σ_1, σ_T], they are moved to the nearer end.

        Returns:
            The labels, float64 on the CPU, of sigma's shape.
        """
        return self.label(sigma, self.time)

    def label(self, sigma: Tensor, time: Time) -> Tensor:
        """The label of noise levels in any labels.

        Args:
            sigma: The noise levels. Outside [σ_1, σ_T], they are moved to the nearer end.
            time: A name of `TIMES`, or a function of σ.

        Returns:
            The labels, float64 on the CPU, of sigma's shape.
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
        if self._continuous is not None and time == "index":
            return index_of(self._continuous.t(sigma), self.T, self._parameters["t_min"])
        if self._continuous is not None:
            return self._continuous.t(sigma) if time == "unit" else 1 - self._continuous.t(sigma)
        if self.kind == "flow":
            t = sigma / (1 + sigma)
            return t if time == "unit" else t * self.T if time == "index" else 1 - t
        below = torch.searchsorted(self.levels, sigma, right=True) - 1
        # There is no level above the last one: log(1) is 0 there, so any ratio serves.
        index = below + torch.log(sigma / self.levels[below]) / self._ratio[below.clamp(max=self.T - 2)]
        if time == "index":
            return index
        unit = (index + 1) / self.T
        return unit if time == "unit" else 1 - unit

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of labels: the inverse of `t`.

        Args:
            t: The labels.

        Returns:
            The noise levels, float64 on the CPU, of t's shape.
        """
        t = t.detach().to("cpu", torch.float64)
        if self.kind == "flow":
            return t / (1 - t)
        if self.kind == "exploding":
            return t
        if self._continuous is not None:
            return self._continuous.sigma(t)
        t = t.clamp(0, self.T - 1)
        below = t.floor().long()
        return self.levels[below] * torch.exp((t - below) * self._ratio[below.clamp(max=self.T - 2)])

    def scale(self, sigma: Tensor) -> Tensor:
        """The factor in x = scale·x̄, where x is the network's input.

        Args:
            sigma: The noise levels.

        Returns:
            The factors, of sigma's shape and dtype.
        """
        if self.kind == "flow":
            return 1 / (1 + sigma)
        if self.kind == "exploding":
            return torch.ones_like(sigma)
        if self._continuous is not None:
            return self._continuous.scale(sigma)
        return 1 / torch.sqrt(1 + sigma**2)


def _check_betas(T: int, beta_1: float, beta_T: float) -> None:
    if T < 2 or not 0 < beta_1 <= beta_T < 1:
        raise InputError(
            f"betas must satisfy T >= 2 and 0 < beta_1 <= beta_T < 1, unlike T = {T}, beta_1 = {beta_1} and "
            f"beta_T = {beta_T}"
        )


def _levels_from_betas(betas: Tensor) -> Tensor:
    """σ_t from β_t, (T,). It uses logarithms, because 1 - cumprod(1-β) loses half the digits of 1-α at small t."""
    return torch.sqrt(torch.expm1(-torch.cumsum(torch.log1p(-betas), dim=0)))
