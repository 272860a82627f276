"""Figures of latents against scipy and theory; error estimates against runs whose error is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odeddim.analytic import GaussianMixture
from odeddim.api import encode
from odeddim.field import VectorField
from odeddim.latents.quality import FIGURES, FLATTEST, richardson, statistics
from odeddim.schedule import Schedule
from odeddim.types import InputError


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def morans_i(x: np.ndarray) -> float:
    """By its definition: a matrix of who is whose neighbour."""
    places = np.stack(np.unravel_index(np.arange(x.size), x.shape), axis=1)
    apart = np.abs(places[:, None] - places[None])
    allowed = apart[..., :-2].sum(-1) == 0 if x.ndim == 3 else apart[..., :-1].sum(-1) == 0
    weights = (allowed & (apart.sum(-1) == 1)).astype(float)
    d = x.ravel() - x.mean()
    return float(x.size / weights.sum() * (d @ weights @ d) / (d @ d))


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 6), (2, 4, 1), (9,), (4, 6)])
def test_figures_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    x = noise(4, *shape) * 1.1 + 0.2
    found = statistics(x)
    assert tuple(found) == FIGURES
    for i, row in enumerate(x.numpy()):
        expected = {
            "norm": np.linalg.norm(row) / math.sqrt(row.size),
            "mean": row.mean(),
            "variance": row.var(ddof=1),
            "kurtosis": scipy.stats.kurtosis(row, axis=None, fisher=False),
            "autocorrelation": morans_i(row),
        }
        for name, value in expected.items():
            assert found[name].dtype == torch.float64
            assert found[name].shape == (4,)
            assert float(found[name][i]) == pytest.approx(value, rel=1e-12), name
        exact = scipy.stats.kstest(row.ravel(), "norm", method="exact").pvalue
        assert abs(float(found["normality"][i]) - exact) < 0.03


def test_p_values_are_scipys() -> None:
    """Stephens's correction: 0.03 everywhere from D = 4, 0.003 where it decides something."""
    for size in (4, 10, 64, 784):
        x = noise(300, size, seed=size) * torch.linspace(1, 2, 300, dtype=torch.float64).unsqueeze(1)
        found = statistics(x)["normality"].numpy()
        exact = np.array([scipy.stats.kstest(row, "norm", method="exact").pvalue for row in x.numpy()])
        assert np.abs(found - exact).max() < 0.03
        assert np.abs(found - exact)[exact < 0.1].max() < 0.003


def test_white_noise_is_as_expected() -> None:
    """Means and standard deviations over 3000 latents are the documented ones, p-values evenly between 0 and 1."""
    count, size, pairs = 3000, 3 * 12 * 12, 3 * 2 * 12 * 11
    found = statistics(noise(count, 3, 12, 12))
    expected = {
        "norm": (1 - 1 / (4 * size), 1 / math.sqrt(2 * size)),
        "mean": (0, 1 / math.sqrt(size)),
        "variance": (1, math.sqrt(2 / (size - 1))),
        "kurtosis": (3 - 6 / (size + 1), math.sqrt(24 / size)),
        "autocorrelation": (-1 / (size - 1), 1 / math.sqrt(pairs)),
        "normality": (1 / 2, 1 / math.sqrt(12)),
    }
    for name, (centre, deviation) in expected.items():
        assert abs(float(found[name].mean()) - centre) < 4 * deviation / math.sqrt(count), name
        assert float(found[name].std()) == pytest.approx(deviation, rel=0.07), name
    p = found["normality"].numpy()
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001
    for level in (0.01, 0.05):
        assert abs((p < level).mean() - level) < 4 * math.sqrt(level / count)


def test_what_is_no_noise_is_seen() -> None:
    x = noise(5, 3, 16, 16)
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    smooth = smooth / smooth.flatten(1).std(dim=1).reshape(-1, 1, 1, 1)
    assert float(statistics(smooth)["autocorrelation"].min()) > 0.4  # neighbours share 6 of 9 pixels
    heavy = statistics(torch.sign(x) * x**2)
    assert float(heavy["kurtosis"].min()) > 6
    assert float(heavy["normality"].max()) < 1e-3
    for other in (x * 1.5, x + 0.5):
        assert float(statistics(other)["normality"].max()) < 1e-3
    assert float(statistics(x * 1.5)["norm"].min()) > 1.4
    stripes = statistics(torch.tensor([1.0, -1.0]).repeat(1, 1, 8, 4))
    assert float(stripes["autocorrelation"]) == 0  # beside each other -1, below each other 1
    assert float(statistics(torch.eye(2).repeat(4, 4)[None, None] * 2 - 1)["autocorrelation"]) == -1


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3])
def test_a_constant(value: float) -> None:
    x = torch.full((1, 1, 7, 7), value, dtype=torch.float64)
    found = {name: float(figure) for name, figure in statistics(x).items()}
    assert found["norm"] == pytest.approx(abs(value))
    assert (found["mean"], found["variance"]) == (value, 0)
    assert math.isnan(found["kurtosis"])
    assert math.isnan(found["autocorrelation"])
    assert found["normality"] < 1e-9


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1, 1)])
def test_one_value_has_no_neighbours(shape: tuple[int, ...]) -> None:
    found = statistics(torch.tensor([0.5, -2.0]).reshape(shape))
    assert found["norm"].tolist() == [0.5, 2.0]
    for name in ("variance", "kurtosis", "autocorrelation"):
        assert bool(found[name].isnan().all())
    assert bool(((found["normality"] > 0) & (found["normality"] < 1)).all())


def test_of_no_latents_there_are_no_figures() -> None:
    assert all(figure.shape == (0,) for figure in statistics(torch.empty(0, 1, 4, 4)).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_latents_figures_do_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x = noise(6, 3, 33, 35, dtype=dtype)
    x[2] = math.inf
    together = statistics(x)
    for i in range(6):
        for name, figure in statistics(x[i : i + 1]).items():
            assert torch.equal(figure.nan_to_num(-9), together[name][i : i + 1].nan_to_num(-9)), name
        turned = x[i : i + 1].to(memory_format=torch.channels_last)  # the same values in another order in memory
        for name, figure in statistics(turned).items():
            assert torch.equal(figure.nan_to_num(-9), together[name][i : i + 1].nan_to_num(-9)), name


def test_float32_is_computed_in_float64() -> None:
    x = noise(2, 3, 20, 20, dtype=torch.float32) + 1000
    for name, figure in statistics(x).items():
        assert torch.equal(figure, statistics(x.double())[name])
    assert statistics(x)["variance"].tolist() == pytest.approx(x.double().flatten(1).var(dim=1).tolist(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(order=st.integers(1, 4), rate=st.floats(0.4, 1.0), seed=st.integers(0, 100), scale=st.floats(1e-6, 1e3))
def test_richardson_is_exact_where_errors_are_a_power_of_the_step(
    order: int, rate: float, seed: int, scale: float
) -> None:
    """c·h^p for any p between FLATTEST's and the order, another c for each image."""
    power = max(rate * order, math.log2(FLATTEST) + 1e-3)
    c = noise(3, 2, 4, 4, seed=seed) * torch.tensor([1.0, 3.0, 1e-3]).double().reshape(-1, 1, 1, 1) * scale
    found = richardson(c, c * 2**power, c * 4**power, order)
    assert found.dtype == torch.float64
    assert torch.allclose(found, (c**2).flatten(1).mean(1).sqrt(), rtol=1e-9, atol=0)


def test_richardson_believes_no_more_than_it_sees() -> None:
    """Of order 4: faster than it, slower than FLATTEST, and fast without keeping its direction."""
    zero, one = torch.zeros(1, 2).double(), torch.tensor([[1.0, 0.0]]).double()
    aside = torch.tensor([[0.0, 1.0]]).double()
    cases = [
        (100 * one, 1 / 15),  # at most 2^4
        (16 * one, 1 / 15),
        (3 * one, 1 / 2),
        (1.01 * one, 4),  # at least 1.25
        (0 * one, 4),
        (100 * aside, 1),  # errors that turn: no more than Euler's factor, 2
        (1.5 * aside, 2),
        (-100 * one, 1),
        (3 * one + 100 * aside, 1 / 2),
    ]
    for second, expected in cases:
        found = richardson(zero, -one, -one - second, 4)
        assert float(found) == pytest.approx(expected / math.sqrt(2), rel=1e-12)
    assert richardson(one, one, zero, 2).tolist() == [0.0]
    assert richardson(one, one, one, 2).tolist() == [0.0]


def test_richardson_takes_each_image_by_itself() -> None:
    runs = [noise(5, 3, 33, 35, seed=seed, dtype=torch.float32) for seed in range(3)]
    together = richardson(*runs, 2)
    for i in range(5):
        assert torch.equal(richardson(*(run[i : i + 1] for run in runs), 2), together[i : i + 1])
    assert torch.equal(together, richardson(*(run.double() for run in runs), 2))
    with pytest.raises(InputError, match="three runs on the same images"):
        richardson(runs[0], runs[1], runs[2][:1], 2)


SOLVERS = {"euler": 1, "heun": 2, "ab2": 2, "ab3": 3, "dpmpp-2m": 2, "belm": 2}
MIXTURES = {
    "pixels": (GaussianMixture(torch.tensor([-0.6, 0.6]), 0.15), (12, 1, 4, 4)),
    "images": (GaussianMixture((noise(8, 1, 6, 6, seed=1) * 0.6).clamp(-0.6, 0.6), 0.2), (12,)),
    "narrow": (GaussianMixture((noise(40, 1, 8, 8, seed=2) * 0.5).clamp(-1, 1), 0.05), (12,)),
}


def test_estimates_of_runs_whose_error_is_known() -> None:
    """Latents of Gaussian mixtures by 16 to 64 steps, against 800 of order 4: estimates over true errors.

    `pytest -s` prints the quantiles. Too low is worse than too high.
    """
    generator = torch.Generator().manual_seed(0)
    ratios: dict[str, list[Tensor]] = {name: [] for name in SOLVERS}
    for mixture, drawn in MIXTURES.values():
        images = mixture.means[torch.randint(len(mixture.means), drawn, generator=generator)]
        images = images + mixture.std * noise(*images.shape, seed=3)
        for schedule in (Schedule.linear(), Schedule.cosine()):
            model = VectorField(mixture.network(schedule), schedule)
            truth = encode(images, "rk4", model=model, steps=800, grid="log").x
            for name, order in SOLVERS.items():
                runs = {steps: encode(images, name, model=model, steps=steps).x for steps in (4, 8, 16, 32, 64)}
                for steps in (16, 32, 64):
                    estimate = richardson(runs[steps], runs[steps // 2], runs[steps // 4], order)
                    true = ((runs[steps] - truth) ** 2).flatten(1).mean(1).sqrt()
                    assert float(true.min()) > 1e-6  # far above the reference's own error
                    ratios[name].append(estimate / true)
    levels = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99], dtype=torch.float64)
    every = {name: torch.cat(parts) for name, parts in ratios.items()}
    every["all"] = torch.cat(list(every.values()))
    print("\nestimate / true error, quantiles", levels.tolist(), "and the share below 0.5")
    for name, values in every.items():
        quantiles = "  ".join(f"{value:6.2f}" for value in values.quantile(levels).tolist())
        print(f"{name:10s} {quantiles}   {float((values < 0.5).double().mean()):.3f}")
    low, median, high = every["all"].quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    assert low > 0.6
    assert 1 < median < 2.5
    assert high < 25
    assert float((every["all"] < 0.5).double().mean()) < 0.04
