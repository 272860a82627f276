"""benchmarks/side_by_side.py in small, on a network that answers at once; against other software where it is slow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import contenders
import pytest
import side_by_side
import start_up
import torch
from contenders import Subject, Trip, Way
from torch import Tensor

import odeddim

HERE = ("odeddim", "torchdiffeq")
TINY = replace(side_by_side.SMALL, batches=(2,), memory_steps=(5, 10), most=6)


def subject() -> Subject:
    """A network that is not linear, on DDPM's levels."""
    field = odeddim.VectorField(lambda x, t: torch.tanh(x + t.view(-1, 1, 1, 1) / 1000), odeddim.Schedule.linear())
    return Subject(field, (1, 4, 4))


def images(count: int = 2) -> Tensor:
    return odeddim.noise(count, (1, 4, 4), seed=3).clamp(-1, 1)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept.json"


def measured(kept: Path, *kinds: str, names: tuple[str, ...] = HERE) -> dict[str, Any]:
    side_by_side.measure(subject(), images(), TINY, side_by_side.Kept(kept, TINY), names, kinds)
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return content


def test_in_small_it_fills_its_tables_and_goes_on_where_it_stopped(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("speed", "reach", "seconds")
    rows = measured(kept, *kinds)["rows"]
    assert {name.split()[0] for name in rows} == set(kinds)
    assert rows["speed euler 2"]["torchdiffeq"]["apart"] < 1e-4
    assert rows["speed euler 2"]["torchdiffeq"]["evaluations"] == TINY.steps
    shown = side_by_side.shown(kept)
    for title in ("same method", "round trip", "1% off"):
        assert title in shown
    assert "Not measured yet: memory, start-up" in shown
    assert "| odeddim `belm`, log | 10 | " in shown  # exact after 5 steps up and 5 down
    for name in ("speed", "reach", "trip_seconds"):
        monkeypatch.setattr(side_by_side, name, None)
    assert measured(kept, *kinds)["rows"] == rows


def test_what_was_measured_elsewhere_is_not_mixed(kept: Path) -> None:
    content = measured(kept, "speed")
    content["versions"]["torch"] = "1.0"
    kept.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="measured with other versions"):
        side_by_side.Kept(kept, TINY)


def test_software_that_is_missing_is_told(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "installed", lambda: ["odeddim"])
    measured(kept, "speed", names=("odeddim",))
    assert "diffusers, k-diffusion, torchdiffeq: not installed" in side_by_side.shown(kept)
    assert side_by_side.shown(kept.with_name("none")) == side_by_side.NOT_YET


def test_the_fewest_evaluations_to_a_target() -> None:
    """A way whose image and latent are 1/steps² off keeps 1e-2 with 10 steps, not with 8, and 1e-4 with 100."""
    its = subject()

    def make(subject: Subject, effort: float) -> Trip:
        def encode(x_0: Tensor) -> Tensor:
            for _ in range(int(effort)):
                subject.network(x_0, torch.tensor(0.0))
            return truth + effort**-2

        return Trip(encode, lambda latent: images() + (latent - truth), lambda latent: latent)

    truth = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    tried = side_by_side.reach(its, Way("odeddim", "exact", make), images(), {"sigma_min": truth}, side_by_side.Sizes())
    for error, target, steps in (("latent", 1e-2, 10), ("trip", 1.0001e-4, 100)):
        found = side_by_side.reached(tried, error, target)
        assert found is not None
        assert found["up"] == steps
    assert side_by_side.reached(tried, "trip", 1e-6) is None
    assert side_by_side.needed(tried, "trip", 1e-6, {"most": 250}) == "> 500 (1.6e-05)"


def test_ddim_takes_steps_that_divide_the_levels() -> None:
    ddim = contenders.ddim_way()
    assert side_by_side.efforts_of(ddim, 1000, 100) == [5, 8, 10, 20, 25, 40, 50, 100]
    assert side_by_side.efforts_of(contenders.odeddim_way("rk4", "log", each=4), 1000, 20) == [1, 2, 3, 4, 5]


def test_labels_and_betas_are_those_of_the_model() -> None:
    its = subject()
    assert its.betas == pytest.approx(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist(), rel=1e-9)
    for label in (0, 1, 500, 999):
        assert its.label(its.levels[label]) == pytest.approx(label, abs=1e-9)
    assert (its.label(0.0), its.label(1e9)) == (0, 999)
    assert its.label((its.levels[3] * its.levels[4]) ** 0.5) == pytest.approx(3.5)


def test_the_page_is_what_was_measured() -> None:
    assert side_by_side.PAGE.read_text(encoding="utf-8") == side_by_side.page()


@pytest.mark.slow
@pytest.mark.parametrize("software", ["diffusers", "k-diffusion"])
def test_other_software_gives_the_same_images(software: str) -> None:
    pytest.importorskip(side_by_side.MODULES[software], reason=f"{software} is only installed for this benchmark")
    its = subject()
    for method in side_by_side.METHODS:
        nodes, x_T = contenders.nodes_of(its, method, 10), its.noise(2)
        runs = side_by_side.samplers(its, method, nodes, ("odeddim", software))
        images = [run(x_T).clamp(-1, 1) for run in runs.values()]
        assert len(images) == (1 if (software, method) == ("diffusers", "heun") else 2)
        assert float((images[-1] - images[0]).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("software", ["diffusers", "k-diffusion", "torchdiffeq"])
def test_ways_of_other_software_converge_to_the_same_latent(software: str) -> None:
    """From 5 steps to 20 both errors fall, those of first order by a factor of 4 at least."""
    pytest.importorskip(side_by_side.MODULES[software], reason=f"{software} is only installed for this benchmark")
    its = subject()
    with torch.no_grad():
        truth = {end: side_by_side.encoded(its.field, images(), 200, end) for end in ("zero", "sigma_min")}
    for way in contenders.WAYS:
        if way.software == software:
            few, many = (
                side_by_side.attempt(its, way, effort, images(), truth[way.end])
                for effort in ((1e-2, 1e-5) if way.adaptive else (5, 20))
            )
            assert many["latent"] < min(0.02, few["latent"] / 4), way.name
            assert many["trip"] < few["trip"] / 4, way.name


@pytest.mark.slow
def test_memory_grows_where_each_node_is_kept(kept: Path) -> None:
    rows = measured(kept, "memory")["rows"]
    few, many = (rows[f"memory euler {steps}"] for steps in (5, 10))
    assert many["torchdiffeq, each node"] - few["torchdiffeq, each node"] == pytest.approx(5, abs=0.01)
    assert many["odeddim"] == pytest.approx(few["odeddim"], abs=0.01)


@pytest.mark.slow
def test_what_starts_runs() -> None:
    names = side_by_side.installed()
    rows = start_up.start_up(names, 1)
    assert list(rows["to the first image"]) == names
    assert all(spent[0] > 0 for row in rows.values() for spent in row.values())
