"""What `explain` says is what a run does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import pytest
import torch
from test_solvers import each
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.checks.explanation import explain
from odeddim.types import InputError, Point

MODEL = odeddim.load("exact-mixture")
FIXED = [row for row in solvers.SOLVERS.values() if row.nfe is not None]
PLANNED = [row for row in FIXED if row.instructions is not None and isinstance(row.instructions([0.1, 1.0])[0], Point)]


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@each(FIXED)
def test_evaluations_are_those_of_a_run(row: solvers.Solver, end: str) -> None:
    for steps in (1, 2, 7):
        made = explain(row.name, direction="decode", model=MODEL, steps=steps, grid="log", end=end)
        MODEL.reset()
        x_T = odeddim.noise(2, (1, 2, 2))
        odeddim.solve(x_T, row.name, model=MODEL, steps=steps, grid="log", end=end)
        assert MODEL.nfe == made.evaluations
        if not row.stochastic:
            made = explain(row.name, model=MODEL, steps=steps, grid="log", end=end)
            MODEL.reset()
            odeddim.encode(x_T.clamp(-1, 1), row.name, model=MODEL, steps=steps, grid="log", end=end)
            assert MODEL.nfe == made.evaluations


@pytest.mark.parametrize("direction", ["encode", "decode"])
@each(PLANNED)
def test_the_words_are_the_run(row: solvers.Solver, direction: str) -> None:
    """The printed arithmetic, read back and done by hand, gives what the solver gives."""
    made = explain(row.name, direction=direction, model=MODEL, steps=6, grid="log", end="sigma_min", dtype="float64")
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 1, 2, 2) * (1 if direction == "encode" else 100)
    points: list[Tensor] = []
    slopes: dict[int, Tensor] = {}
    for line in made.instructions:
        words, level = re.fullmatch(r"x̄\d+ = (.*), at σ = (\S+)", line).groups()  # type: ignore[union-attr]
        sigma = min(made.nodes, key=lambda node: abs(node - float(level)))
        sigma = sigma if math.isclose(sigma, float(level), rel_tol=1e-5) else float(level)
        if words == "the start":
            points.append(x)
        else:
            total = torch.zeros_like(x)
            for sign, weight, kind, place in re.findall(r"([-+]?) ?(?:([\d.e+-]+)·)?(x̄|ε)(\d+)", words):
                value = points[int(place)] if kind == "x̄" else slopes[int(place)]
                total += (-1 if sign == "-" else 1) * float(weight or 1) * value
            points.append(total)
        slopes[len(points) - 1] = MODEL(torch.tensor(sigma, dtype=torch.float64), points[-1])
    state = odeddim.State(x, made.nodes[0])
    nodes = torch.tensor(made.nodes, dtype=torch.float64)
    truth = row.run(MODEL, state, nodes).xbar
    assert torch.allclose(points[-1], truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))


def test_labels_and_nodes() -> None:
    made = explain("ab3", model=MODEL, steps=5, grid="linear")
    assert made.nodes == tuple(odeddim.grid("linear", MODEL.schedule, 5).tolist())
    assert made.labels[0] == 0.0
    assert made.labels[-1] == MODEL.schedule.T - 1
    assert made.instructions[0].endswith("Euler from σ = 0")
    falling = explain("ab3", model=MODEL, steps=5, grid="linear", direction="decode")
    assert falling.nodes == made.nodes[::-1]
    assert falling.instructions[-1].endswith("Euler to σ = 0")
    assert json.loads(made.to_json())["nodes"] == list(made.nodes)


def test_settings_with_their_defaults(run: Callable[..., tuple[int, str, str]]) -> None:
    made = explain("edict", model=MODEL, steps=5, p=0.9)
    assert made.settings == {"p": "0.93^(50/N) at N steps"}
    assert made.chosen == {"p": 0.9}
    assert made.reversible
    read = json.loads(explain("bdia", model=MODEL, steps=5).to_json())
    assert (read["settings"], read["chosen"], read["reversible"]) == ({"gamma": 1.0}, {}, True)
    words = ("explain", "--model", "exact-mixture", "--steps", "5", "--solver")
    for more, said in (
        (("edict",), "Settings: p = 0.93^(50/N) at N steps\n"),
        (("edict", "--set", "p=0.9"), "Settings: p = 0.9 (default 0.93^(50/N) at N steps)\n"),
        (("gradient-estimation",), "Settings: gamma = 2.0\n"),
    ):
        code, out, err = run(*words, *more)
        assert code == 0, err
        assert said in out
    assert "Settings" not in run(*words, "heun")[1]


def test_growth_and_refusal() -> None:
    plain = explain("ab3", model=MODEL, steps=20)
    assert plain.growth is not None
    assert plain.growth.encode == pytest.approx(1)
    assert plain.refused == ""
    wild = explain("bdia", model=MODEL, steps=100, gamma=0.5)
    assert wild.growth is not None
    assert wild.growth.encode > 2.0**98
    assert "amplify" in wild.refused
    assert wild.evaluations is None


def test_decoding_by_an_exact_row_is_known() -> None:
    made = explain("exact-heun", model=MODEL, direction="decode", steps=6)
    assert made.evaluations == explain("heun", model=MODEL, direction="decode", steps=6, grid="log").evaluations


def test_gaussian_data() -> None:
    accurate, coarse = (explain("ab3", model=MODEL, steps=steps, grid="log").gaussian for steps in (100, 5))
    assert accurate is not None
    assert coarse is not None
    assert accurate < 1e-3 < coarse
    json.loads(explain("edict", model=MODEL, steps=4, p=1e-300).to_json(), parse_constant=pytest.fail)


def test_what_depends_on_the_data() -> None:
    for name in ("dopri5", "exact-euler", "tsit5-per-image"):
        made = explain(name, model=MODEL)
        assert made.evaluations is None
        assert made.instructions == ()


def test_bad_input() -> None:
    for given in ({"direction": "up"}, {"dtype": "bfloat16"}, {"gamma": 1.0}):
        with pytest.raises(InputError):
            explain("ab3", model=MODEL, steps=5, **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="noise"):
        explain("ddpm", model=MODEL)
