"""from_network: one exact field posed as every kind of network there is, on every schedule, told its time in every way,
is one trajectory. The networks are written from the definitions of their parametrisation, not from odeddim's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from odeddim import solvers
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.conditions import Condition
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import TIMES, Schedule
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

MIXTURE = GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15)
ALPHAS = (1 - torch.linspace(0.0004, 0.035, 300, dtype=torch.float64)).cumprod(0)  # nobody's own
SCHEDULES = {
    "linear": Schedule.linear(),
    "cosine": Schedule.cosine(),
    "scaled_linear": Schedule.scaled_linear(),
    "rectified_flow": Schedule.rectified_flow(),
    "edm": Schedule.edm(),
    "exploding": Schedule.exploding(),
    "from_alphas": Schedule.from_alphas(ALPHAS),
    "vp_sde": Schedule.vp_sde(),
    "sub_vp_sde": Schedule.sub_vp_sde(),
}
PREDICTS = ("eps", "x0", "v", "flow", "flow-to-data", "score")
NODES = torch.logspace(math.log10(0.08), math.log10(10.0), 21, dtype=torch.float64)  # within all of them
Network = Callable[[Tensor, Tensor], Tensor]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def beta_levels(betas: Tensor) -> Tensor:
    """σ of DDPM's betas, by the product itself."""
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt()


def sde_sigma(kind: str, t: Tensor) -> Tensor:
    """The noise over the share of the image, by the paper's log a = -(β_1 - β_0)·t²/4 - β_0·t/2."""
    share = torch.exp(-19.9 * t**2 / 4 - 0.1 * t / 2)
    return (1 - share**2 if kind == "sub_vp_sde" else (1 - share**2).sqrt()) / share


def levels_of(kind: str) -> Tensor:
    """The noise levels of a training schedule, as its paper defines them."""
    if kind == "linear":
        return beta_levels(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    if kind == "scaled_linear":
        return beta_levels(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
    if kind == "from_alphas":
        return ((1 - ALPHAS) / ALPHAS).sqrt()
    if kind == "cosine":
        bar = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        return beta_levels((1 - bar[1:] / bar[:-1]).clamp(max=0.999))
    if "vp_sde" in kind:
        return sde_sigma(kind, torch.linspace(1e-3, 1, 1000, dtype=torch.float64))
    low, high = (0.002, 80.0) if kind == "edm" else (0.01, 50.0)
    return low * (high / low) ** (torch.arange(1000, dtype=torch.float64) / 999)


def sigma_of(kind: str, time: str, t: Tensor) -> Tensor:
    """The noise level that a network on this schedule is told by t, in this convention."""
    if time == "sigma":
        return t
    if time == "log-sigma":
        return torch.exp(4 * t)
    if kind == "rectified_flow":
        share = {"index": t / 1000, "integer": t / 1000, "unit": t, "reversed": 1 - t}[time]
        return share / (1 - share)
    if "vp_sde" in kind:
        place = {"index": 1e-3 + t / 999 * 0.999, "integer": 1e-3 + t / 999 * 0.999, "unit": t, "reversed": 1 - t}[time]
        return sde_sigma(kind, place)
    levels = levels_of(kind)
    count = len(levels)
    place = {"index": t, "integer": t, "unit": t * count - 1, "reversed": (1 - t) * count - 1}[time]
    below = (place + 1e-9).floor().long().clamp(0, count - 2)
    return levels[below] * (levels[below + 1] / levels[below]) ** (place - below)


def posed(kind: str, predicts: str, sigma_at: Callable[[Tensor], Tensor]) -> Network:
    """The exact field as a network that was trained to give `predicts` from x in its schedule's units."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        sigma = sigma_at(t).reshape(-1, 1, 1, 1)
        if kind == "rectified_flow":
            share = sigma / (1 + sigma)
            a, b = 1 - share, share  # x = (1-t)·x0 + t·ε
        elif kind in ("edm", "exploding"):
            a, b = torch.ones_like(sigma), sigma  # x = x0 + σ·ε
        elif kind == "sub_vp_sde":
            a = ((sigma**2 + 4).sqrt() - sigma) / 2
            b = 1 - a**2
        else:
            a = 1 / (1 + sigma**2).sqrt()
            b = (1 - a**2).sqrt()  # x = √α·x0 + √(1-α)·ε
        eps = MIXTURE(sigma.flatten(), x / a)
        x0 = (x - b * eps) / a
        cos = 1 / (1 + sigma**2).sqrt()
        answers = {"eps": eps, "x0": x0, "v": cos * eps - sigma * cos * x0, "flow": eps - x0, "flow-to-data": x0 - eps}
        answers["score"] = -eps / b
        return answers[predicts]

    return network


def walk(field: Any, nodes: Tensor, solver: str = "heun") -> tuple[Tensor, Tensor]:
    """What the nodes lead to, up from images and down from noise."""
    up = State(draw(2, 2, 4, 4).tanh(), float(nodes[0]))
    down = State(draw(2, 2, 4, 4, seed=2) * float(nodes[-1]), float(nodes[-1]))
    plan = Plan(solvers.get(solver), nodes)
    return integrate(field, up, plan).xbar, integrate(field, down, plan).xbar


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], to: float = 1e-10) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) < to * float(b.abs().max()), float((a - b).abs().max() / b.abs().max())


EXACT = walk(MIXTURE, NODES)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_field_posed_in_every_way_is_one_trajectory(kind: str, predicts: str) -> None:
    for time in TIMES:
        if time == "integer":  # on integer nodes, below
            continue
        network = posed(kind, predicts, lambda t, time=time: sigma_of(kind, time, t))  # type: ignore[misc]
        field = VectorField.from_network(network, SCHEDULES[kind], predicts=predicts, time=time)
        same(walk(field, NODES), EXACT)
        assert field.nfe == 2 * 2 * 20


@pytest.mark.parametrize("kind", SCHEDULES)
def test_whole_labels_on_the_schedules_own_levels(kind: str) -> None:
    schedule = SCHEDULES[kind]
    nodes = schedule.levels[(schedule.levels > 0.08) & (schedule.levels < 10)]
    nodes = nodes[:: len(nodes) // 12]
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        # On flow paths label T·t is 1000·t, which t_max < 1 puts beside the whole numbers; elsewhere on them.
        return posed(kind, "eps", lambda t: schedule.sigma(t) if kind == "linear" else at(t))(x, t)

    def at(t: Tensor) -> Tensor:
        return torch.stack([nodes[(own - float(label)).abs().argmin()] for label in t])

    own = schedule.label(nodes, "index")
    field = VectorField.from_network(network, schedule, time="integer")
    same(walk(field, nodes, "euler"), walk(MIXTURE, nodes, "euler"))
    assert all(bool((t == t.round()).all()) for t in seen)
    if kind != "rectified_flow":
        assert torch.allclose(own, own.round(), atol=1e-6)


def test_a_time_of_ones_own() -> None:
    """score_sde's VP networks are told 999·t of a continuous t; a network may be told anything."""
    for time, back in (
        (lambda sigma: torch.log1p(sigma**2), lambda t: torch.expm1(t).sqrt()),
        (lambda sigma: -2 * torch.log(sigma), lambda t: torch.exp(-t / 2)),  # log-SNR
    ):
        for kind, predicts in (("linear", "v"), ("edm", "x0"), ("rectified_flow", "flow")):
            field = VectorField.from_network(posed(kind, predicts, back), SCHEDULES[kind], predicts=predicts, time=time)
            same(walk(field, NODES), EXACT)


def test_what_no_time_is_given_is_the_schedules() -> None:
    for kind, time in {"cosine": "index", "rectified_flow": "unit", "edm": "sigma", "exploding": "sigma"}.items():
        assert VectorField.from_network(lambda x, t: x, SCHEDULES[kind]).time == time


# As other software has them.


def test_edms_preconditioning_around_an_inner_network() -> None:
    """D = c_skip·x + c_out·F(c_in·x, c_noise) of Karras et al., table 1, with F written from the exact D."""
    data = 0.5

    def inner(scaled: Tensor, c_noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise).reshape(-1, 1, 1, 1)
        x = scaled * (sigma**2 + data**2).sqrt()
        clean = x - sigma * MIXTURE(sigma.flatten(), x)
        return (clean - data**2 / (sigma**2 + data**2) * x) * (sigma**2 + data**2).sqrt() / (sigma * data)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
        return c_skip * x + c_out * inner(x / (s**2 + data**2).sqrt(), sigma.log() / 4)

    for schedule in (Schedule.edm(), Schedule.exploding()):
        same(walk(VectorField.from_network(denoiser, schedule, predicts="x0"), NODES), EXACT)


def test_k_diffusions_wrappers_of_ddpm_networks() -> None:
    """CompVisDenoiser: D(x, σ) = x - σ·ε(x/√(σ²+1), t(σ)), and the v one; around the network itself, and as D."""
    own = SCHEDULES["scaled_linear"]
    for predicts in ("eps", "v"):
        network = posed("scaled_linear", predicts, lambda t: sigma_of("scaled_linear", "index", t))

        def denoiser(x: Tensor, sigma: Tensor, network: Network = network, predicts: str = predicts) -> Tensor:
            s = sigma.reshape(-1, 1, 1, 1)
            log = own.levels.log()
            above = torch.searchsorted(log, sigma.log()).clamp(1, len(log) - 1)
            part = (sigma.log() - log[above - 1]) / (log[above] - log[above - 1])
            answer = network(x / (s**2 + 1).sqrt(), above - 1 + part)
            return x - s * answer if predicts == "eps" else x / (s**2 + 1) - answer * s / (s**2 + 1).sqrt()

        range_of = Schedule.edm(sigma_min=own.sigma_min, sigma_max=own.sigma_max)
        same(walk(VectorField.from_network(denoiser, range_of, predicts="x0"), NODES), EXACT)
        same(walk(VectorField.from_network(network, own, predicts=predicts), NODES), EXACT)


def test_flow_networks_in_both_directions_of_time() -> None:
    """Euler on their own ODE dx/dt = u(x, t) is DDIM: the same points, on the same nodes."""
    schedule = SCHEDULES["rectified_flow"]
    velocity = posed("rectified_flow", "flow", lambda t: t / (1 - t))

    def to_data(x: Tensor, t: Tensor) -> Tensor:
        return -velocity(x, 1 - t)

    towards = VectorField.from_network(velocity, schedule, predicts="flow")
    back = VectorField.from_network(to_data, schedule, predicts="flow-to-data", time="reversed")
    t = torch.linspace(0.9, 0.1, 21, dtype=torch.float64)
    for times in (t, t.flip(0)):
        first = float(times[0])
        x = y = start = draw(2, 2, 4, 4)
        for here, there in itertools.pairwise(times):
            x = x + (there - here) * velocity(x, here.expand(2))
            y = y + (here - there) * to_data(y, 1 - here.expand(2))
        sigmas = times / (1 - times)
        for field, end in ((towards, x), (back, y)):
            state = State(start / (1 - first), float(sigmas[0]))
            plan = Plan(solvers.get("euler"), sigmas.sort().values)
            ours = integrate(field, state, plan).xbar * (1 - times[-1])
            assert float((ours - end).abs().max()) < 1e-12


def test_answers_of_other_shapes() -> None:
    plain = posed("linear", "eps", lambda t: sigma_of("linear", "index", t))
    variances: Network = lambda x, t: torch.cat([plain(x, t), draw(*x.shape, seed=9)], 1)  # noqa: E731
    schedule = SCHEDULES["linear"]
    wraps: tuple[Callable[[Tensor], Any], ...] = (
        lambda out: (out, "state"),
        lambda out: [out],
        lambda out: SimpleNamespace(sample=out),
    )
    for wrap in wraps:
        for network, learned in ((plain, False), (variances, True), (plain, True)):
            field = VectorField.from_network(
                lambda x, t, wrap=wrap, network=network: wrap(network(x, t)), schedule, variances=learned
            )
            same(walk(field, NODES), EXACT)


def test_a_module_is_put_into_evaluation_mode_and_moved() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dropout = torch.nn.Conv2d(2, 2, 1), torch.nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=self.dropout(self.conv(x)))

    inner = Inner().train()
    field = VectorField.from_network(inner, SCHEDULES["linear"])
    assert not inner.training
    assert not inner.dropout.training
    assert field.dtype == torch.float32
    field.to("cpu", torch.float64)
    assert inner.conv.weight.dtype == field.dtype == torch.float64
    x = draw(2, 2, 4, 4)
    assert torch.equal(field(torch.tensor(1.0), x), field(torch.tensor(1.0), x))


# Classes and guidance.


class Classy:
    """A network with 3 classes and a null; counts calls and remembers batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert y.dtype == torch.int64
        self.batches.append(y.tolist())
        gain = torch.tensor([0.9, 1.1, 0.7, 1.0], dtype=x.dtype)[y].reshape(-1, 1, 1, 1)
        out: Tensor = torch.tanh(gain * x + y.reshape(-1, 1, 1, 1) / 5) * (1 + t.reshape(-1, 1, 1, 1) / 1000)
        return out

    def field(self, **settings: Any) -> VectorField:
        return VectorField.from_network(self, SCHEDULES["linear"], classes=3, null=3, **settings)


def by_hand(xbar: Tensor, sigma: float, label: int, w: float) -> Tensor:
    """ε = ε(none) + w·(ε(label) - ε(none)), two evaluations."""
    network, level = Classy(), torch.tensor(sigma, dtype=torch.float64)
    x, t = xbar / math.sqrt(1 + sigma**2), SCHEDULES["linear"].t(level).expand(len(xbar))
    none, told = (network(x, t, torch.full((len(x),), y)) for y in (3, label))
    return told if w == 1 else none + w * (told - none)


def test_guidance_is_the_formula_in_one_doubled_batch() -> None:
    network = Classy()
    xbar = draw(3, 2, 4, 4)
    for w in (0.0, 0.5, 1.0, 2.0, 7.5, -1.0):
        field = network.field().conditioned(1, guidance=w)
        network.batches.clear()
        ours = field(torch.tensor(2.0, dtype=torch.float64), xbar)
        assert torch.allclose(ours, by_hand(xbar, 2.0, 1, w), rtol=1e-13, atol=1e-13)
        assert network.batches == ([[1] * 3] if w == 1 else [[1] * 3 + [3] * 3])
        assert (field.nfe, field.rows) == (1, 3 if w == 1 else 6)
    network.batches.clear()
    network.field()(torch.tensor(2.0), xbar)
    assert network.batches == [[3] * 3]  # bare: the null class


def test_guidance_of_velocities_and_images() -> None:
    """Guided in what the network predicts, which is guided ε: all conversions are affine with the same offset."""
    sigma = 2.0
    x = draw(2, 2, 4, 4)
    gains = torch.tensor([0.4, 0.9], dtype=torch.float64)
    for kind, predicts in (("linear", "v"), ("edm", "x0"), ("rectified_flow", "flow")):
        field = VectorField.from_network(
            lambda x, t, y: x * gains[y].reshape(-1, 1, 1, 1), SCHEDULES[kind], predicts=predicts, classes=1, null=1
        )
        level = torch.tensor(sigma, dtype=torch.float64)
        told, none = field.conditioned(0)(level, x), field(level, x)
        assert torch.allclose(field.conditioned(0, guidance=4)(level, x), none + 4 * (told - none), rtol=1e-12)


def test_an_interval_holds_at_its_edges() -> None:
    network = Classy()
    xbar = draw(2, 2, 4, 4)
    field = network.field().conditioned(0, guidance=3.0, interval=(0.5, 2.0))
    for sigma, within in {0.5: True, 2.0: True, 1.0: True, 0.4999999: False, 2.0000001: False, 9.0: False}.items():
        network.batches.clear()
        ours = field(torch.tensor(sigma, dtype=torch.float64), xbar)
        assert torch.allclose(ours, by_hand(xbar, sigma, 0, 3.0 if within else 1.0), rtol=1e-13, atol=1e-13), sigma
        assert len(network.batches) == 1
        assert len(network.batches[0]) == (4 if within else 2), sigma
    # A level of its own for each image: each guided or not.
    per_image = torch.tensor([1.0, 9.0], dtype=torch.float64)
    ours = field(per_image, xbar)
    for i, w in enumerate((3.0, 1.0)):
        assert torch.allclose(ours[i : i + 1], by_hand(xbar[i : i + 1], float(per_image[i]), 0, w), rtol=1e-13)


@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_network_batch_with_guidance_is_bit_for_bit(interval: tuple[float, float] | None) -> None:
    """A network whose last digits depend on its batch, as those of convolutions do."""
    inner = Classy()

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return inner(x, t, y) * (1 + 1e-9 * len(x))

    field = VectorField.from_network(network, SCHEDULES["linear"], classes=3, null=3)
    field = field.conditioned(2, guidance=2.5, interval=interval)
    field.network_batch = 4
    xbar = draw(7, 2, 4, 4)
    for sigma in (torch.tensor(1.0), torch.tensor(5.0)):
        whole = field(sigma.double(), xbar)
        for size in (1, 2, 3, 5, 7):
            parts = torch.cat([field(sigma.double(), part) for part in xbar.split(size)])
            assert torch.equal(parts, whole), (size, float(sigma))
    plan, first = Plan(solvers.get("ab2"), NODES[:8]), float(NODES[0])
    whole = integrate(field, State(xbar, first), plan).xbar
    parts = [integrate(field, State(part, first), plan).xbar for part in xbar.split(2)]
    assert torch.equal(torch.cat(parts), whole)
    levels = torch.tensor([0.3, 1.0, 5.0, 1.5, 0.7, 3.0, 1.9], dtype=torch.float64)
    whole = field(levels, xbar)
    per_part = [field(a, b) for a, b in zip(levels.split(3), xbar.split(3), strict=True)]
    # Images of one block share what it costs, so only their numbers are theirs.
    assert torch.allclose(torch.cat(per_part), whole, rtol=1e-8)


def test_a_guided_trajectory() -> None:
    field = Classy().field().conditioned(1, guidance=2.0, interval=(0.3, 3.0))
    xbar = start = draw(2, 2, 4, 4)
    for here, there in itertools.pairwise(NODES):
        w = 2.0 if 0.3 <= here <= 3.0 else 1.0
        xbar = xbar + (there - here) * by_hand(xbar, float(here), 1, w)
    ours = integrate(field, State(start, float(NODES[0])), Plan(solvers.get("euler"), NODES)).xbar
    assert float((ours - xbar).abs().max()) < 1e-12


# What cannot be.


def test_refusals_are_one_sentence() -> None:
    def said(words: str, make: Callable[[], Any]) -> None:
        with pytest.raises(InputError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)

    linear, x, one = SCHEDULES["linear"], draw(2, 2, 4, 4), torch.tensor(1.0)
    make = VectorField.from_network
    said("unknown prediction 'epsilon'; here it is 'eps'", lambda: make(lambda x, t: x, linear, predicts="epsilon"))
    said("unknown time label 'sigmas'; here it is 'sigma'", lambda: make(lambda x, t: x, linear, time="sigmas"))
    said("returns a NoneType, not a tensor", lambda: make(lambda x, t: None, linear)(one, x))
    said("returns a dict, not a tensor", lambda: make(lambda x, t: {"sample": x}, linear)(one, x))
    said("returns a str, not a tensor", lambda: make(lambda x, t: ("x", x), linear)(one, x))
    said("variances=True", lambda: make(lambda x, t: torch.cat([x, x], 1), linear)(one, x))
    said("returned shape", lambda: make(lambda x, t: x[:, :1], linear, variances=True)(one, x))
    said("returned shape", lambda: make(lambda x, t: x[:1], linear)(one, x))
    said("NaN or infinite values at σ = 1", lambda: make(lambda x, t: x / 0, linear)(one, x))
    said("has no conditions: leave out class 1", lambda: make(lambda x, t: x, linear).conditioned(1))
    said("has no conditions: leave out", lambda: make(lambda x, t: x, linear).conditioned(guidance=2))
    classy = make(lambda x, t, y: x, linear, classes=3)
    said("needs a class: give label=... from 0 to 2", lambda: classy(one, x))
    said("needs a class", lambda: classy.conditioned())
    said("classes 0 to 2, not 3", lambda: classy.conditioned(3))
    said("classes 0 to 2, not -1", lambda: classy.conditioned(-1))
    said("no prompts", lambda: classy.conditioned(prompt="a cat"))
    said("has no unconditional mode", lambda: classy.conditioned(1, guidance=2))
    null = make(lambda x, t, y: x, linear, classes=3, null=3)
    said("classes 0 to 2, not 4", lambda: null.conditioned(4, guidance=2))
    for interval in ((2.0, 1.0), (1.0, 1.0), (-1.0, 1.0)):
        said("0 <= low < high", lambda interval=interval: null.conditioned(1, guidance=2, interval=interval))
    said("guidance must be a finite number", lambda: null.conditioned(1, guidance=math.nan))


def test_a_condition_is_what_its_file_says() -> None:
    for condition in (
        Condition(),
        Condition(3, guidance=2.0, interval=(0.3, 5.0)),
        Condition(prompt="a", negative_prompt="b", guidance=7.5),
    ):
        again = condition.to_dict()
        if "interval" in again:
            again["interval"] = tuple(again["interval"])
        assert Condition(**again) == condition
    assert Condition(3, guidance=2.0, interval=(0.3, 5.0)).words == "class 3, guidance 2 for σ in 0.3 to 5"


@pytest.mark.parametrize("kind", ["linear", "exploding", "sub_vp_sde"])
def test_a_score_at_the_image_is_that_of_the_lowest_level(kind: str) -> None:
    """Where ε = -σ·score would be 0."""
    schedule = SCHEDULES[kind]
    image = draw(2, 1, 4, 4)
    nothing = torch.tensor(0.0, dtype=torch.float64)
    found = []
    for predicts in ("eps", "score"):
        network = posed(kind, predicts, schedule.sigma)
        found.append(VectorField.from_network(network, schedule, predicts=predicts)(nothing, image))
    # What the network takes for ε there differs by x̄ at σ = 0 in place of σ_1, a part in σ_1.
    assert 0 < float((found[0] - found[1]).abs().max()) < 0.05 * float(found[0].abs().max())
