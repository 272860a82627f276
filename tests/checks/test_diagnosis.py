"""`odeddim.diagnose` and `odeddim diagnose`: planted mistakes are named, and right models have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import odeddim
from odeddim.checks import conventions
from odeddim.checks.diagnosis import Diagnosis
from odeddim.ode.analytic import GaussianMixture
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
Planted = Callable[[odeddim.VectorField], odeddim.VectorField]
SHAPE = (1, 16, 16)


def shifted(by: int) -> Planted:
    """Labels that are off by so many levels."""
    return lambda field: field.assuming(time=lambda sigma: field.schedule.label(sigma, field.time) + by)


MISTAKES: dict[str, tuple[str, str, Planted]] = {
    "v": ("prediction", "predicts 'eps'", lambda field: field.assuming(predicts="v")),
    "x0": ("prediction", "predicts 'eps'", lambda field: field.assuming(predicts="x0")),
    "cosine": ("schedule", "schedule linear", lambda field: field.assuming(schedule=odeddim.Schedule.cosine())),
    "flow": ("schedule", "schedule linear", lambda field: field.assuming(schedule=odeddim.Schedule.rectified_flow())),
    "unit": ("labels", "labels 'index'", lambda field: field.assuming(time="unit")),
}


def answers(found: Diagnosis) -> dict[str, str]:
    return {it.question: it.answer for it in found.verdicts}


@pytest.fixture(scope="module", params=["exact-gaussian", "exact-mixture"])
def own(request: pytest.FixtureRequest) -> tuple[odeddim.VectorField, Tensor]:
    """An exact field, and images that it makes."""
    return odeddim.load(request.param), odeddim.sample(16, model=request.param, shape=SHAPE, steps=30, seed=5)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(name: str, own: tuple[odeddim.VectorField, Tensor]) -> None:
    field, images = own
    cause, words, plant = MISTAKES[name]
    found = odeddim.diagnose(images, model=plant(field), steps=4)
    assert (found.cause, words in found.words) == (cause, True), found.words


def test_a_right_model_has_none_and_says_what_cannot_be_told(own: tuple[odeddim.VectorField, Tensor]) -> None:
    field, images = own
    found = odeddim.diagnose(images, model=field)
    assert (found.cause, found.words[:13]) == ("", "nothing found")
    told = answers(found)
    assert [told[it] for it in ("prediction", "schedule", "labels", "round trip")] == ["right"] * 4
    assert told["shift"] == "cannot be told"  # labels of a smooth distribution may be off by one
    assert answers(odeddim.diagnose(images, model=shifted(1)(field)))["shift"] == "cannot be told"


@pytest.mark.parametrize(("by", "words"), [(1, "one level too high"), (-1, "one level too low")])
def test_labels_off_by_one_are_named(by: int, words: str) -> None:
    images, model = odeddim.open_images()[:6], odeddim.load("exact-samples")
    found = odeddim.diagnose(images, model=shifted(by)(model), steps=2)
    assert found.cause == "shift"
    assert words in found.words


def test_the_figures_of_the_exact_gaussian_are_those_of_the_formula() -> None:
    """N(0, s²) has ε = σ·x̄/(s²+σ²), so σ·∂ε/∂x̄ = σ²/(s²+σ²) and the residual is s/√(s²+σ²); the slope is 1."""
    images = 0.5 * odeddim.noise(64, (1, 8, 8), seed=9).double()
    for level in odeddim.diagnose(images, model="exact-gaussian", steps=4).levels:
        square = level.sigma**2
        assert level.amplification == pytest.approx(square / (0.25 + square), rel=1e-3)
        assert level.residual == pytest.approx((0.25 / (0.25 + square)) ** 0.5, rel=0.05)
        assert level.slope == pytest.approx(1, abs=0.15 if level.sigma < 0.2 else 0.04)


def test_images_that_are_not_the_models_are_told_from_mistakes() -> None:
    for name in ("exact-gaussian", "exact-mixture"):
        found = odeddim.diagnose(odeddim.open_images()[:8], model=name, steps=4)
        assert found.cause == ""
        assert found.words.startswith("it cannot be told")


LEVELS = odeddim.Schedule.scaled_linear()
MEANS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
NETS = [GaussianMixture(these, 0.2).network(LEVELS) for these in (*MEANS[:, None], MEANS)]


def told(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The exact network of four classes; label 4 is no class."""
    return torch.cat([NETS[k](x[i : i + 1], t[i : i + 1]) for i, k in enumerate(label.tolist())])


def twice(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """A network that guides by itself."""
    none = told(x, t, torch.full_like(label, 4))
    return none + 2 * (told(x, t, label) - none)


@pytest.mark.parametrize(
    ("network", "label", "guidance", "cause", "words"),
    [
        (told, 3, 1.0, "", "nothing found"),
        (told, 3, 2.0, "guidance", "encode at guidance 1"),
        (twice, 3, 1.0, "guidance", "guided already, 2 fold"),
        (told, 2, 1.0, "condition", "no condition"),
    ],
)
def test_guidance_and_wrong_conditions_are_named(
    network: Callable[..., Tensor], label: int, guidance: float, cause: str, words: str
) -> None:
    field = odeddim.VectorField.from_network(network, LEVELS, classes=4, null=4)
    drawn = MEANS[3] + 0.2 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = odeddim.diagnose(drawn, model=field.conditioned(label, guidance=guidance), steps=6)
    assert (found.cause, words in found.words) == (cause, True), found.words
    if guidance != 1:
        top = max(found.levels, key=lambda level: level.amplification)
        assert top.unguided is not None
        assert top.amplification > 1 > top.unguided


def test_a_solver_that_loses_the_images_is_named_with_the_place() -> None:
    images = odeddim.open_images()[:4]
    found = odeddim.diagnose(images, "euler", model="exact-samples", steps=3, grid="linear")
    assert found.cause == "round trip"
    assert "take more steps" in found.words
    gaps = [level.gap for level in found.levels]
    assert None not in gaps
    assert gaps[0] == max(gaps, key=lambda gap: gap or 0)


def test_a_network_that_does_not_take_other_labels_is_diagnosed() -> None:
    schedule = odeddim.Schedule.linear()
    net, table = GaussianMixture(torch.tensor([-0.6, 0.6]), 0.15).network(schedule), torch.arange(1000)

    def strict(x: Tensor, t: Tensor) -> Tensor:
        return net(x, table[t.long()].to(t))  # an IndexError outside 0 to 999

    images = odeddim.sample(8, model="exact-mixture", shape=SHAPE, steps=30)
    field = odeddim.VectorField(strict, schedule, time="integer", name="strict")
    assert odeddim.diagnose(images, model=field).cause == ""


def test_noise_of_the_levels_is_not_that_of_samples() -> None:
    """Images that were drawn from noise of a seed must not be noised by that noise again."""
    _, z = conventions.noised(torch.zeros(2, 1, 8, 8), 1.0, 0)
    assert not any(torch.equal(z, odeddim.noise(2, (1, 8, 8), seed=seed)) for seed in range(3))


@pytest.mark.slow  # 16 images through the U-Net under every convention: about 6 CPU seconds a case
@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-flow"])
@pytest.mark.parametrize("cause", ["", "prediction", "schedule", "labels", "shift"])
def test_the_built_in_networks(name: str, cause: str) -> None:
    images, model = odeddim.open_images()[:16], odeddim.load(name)
    other = odeddim.Schedule.linear() if name.endswith("flow") else odeddim.Schedule.cosine()
    planted = {
        "": model,
        "prediction": model.assuming(predicts="v"),
        "schedule": model.assuming(schedule=other),
        "labels": model.assuming(time="unit"),
        "shift": shifted(1)(model),
    }[cause]
    steps = 4 if cause else 20  # a mistake is named before the round trip, which takes a right model more than 4
    assert odeddim.diagnose(images, model=planted, steps=steps).cause == cause


def test_the_command_prints_a_table_and_draws_a_figure(run: Command) -> None:
    shown = ("diagnose", "-n", 4, "--model", "exact-samples", "--steps", 12)
    code, out, _ = run(*shown, "--figure", "d.png")
    assert code == 0
    assert out.splitlines()[-1] == "Nothing found."
    assert "prediction: right" in out
    with Image.open("d.png") as figure:
        assert figure.size[0] > 1000
    assert run(*shown, "--figure", "d.png")[0] == 2
    code, out, _ = run(*shown, "--json", "--figure", "d.svg")
    assert code == 0
    content = json.loads(out)
    assert Path("d.svg").read_text(encoding="utf-8").count("<svg") == 1
    found = odeddim.jobs.diagnose(None, model="exact-samples", count=4, steps=12)
    assert content == json.loads(found.to_json())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--figure", "d.pdf"), "d.pdf"),
        (("--plan", "none.json"), "none.json"),
        (("-n", "1"), "--count"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str, run: Command) -> None:
    code, _, err = run("diagnose", "--model", "exact-mixture", *arguments)
    assert code == 2
    assert words in err


def test_one_image_is_too_few() -> None:
    with pytest.raises(InputError, match="at least 2"):
        odeddim.diagnose(torch.zeros(1, 1, 8, 8), model="exact-mixture")
