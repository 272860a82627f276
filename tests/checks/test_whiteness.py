"""Figures of latents against scipy and theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from odeddim.checks.whiteness import FIGURES, statistics


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
