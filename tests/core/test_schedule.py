"""Schedules: levels against the definition in exact arithmetic, t(σ) and σ(t) inverse, refusals."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

SCHEDULES = {
    "linear": Schedule.linear(),
    "linear-50": Schedule.linear(T=50),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "from_alphas": Schedule.from_alphas([0.9, 0.5, 0.1, 0.001]),
    "rectified_flow": Schedule.rectified_flow(),
    "exploding": Schedule.exploding(),
    "edm": Schedule.edm(),
    "from_sigmas": Schedule.from_sigmas([0.01, 0.2, 3.0, 80.2]),
    "vp_sde": Schedule.vp_sde(),
    "sub_vp_sde": Schedule.sub_vp_sde(T=400),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def test_linear_levels_are_the_definition_in_exact_fractions() -> None:
    T = 1000
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    alpha = Fraction(1)
    levels = Schedule.linear(T=T).levels
    for t in range(T):
        alpha *= 1 - Fraction(float(betas[t]))
        alpha = Fraction(round(alpha * 10**60), 10**60)  # 60 digits are exact enough, and keep the fractions short
        assert float(levels[t]) == pytest.approx(math.sqrt((1 - alpha) / alpha), rel=5e-15)


def test_paper_labels() -> None:
    schedule = Schedule.linear()
    assert schedule.T == 1000
    assert schedule.sigma_min == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-13)  # α_1 = 1 - β_1
    labels = schedule.t(schedule.levels)
    assert torch.equal(labels, torch.arange(1000, dtype=torch.float64))  # integers exactly at the levels
    for i, level in enumerate(schedule.levels):  # and one at a time as in a batch
        assert float(schedule.t(level)) == i
    assert float(schedule.t(torch.tensor(0.0))) == 0  # held below σ_1
    assert float(schedule.t(torch.tensor(1e9))) == 999


def test_label_is_linear_in_log_sigma_between_levels() -> None:
    schedule = Schedule.linear()
    for i in (0, 1, 499, 998):
        low, high = schedule.levels[i], schedule.levels[i + 1]
        assert float(schedule.t(torch.sqrt(low * high))) == pytest.approx(i + 0.5, abs=1e-10)


@every_schedule
def test_t_and_sigma_are_inverse_to_1e_12(schedule: Schedule) -> None:
    u = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = schedule.sigma_min * (schedule.sigma_max / schedule.sigma_min) ** u
    sigma = torch.cat([sigma.clamp(schedule.sigma_min, schedule.sigma_max), schedule.levels])
    t = schedule.t(sigma)
    assert torch.allclose(schedule.sigma(t), sigma, rtol=1e-12, atol=0)
    assert torch.allclose(schedule.t(schedule.sigma(t)), t, rtol=1e-12, atol=1e-12)
    order = torch.argsort(sigma)
    assert bool((t[order].diff() >= 0).all())


@every_schedule
def test_scale_is_the_share_of_the_image(schedule: Schedule) -> None:
    sigma = schedule.levels
    scale = schedule.scale(sigma)
    image, noise = scale, scale * sigma  # x = image·x0 + noise·ε
    if schedule.kind == "preserving" or schedule.name == "vp_sde":
        assert torch.allclose(image**2 + noise**2, torch.ones_like(sigma), rtol=1e-14)
    elif schedule.kind == "flow":
        assert torch.allclose(image + noise, torch.ones_like(sigma), rtol=1e-14)
        assert torch.allclose(noise, schedule.t(sigma), rtol=1e-12)
    elif schedule.name == "sub_vp_sde":
        assert torch.allclose(image**2 + noise, torch.ones_like(sigma), rtol=1e-12)
    else:
        assert torch.equal(image, torch.ones_like(sigma))


@every_schedule
def test_description_makes_the_same_schedule(schedule: Schedule) -> None:
    import json

    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert torch.equal(again.levels, schedule.levels)


def test_cosine_is_the_paper_where_beta_is_not_capped() -> None:
    T, s = 1000, 0.008
    levels = Schedule.cosine(T, s).levels

    def alpha(t: int) -> float:
        return math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2

    for t in (1, 10, 500, 900, 990):
        share = alpha(t) / alpha(0)
        assert float(levels[t - 1]) == pytest.approx(math.sqrt((1 - share) / share), rel=1e-10)


@pytest.mark.parametrize("sub", [False, True])
def test_continuous_time_is_the_sde_integrated_in_small_steps(sub: bool) -> None:
    """da/dt = -β·a/2, and of the variance dV/dt = -β·V + g², with the paper's two g²."""
    schedule = (Schedule.sub_vp_sde if sub else Schedule.vp_sde)(T=101, t_min=0.01)
    steps = 100_000
    log_a, variance = 0.0, 0.0
    found = []
    for step in range(steps):
        t = (step + 0.5) / steps
        beta = 0.1 + t * 19.9
        log_a -= beta / 2 / steps
        squared = beta * (1 - math.exp(-2 * (0.1 * t + 9.95 * t**2)) if sub else 1.0)
        decay = math.exp(-beta / steps)
        variance = variance * decay + squared / beta * (1 - decay)
        if (step + 1) % 1000 == 0:
            found.append(math.sqrt(variance) / math.exp(log_a))
    sigma = torch.tensor(found, dtype=torch.float64)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    assert torch.allclose(schedule.sigma(t), sigma, rtol=1e-4)
    assert torch.allclose(schedule.t(schedule.sigma(t)), t, rtol=1e-12)
    places = schedule.label(schedule.levels, "index")
    assert torch.allclose(places, torch.arange(101, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(schedule.label(schedule.levels, "reversed"), 1 - schedule.t(schedule.levels))


@pytest.mark.parametrize("wrong", [{"beta_min": 0.0}, {"beta_max": 0.01}, {"t_min": 0.0}, {"t_min": 1.0}, {"T": 1}])
def test_continuous_time_that_cannot_be(wrong: dict[str, float]) -> None:
    for name in ("vp_sde", "sub_vp_sde"):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Schedule.from_dict({"name": name, **wrong})


@given(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=2, max_size=30, unique=True))
def test_any_falling_alphas_make_a_schedule(alphas: list[float]) -> None:
    alphas = sorted(alphas, reverse=True)
    try:
        schedule = Schedule.from_alphas(alphas)
    except InputError:
        # Only where two α are so close that their σ coincide.
        sigma = [math.sqrt(math.expm1(-math.log(a))) for a in alphas]
        assert any(math.isclose(a, b, rel_tol=1e-14) for a, b in itertools.pairwise(sigma))
        return
    assert torch.allclose(1 / (1 + schedule.levels**2), torch.tensor(alphas, dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize(
    ("alphas", "word"),
    [
        ([1.0, 0.5], "α = 0 or 1"),
        ([0.5, 0.0], "α = 0 or 1"),
        ([0.5, 0.9], "rise"),
        ([0.5, math.nan], "α"),
        ([0.5], "two"),
    ],
)
def test_bad_alphas_are_refused(alphas: list[float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Schedule.from_alphas(alphas)


def test_bad_descriptions_are_refused() -> None:
    with pytest.raises(InputError, match="linear"):
        Schedule.from_dict({"name": "liner"})
    with pytest.raises(InputError, match="cannot be made"):
        Schedule.from_dict({"name": "linear", "gamma": 3})
    for alphas in (["a", "b"], [[0.5], [0.3, 0.2]], ["a"] * 10**5):
        with pytest.raises(InputError, match="'from_alphas' cannot be made") as error:
            Schedule.from_dict({"name": "from_alphas", "alphas_cumprod": alphas})
        assert len(str(error.value)) < 500
    with pytest.raises(InputError, match=r"^betas must satisfy T >= 2"):  # its own sentence, as it is
        Schedule.from_dict({"name": "linear", "T": 1})
    with pytest.raises(InputError, match="t_max"):
        Schedule.rectified_flow(t_max=1.0)
    with pytest.raises(InputError, match="sigma_min"):
        Schedule.edm(sigma_min=0.0)
    with pytest.raises(InputError, match="betas"):
        Schedule.linear(beta_1=0.0)
