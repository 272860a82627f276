"""Guidance by a second model: against its formula and a closed solution, and what does not fit is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import Schedule, VectorField
from odeddim.ode.conditions import Classes, Condition, Guide
from odeddim.types import InputError

EDM = Schedule.edm()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(torch.nn.Module):
    """A convolution that notes what it is asked."""

    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.out = torch.nn.Conv2d(2, width, 3, padding=1), torch.nn.Conv2d(width, 2, 3, padding=1)
        self.asked: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.asked.append((x.shape[0], x.dtype, None if label is None else label.tolist()))
        shift = t.log() if label is None else t.log() + label
        answer: Tensor = self.out(torch.tanh(self.conv(x) + shift.to(x.dtype)[:, None, None, None]))
        return answer


def model(seed: int, *, classes: int | None = None, null: int | None = None, **how: Any) -> VectorField:
    how = {"schedule": EDM, "predicts": "x0", "shape": (2, 6, 6), "name": f"net-{seed}", **how}
    return VectorField.from_network(Net(seed, 8 + seed), classes=classes, null=null, **how)


@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
@pytest.mark.parametrize("weight", [2.5, 0.0, -1.0])
def test_it_is_the_formula(predicts: str, weight: float) -> None:
    schedule = EDM if predicts == "x0" else Schedule.linear()
    main, small = (model(seed, predicts=predicts, schedule=schedule, time="sigma") for seed in (0, 1))
    both = [it.to("cpu", torch.float64) for it in (main, small)]
    xbar, sigma = draw(2, 3, 2, 6, 6), torch.tensor([0.3, 1.0, 20.0], dtype=torch.float64)
    own, other = (it(sigma, xbar) for it in both)
    guided = main.conditioned(guidance=weight, guide=small)
    ours = guided(sigma, xbar)
    assert torch.allclose(ours, other + weight * (own - other), rtol=1e-12, atol=1e-12)
    assert (guided.nfe, guided.rows, main.rows, small.rows) == (1, 6, 3, 3)
    assert [asked[0] for asked in main.eps.network.asked] == [3, 3]  # type: ignore[union-attr]


def test_the_solution_between_two_gaussians() -> None:
    """ε = σ·x̄/(s² + σ²) of N(0, s²), so x̄(σ) is a product of powers of s² + σ², one for each model."""
    s, weight = (0.5, 0.8), 2.0

    def gaussian(width: float) -> VectorField:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return x * (width**2 / (width**2 + t**2))[:, None, None, None]

        return VectorField.from_network(denoise, EDM, predicts="x0", name=f"N(0, {width}²)")

    guided = gaussian(s[0]).conditioned(guidance=weight, guide=gaussian(s[1]))
    x = draw(0, 2, 1, 4, 4)
    up = odeddim.encode(x, "heun", model=guided, steps=400, end="sigma_min", grid="karras").xbar
    low, high = EDM.sigma_min, EDM.sigma_max
    grown = [((it**2 + high**2) / (it**2 + low**2)) ** 0.5 for it in s]
    assert torch.allclose(up, x * grown[0] ** weight * grown[1] ** (1 - weight), rtol=1e-3)
    assert guided.rows == 2 * 2 * guided.nfe


def test_the_guide_is_told_the_class_if_it_takes_any() -> None:
    main, small, plain = model(0, classes=5), model(1, classes=5, null=5), model(2)
    xbar, sigma = draw(3, 2, 2, 6, 6), torch.tensor(1.0)
    for guide, told in ((small, [3, 3]), (plain, None)):
        guided = main.conditioned(3, guidance=2, guide=guide)
        ours = guided(sigma, xbar)
        assert guide.eps.network.asked[-1][2] == told  # type: ignore[union-attr]
        own, other = main.conditioned(3)(sigma, xbar), (guide.conditioned(3) if told else guide)(sigma, xbar)
        assert torch.allclose(ours, 2 * own - other, atol=1e-6)
    assert guided.condition.words == "class 3, guidance 2 by net-2"
    assert "guidance 2 by net-2" in repr(guided)
    assert guided.conditioned(3).guide is None
    unconditional = plain.conditioned(guidance=2, guide=model(3))
    assert plain.conditions is None
    assert unconditional.conditioned()._given is None
    # One without an unconditional mode can be guided by another model, and not by itself.
    with pytest.raises(InputError, match=r"no unconditional mode.*guide="):
        main.conditioned(3, guidance=2)


def test_interval_blocks_and_images_apart() -> None:
    guided = model(0, classes=4).conditioned(1, guidance=3, interval=(0.5, 2), guide=model(1))
    guided.network_batch = 2
    xbar, sigma = draw(4, 5, 2, 6, 6).float(), torch.tensor([0.1, 1.0, 3.0, 1.5, 0.7], dtype=torch.float64)
    together = guided(sigma, xbar)
    assert (guided.rows, guided.filled) == (8, 2)  # three images twice; one of each network fills up
    for i in range(5):
        assert torch.equal(guided(sigma[i], xbar[i : i + 1])[0], together[i])
    plain = guided.conditioned(1)
    plain.network_batch = 2
    assert torch.equal(plain(sigma, xbar)[0], together[0])
    assert not torch.allclose(plain(sigma, xbar)[1], together[1], rtol=1e-2)


@pytest.mark.parametrize("takes", [4, None])
def test_a_condition_of_each_image(takes: int | None) -> None:
    guided = model(0, classes=4).conditioned(0, guidance=3, interval=(0.1, 2), guide=model(1, classes=takes))
    xbar, sigma = draw(4, 3, 2, 6, 6), torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    labels = [2, 0, 3]
    conditions = [replace(guided.condition, label=label) for label in labels]
    together = guided.conditioned_each(conditions)(sigma, xbar)
    for i, label in enumerate(labels):
        alone = guided.conditioned(label, guidance=3, interval=(0.1, 2), guide=model(1, classes=takes))
        assert torch.allclose(alone(sigma[i], xbar[i : i + 1])[0], together[i], atol=1e-6)
    assert guided.conditioned_each([Condition(1)] * 3).guide is None
    with pytest.raises(InputError, match="name the guide other"):
        guided.conditioned_each([replace(guided.condition, guide=Guide("other"))] * 3)


def test_rescaled_to_the_models_own_answer() -> None:
    main, small = model(0, predicts="eps"), model(1, predicts="eps")
    xbar, sigma = draw(5, 2, 2, 6, 6), torch.tensor(1.0)
    own, other = main(sigma, xbar), small(sigma, xbar)
    ours = main.conditioned(guidance=4, guidance_rescale=0.7, guide=small)(sigma, xbar)
    cfg = other + 4 * (own - other)
    ratio = own.flatten(1).std(1) / cfg.flatten(1).std(1)
    assert torch.allclose(ours, cfg * (0.7 * ratio + 0.3)[:, None, None, None], atol=1e-6)


def test_both_move_and_are_copied_together() -> None:
    main, small = model(0), model(1)
    guided = main.conditioned(guidance=2, guide=small)
    guided.to("cpu", torch.float64)
    assert main.dtype == small.dtype == torch.float64
    small.to("cpu", torch.bfloat16)
    xbar, sigma = draw(6, 2, 2, 6, 6), torch.tensor(1.0)
    assert small.eps.network.asked == []  # type: ignore[union-attr]
    first = guided(sigma, xbar)
    assert small.eps.network.asked[0][1] == torch.bfloat16  # type: ignore[union-attr]
    for twin in (copy.deepcopy(guided), pickle.loads(pickle.dumps(guided))):
        assert torch.equal(twin(sigma, xbar), first)
    assert len(small.eps.network.asked) == 1  # type: ignore[union-attr]


class Codec:
    image_shape = (1, 8, 8)

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256


def test_a_guide_needs_no_autoencoder_and_no_other_one() -> None:
    def latent(seed: int, sha256: str) -> VectorField:
        network = model(seed).eps
        return VectorField(network, EDM, predicts="x0", shape=(2, 6, 6), name="latent", codec=Codec(sha256))  # type: ignore[arg-type]

    main = latent(0, "a")
    for guide in (model(1), latent(1, "a")):
        guided = main.conditioned(guidance=2, guide=guide)
        assert guided.codec is main.codec
        assert guided.guide is not None
        assert guided.guide.codec is None
    with pytest.raises(InputError, match="has another autoencoder"):
        main.conditioned(guidance=2, guide=latent(1, "b"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"shape": (2, 8, 8)}, r"works on data of 2×8×8 \(channels×height×width\), and the model 'net-0' 2×6×6"),
        ({"schedule": Schedule.edm(sigma_max=70)}, "has the schedule"),
        ({"predicts": "eps"}, "predicts eps, and the model 'net-0' x0"),
        ({"time": "log-sigma"}, "has the time labels log-sigma, and"),
        ({"classes": 3}, "the guide 'net-1': this model takes classes 0 to 2, not 4"),
    ],
)
def test_guides_that_do_not_fit(how: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model(0, classes=5).conditioned(4, guidance=2, guide=model(1, **how))
    assert "\n" not in str(caught.value)


def test_what_makes_no_sense_with_a_guide() -> None:
    main, small = model(0, classes=5, null=5), model(1, classes=5)
    with pytest.raises(InputError, match="guidance other than 1"):
        main.conditioned(1, guide=small)
    with pytest.raises(InputError, match="from negative_prompt or from the guide"):
        main.conditioned(1, negative_prompt="dogs", guidance=2, guide=small)
    with pytest.raises(InputError, match=r"told what the model is told \(class 1\).*of its own \(class 2\)"):
        main.conditioned(1, guidance=2, guide=small.conditioned(2))
    with pytest.raises(InputError, match=r"give guide=odeddim.load"):
        main.conditioned(1, guidance=2, guide="small.pt")  # type: ignore[arg-type]
    narrow = VectorField.from_network(lambda x, t: x[:, :1], EDM, predicts="x0", name="narrow")
    guided = main.conditioned(1, guidance=2, guide=narrow)
    with pytest.raises(InputError, match="the model 'narrow' returned shape"):
        guided(torch.tensor(1.0), torch.zeros(1, 2, 6, 6))
    with pytest.raises(InputError, match=r"has no conditions: leave out class 1"):
        model(0).conditioned(1, guidance=2, guide=model(1))
    portable = main.to("cpu", torch.float64).conditioned(1, guidance=2, guide=small)
    with pytest.raises(InputError, match="network in float64, not float32"):
        odeddim.encode(torch.zeros(1, 2, 6, 6), "euler", model=portable, steps=2, portable=True)


def test_a_guide_is_the_same_by_its_hash() -> None:
    assert Guide("a/net.pt", "12") == Guide("b/net.pt", "12") != Guide("a/net.pt", "13")
    assert Guide("a") != Guide("b")
    for guide in (Guide("a/net.pt", "12" * 32), Guide("exact-mixture")):
        condition = Condition(2, guidance=3.0, interval=(0.1, 2), guide=guide)
        assert Condition(**condition.to_dict()) == condition
    assert condition.words == "class 2, guidance 3 by exact-mixture for σ in 0.1 to 2"
    for kept in ({"model": 3}, {"sha256": "12"}, {"model": "a", "more": 1}, "a"):
        with pytest.raises(InputError, match="guide must"):
            Condition(guidance=2, guide=kept)  # type: ignore[arg-type]
    assert Classes(3).words == "3 classes"
