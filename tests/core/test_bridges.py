"""Bridges: what one model encodes, another decodes; on exact fields against closed forms."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import command, tiles

import odeddim
from odeddim import Schedule, VectorField
from odeddim.bridges import between, bridge
from odeddim.ode.analytic import Gaussian
from odeddim.types import InputError

F64 = torch.float64


def gaussian(mean: float, std: float, schedule: Schedule, predicts: str = "eps", name: str = "") -> VectorField:
    """The exact field of N(mean, std²), posed in another way."""
    exact = Gaussian(mean, std)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = schedule.sigma(t).reshape(-1, 1, 1, 1).to(x)
        xbar = x / schedule.scale(sigma)
        eps = exact(sigma.flatten(), xbar)
        x0 = xbar - sigma * eps
        return {"eps": eps, "flow": eps - x0, "x0": x0}[predicts]

    return VectorField(network, schedule, predicts=predicts, name=name or f"gaussian {mean}")


PAIRS = {
    "diffusion to diffusion": (Schedule.linear(), "eps", Schedule.cosine(), "eps"),
    "diffusion to flow": (Schedule.linear(), "eps", Schedule.rectified_flow(), "flow"),
    "flow to edm": (Schedule.rectified_flow(), "flow", Schedule.edm(), "x0"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_bridge_between_gaussians_is_the_affine_map(pair: str) -> None:
    """Where they meet, x̄ is (x - m)·√((s² + σ²)/s²) + m: so the bridge is known in closed form."""
    one, its, other, theirs = PAIRS[pair]
    source, target = gaussian(-0.2, 0.3, one, its), gaussian(0.4, 0.5, other, theirs)
    x_0 = -0.2 + 0.3 * torch.randn(3, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = bridge(x_0, source, target, "rk4", steps=200, grid="log", end="sigma_min")
    top = min(one.sigma_max, other.sigma_max)
    assert found.state.sigma == top
    met = Gaussian(-0.2, 0.3).flow(x_0, one.sigma_min, top)
    want = Gaussian(0.4, 0.5).flow(met, top, other.sigma_min)
    torch.testing.assert_close(found.state.xbar, met, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.images, want, rtol=1e-6, atol=1e-6)
    assert found.again is not None
    assert found.error is not None
    assert float(found.error.max()) < 1e-6


def test_the_cycle_error_is_the_rms_of_what_comes_back() -> None:
    source, target = gaussian(0, 0.3, Schedule.linear()), gaussian(0, 0.5, Schedule.rectified_flow(), "flow")
    x_0 = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = odeddim.bridge(x_0, source, target, steps=10)
    assert found.again is not None
    assert found.error is not None
    want = (found.again - x_0).double().square().mean(dim=(1, 2, 3)).sqrt()
    assert found.error.tolist() == pytest.approx(want.tolist(), rel=1e-6)
    assert float(found.error.min()) > 1e-4
    assert torch.equal(found.again, odeddim.bridge(found.images, target, source, steps=10, cycle=False).images)
    once = odeddim.bridge(x_0, source, target, steps=10, cycle=False)
    assert once.again is once.error is None
    assert torch.equal(once.images, found.images)


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        *((solver, None) for solver in ("dopri5", "tsit5-per-image")),
        *((s, g) for s in ("euler", "belm", "exact-euler", "unipc-2") for g in ("linear", "karras", "quadratic")),
    ],
)
def test_every_kind_of_row_meets_at_one_level(solver: str, grid: str | None) -> None:
    adaptive = odeddim.solvers.get(solver).adaptive
    source, target = gaussian(0, 0.3, Schedule.linear()), gaussian(0, 0.3, Schedule.rectified_flow(), "flow")
    over = between(source, target, solver, grid=grid, steps=None if adaptive else 7)
    assert over.sigma == Schedule.linear().sigma_max == over.target_plan.top
    if not adaptive:
        assert len(over.source_plan.nodes) == len(over.target_plan.nodes) == 8
    found = over.cross(torch.rand(2, 1, 4, 4))
    assert not found.state.aux  # what belongs to the way back of the source is none of the target's
    assert bool(torch.isfinite(found.images).all())


def test_a_rounded_top_is_one_for_both() -> None:
    """Of a list of nodes, the last is σ_T where it is that to rounding: of one of the models only."""
    flow = gaussian(0, 0.3, Schedule.rectified_flow(), "flow")
    over = between(gaussian(0, 0.3, Schedule.linear()), flow, grid=[0.0, 0.1, 3.0, 157.407])
    assert over.source_plan.top == over.target_plan.top == pytest.approx(157.407, rel=1e-5)


def test_what_does_not_meet_is_refused() -> None:
    linear = gaussian(0, 0.5, Schedule.linear())
    low = gaussian(0, 0.5, Schedule.exploding(sigma_max=3.0), name="low")
    with pytest.raises(InputError, match="would meet at σ = 3"):
        between(linear, low)
    with pytest.raises(InputError, match="would meet at σ = 2"):
        between(linear, linear, grid=[0.0, 1.0, 2.0])
    wide, small = gaussian(0, 0.5, Schedule.linear()), gaussian(0, 0.5, Schedule.linear())
    wide.shape, small.shape = (3, 32, 32), (1, 28, 28)
    with pytest.raises(InputError, match=r"3×32×32 .* 1×28×28"):
        between(wide, small)
    with pytest.raises(InputError, match="decode"):
        between(linear, linear, "ddpm")
    with pytest.raises(InputError, match="ends at σ = 200"):
        between(linear, gaussian(0, 0.5, Schedule.rectified_flow(), "flow"), grid=[0.0, 1.0, 200.0])

    class Autoencoder:
        image_shape = (3, 8, 8)
        sha256 = "another"

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def decode(self, data: torch.Tensor) -> torch.Tensor:
            return data

    latent = VectorField(lambda x, t: x, Schedule.linear(), name="latent", codec=Autoencoder())
    with pytest.raises(InputError, match="units"):
        between(linear, latent)


def run(*arguments: str) -> str:
    return command("bridge", *arguments)


SHORT = ("--to", "exact-gaussian", "--steps", "4")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("-n", "5", "-o", str(out), *SHORT, "--batch-size", "2")
    assert "5 images" in said
    assert "fashion-mnist to exact-gaussian at σ = 157.407" in said
    assert "cycle error (rms" in said
    assert len(list(out.glob("*.png"))) == 5
    over = between("fashion-mnist", "exact-gaussian", steps=4)
    over.source.network_batch = over.target.network_batch = 8
    from odeddim.storage.images import sample_images

    found = over.cross(sample_images().read(range(5)))
    assert found.error is not None
    for place in (out, tmp_path / "out.h5"):
        said = run("-n", "5", "-o", str(place), *SHORT, "--csv")
        rows = list(csv.DictReader(said[said.index("name,") :].splitlines()))
        assert [row["name"].removesuffix(".png") for row in rows] == [f"{i:06d}" for i in range(5)]
        assert [float(row["cycle_error"]) for row in rows] == pytest.approx(found.error.tolist(), rel=1e-5)


def test_a_stopped_bridge_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run("-n", "4", "-o", str(out), *SHORT).splitlines()[-1]
    (out / "000002.png").unlink()
    said = run("-n", "4", "-o", str(out), *SHORT)
    assert "1 now" in said
    assert said.splitlines()[-1] == whole  # the error of each lies in its PNG
    Image.new("L", (28, 28)).save(out / "000003.png")
    said = command("bridge", "-n", "4", "-o", out, *SHORT, code=2)
    assert re.search(r"Error: .*000003\.png is damaged, or another file", said)
    assert "median" in run("-n", "4", "-o", str(out), *SHORT, "--overwrite")


def test_a_sheet_and_a_file_without_the_cycle(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert "median" in run("-n", "2", "-o", str(sheet), *SHORT, "--scale", "1", "--no-labels")
    assert len(tiles(sheet, 28, 28, 1, panes=3)) == 2  # each image, what became of it, what came back
    assert "cycle" not in run("-n", "2", "-o", str(tmp_path / "x.h5"), *SHORT, "--no-cycle")


def test_two_classes_of_one_model(tmp_path: Path) -> None:
    """The target has its own condition, with everything that a condition can be."""
    from test_conditions import Told

    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(2, 1, 28, 28), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    program = torch.export.export(Told(), example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.export.save(program, model := tmp_path / "told.pt2")
    beside = {"schedule": {"name": "linear"}, "predicts": "eps", "time": "index", "classes": 3, "null": 3}
    model.with_suffix(".json").write_text(json.dumps(beside))
    to = ("--model", str(model), "--label", "0", "--to", str(model), "--to-label", "2")
    guided = ("--to-guidance", "2", "--to-guidance-interval", "0.5,5")
    said = run("-n", "2", "-o", str(tmp_path / "out"), *to, *guided, "--steps", "4")
    assert "under class 0" in said
    assert "under class 2, guidance 2 for σ in 0.5 to 5" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "fashion-mnst"], "fashion-mnist"),
        (["--to", "exact-gaussian", "--to-label", "3"], "no conditions"),
        (["--to", "exact-gaussian", "--label", "3"], "no conditions"),
        (["--to", "exact-gaussian", "--solver", "ddpm"], "ddpm"),
        (["--to", "exact-gaussian", "--to-guidance", "nan"], "finite"),
        (["--to", "exact-gaussian", "--guidance-interval", "3,1"], "below the second"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in command("bridge", "-n", "2", "-o", tmp_path / "out", *arguments, code=2)
