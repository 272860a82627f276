"""Plans: what `Plan.of` makes of what people say, their files, and runs by them: the bits of runs by arguments."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import odeddim
from odeddim import Plan, Schedule, State, VectorField, defaults, solvers
from odeddim.ode import grids
from odeddim.plans import FORMAT, VERSION, integrate
from odeddim.types import Depends, InputError

LINEAR = Schedule.linear()
FIXED = [row for row in solvers.SOLVERS.values() if not row.adaptive]
ENCODING = [row for row in FIXED if not row.stochastic]
ADAPTIVE = [row for row in solvers.SOLVERS.values() if row.adaptive]
ENDS = pytest.mark.parametrize("end", grids.ENDS)
RISING = [0.0, 0.01, 1.5, 20.0]


def model(name: str = "exact-mixture") -> VectorField:
    field = odeddim.load(name)
    field.network_batch = None
    return field


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 2, 3, generator=torch.Generator().manual_seed(0)).tanh()


def same(one: Plan, other: Plan) -> bool:
    """Whether two plans say the same of a run, to the last bit."""
    return (
        torch.equal(one.nodes, other.nodes)
        and (one.solver.name, dict(one.solver.chosen)) == (other.solver.name, dict(other.solver.chosen))
        and (one.grid, one.end, dict(one.notes)) == (other.grid, other.end, dict(other.notes))
    )


# What people say.


@ENDS
@pytest.mark.parametrize("row", FIXED, ids=lambda row: row.name)
def test_a_name_is_the_row_on_its_own_grid_of_fifty_steps(row: solvers.Solver, end: str) -> None:
    plan = Plan.of(LINEAR, row.name, end=end)
    assert plan.solver is row
    assert torch.equal(plan.nodes, grids.grid(row.grid, LINEAR, 50, end=end))
    assert plan.nodes.dtype == torch.float64
    assert (plan.grid, plan.end, plan.steps, plan.top) == (row.grid, end, 50, LINEAR.sigma_max)
    assert float(plan.nodes[0]) == (0 if end == "zero" else LINEAR.sigma_min)


@ENDS
@pytest.mark.parametrize("name", [*grids.NAMES, "karras:5", "ays:sdxl", "flow:3"])
def test_a_named_grid(name: str, end: str) -> None:
    schedule = Schedule.rectified_flow() if name.startswith("flow") else LINEAR
    plan = Plan.of(schedule, "ab3", 7, name, end)
    assert torch.equal(plan.nodes, grids.grid(name, schedule, 7, end=end))
    assert (plan.grid, plan.end, plan.steps) == (
        name,
        "nodes" if plan.nodes[0] not in (0, schedule.sigma_min) else end,
        7,
    )


def test_a_file_has_its_own_steps(tmp_path: Path) -> None:
    path = tmp_path / "grid.txt"
    path.write_text(" ".join(map(str, RISING)))
    for grid in (path, str(path)):
        plan = Plan.of(LINEAR, "ab3", grid=grid)
        assert plan.nodes.tolist() == RISING
        assert (plan.grid, plan.end, plan.steps) == (str(path), "zero", 3)
    assert same(Plan.of(LINEAR, "ab3", 3, path), plan)
    with pytest.raises(InputError, match="3 steps, not 50: leave out steps="):
        Plan.of(LINEAR, "ab3", 50, path)


@pytest.mark.parametrize("given", [RISING, tuple(RISING), torch.tensor(RISING), torch.tensor(RISING).double()])
def test_nodes_given(given: Any) -> None:
    plan = Plan.of(LINEAR, "ab3", grid=given)
    assert plan.nodes.tolist() == torch.as_tensor(given, dtype=torch.float64).tolist()
    assert (plan.nodes.dtype, plan.grid, plan.end, plan.steps) == (torch.float64, "nodes", "zero", 3)


def test_where_images_lie() -> None:
    for first, end in ((0.0, "zero"), (LINEAR.sigma_min, "sigma_min"), (0.5, "nodes")):
        assert Plan.of(LINEAR, "ab3", grid=[first, 1.0, 3.0]).end == end
    assert Plan(solvers.get("ab3"), torch.tensor(RISING)).end == "zero"
    assert Plan(solvers.get("ab3"), torch.tensor(RISING[1:])).end == "nodes"
    raw = Plan(solvers.get("ab3"), torch.tensor([LINEAR.sigma_min, 1.0], dtype=torch.float64))
    assert (raw.end, raw.on(LINEAR).end) == ("nodes", "sigma_min")
    assert Plan.of(LINEAR, "ab3", 5, "log", "sigma_min").on(Schedule.rectified_flow()).end == "nodes"


@ENDS
@pytest.mark.parametrize("row", ADAPTIVE, ids=lambda row: row.name)
def test_an_adaptive_row_has_the_ends_only(row: solvers.Solver, end: str) -> None:
    """From 0 also σ_1, which the Euler step reaches."""
    ends = [LINEAR.sigma_min, LINEAR.sigma_max]
    plan = Plan.of(LINEAR, row, end=end)
    assert plan.nodes.tolist() == ([0.0, *ends] if end == "zero" else ends)
    assert (plan.end, plan.steps) == (end, None)
    assert math.isnan(plan.evaluations)
    assert math.isnan(plan.evaluations_down)
    nodes = [LINEAR.sigma_min / 2, 0.5, 3.0, 80.0]
    assert Plan.of(LINEAR, row, grid=nodes).nodes.tolist() == [nodes[0], nodes[-1]]
    assert Plan.of(LINEAR, row, grid=[0.0, *nodes]).nodes.tolist() == [0.0, nodes[0], nodes[-1]]
    assert Plan.of(LINEAR, row, grid=[0.0, *nodes[1:]]).nodes.tolist() == [0.0, LINEAR.sigma_min, nodes[-1]]
    for wrong in ({"steps": 3}, {"grid": "log"}, {"steps": 3, "grid": nodes}):
        with pytest.raises(InputError, match=r"chooses its own steps: leave out steps=\.\.\. and grid="):
            Plan.of(LINEAR, row, **wrong)


@ENDS
def test_a_top_below_the_models(end: str) -> None:
    plan = Plan.of(LINEAR, "ab3", 6, "karras", end, top=20.0)
    assert torch.equal(plan.nodes, grids.grid("karras", LINEAR, 6, end=end, top=20.0))
    assert plan.top == 20.0
    assert Plan.of(LINEAR, "dopri5", end=end, top=20.0).top == 20.0
    with pytest.raises(InputError, match="cannot end"):
        Plan.of(LINEAR, "ab3", 6, "karras", top=1e4)


def test_a_rounded_top_is_the_models() -> None:
    assert Plan.of(LINEAR, "ab3", grid=[0.0, 1.0, 157.407]).top == LINEAR.sigma_max
    raw = Plan(solvers.get("ab3"), torch.tensor([0.0, 1.0, 157.407]))
    assert raw.on(LINEAR).top == LINEAR.sigma_max
    whole = Plan.of(LINEAR, "ab3", 5)
    assert whole.on(LINEAR) is whole
    assert whole.on(Schedule.rectified_flow()) is not None
    with pytest.raises(InputError, match="above the model's"):
        whole.on(Schedule.exploding(sigma_max=3.0))


def test_settings_are_the_rows() -> None:
    plan = Plan.of(LINEAR, "dopri5", settings={"rtol": 1e-6, "atol": None, "max_nfe": 90})
    assert dict(plan.solver.chosen) == {"rtol": 1e-6, "max_nfe": 90}
    assert plan.settings == {"rtol": 1e-6}  # where a run gives up is no part of the result
    assert same(Plan.of(LINEAR, solvers.get("dopri5", rtol=1e-6, max_nfe=90)), plan)
    with pytest.raises(InputError, match="no setting 'rtol'"):
        Plan.of(LINEAR, "ab3", settings={"rtol": 1e-6})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"solver": "ab33"}, "did you mean"),
        ({"solver": 3}, "a name or a row of the table"),
        ({"grid": "logg"}, "unknown grid"),
        ({"end": "zeroth"}, "unknown end"),
        ({"steps": 0}, "at least 1"),
        ({"grid": [0.0, 2.0, 1.0]}, "rise strictly"),
        ({"grid": [0.0, 1.0, 2.0], "end": "sigma_min"}, "begin at σ = 0"),
        ({"grid": [0.0, 1e-9, 2.0]}, "too close to 0"),
        ({"grid": [0.0, 1.0, 1e4]}, "above the model's"),
    ],
)
def test_what_cannot_be_used(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Plan.of(LINEAR, **{"solver": "ab3", **arguments})


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([20.0, 1.0, 0.0], "rise strictly"),
        ([1.0], "at least two"),
        ([-1.0, 2.0], "not negative"),
        ([1.0, math.inf], "finite"),
    ],
)
def test_a_plan_of_no_grid(nodes: list[float], words: str) -> None:
    with pytest.raises(InputError, match=f"plan: .*{words}"):
        Plan(solvers.get("ab3"), torch.tensor(nodes))


def test_the_public_one_is_that_of_a_model() -> None:
    found = odeddim.plan("exact-mixture", "dpmpp-2m", steps=12, grid="karras", end="sigma_min")
    assert same(found, Plan.of(model().schedule, "dpmpp-2m", 12, "karras", "sigma_min"))
    assert odeddim.plan(model()).solver.name == odeddim.defaults.SOLVE
    assert odeddim.plan(model(), "dopri5", rtol=1e-6).settings == {"rtol": 1e-6}


def test_in_words(tmp_path: Path) -> None:
    for plan, words in (
        (Plan.of(LINEAR, "ab3", 20), "ab3, log grid, 20 steps, end zero"),
        (Plan.of(LINEAR, "euler", 1, "karras", "sigma_min"), "euler, karras grid, 1 step, end sigma_min"),
        (Plan.of(LINEAR, "ab3", grid=[0.5, 1.0, 2.0]), "ab3, nodes grid, 2 steps, end nodes"),
        (Plan.of(LINEAR, "dopri5", settings={"rtol": 1e-6}), "dopri5, its own steps, end zero, rtol 1e-06"),
        (Plan.of(LINEAR, "ab3", 4, settings={"warmup": "lower"}), "ab3, log grid, 4 steps, end zero, warmup lower"),
        (
            Plan.of(LINEAR, "ddpm", 4, settings={"seed": 123456789}),
            "ddpm, linear grid, 4 steps, end zero, seed 123456789",
        ),
    ):
        assert str(plan) == words


# Frozen, and copied.


def test_it_is_frozen() -> None:
    plan = Plan.of(LINEAR, "ab3", 5)
    for name in ("solver", "nodes", "grid", "end", "notes", "steps"):
        with pytest.raises(AttributeError):
            setattr(plan, name, getattr(plan, name))
    other = plan.with_solver(solvers.get("euler"))
    assert (plan.solver.name, other.solver.name) == ("ab3", "euler")
    assert torch.equal(other.nodes, plan.nodes)


@pytest.mark.parametrize("row", solvers.SOLVERS.values(), ids=lambda row: row.name)
def test_it_can_be_pickled(row: solvers.Solver) -> None:
    plan = Plan.of(LINEAR, row).noted(model(), found="here")
    again = pickle.loads(pickle.dumps(plan))
    assert isinstance(again, Plan)
    assert same(again, plan)
    assert str(again) == str(plan)


# Files.


@pytest.mark.parametrize("row", solvers.SOLVERS.values(), ids=lambda row: row.name)
def test_a_file_of_each_row_with_each_setting(row: solvers.Solver, tmp_path: Path) -> None:
    chosen = {}
    for name, default in row.settings.items():
        words = {"warmup": "lower", "variable": "sigma"}
        chosen[name] = words.get(name, 0.93 if isinstance(default, Depends) and default.kind is float else default)
        if isinstance(chosen[name], Depends):
            chosen[name] = 4
    plan = Plan.of(LINEAR, row, None if row.adaptive else 9, settings=chosen)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert same(again, plan)
    assert {name: type(value) for name, value in again.solver.chosen.items()} == {
        name: type(value) for name, value in chosen.items()
    }
    assert again.on(LINEAR) is again


@given(
    inner=st.lists(st.floats(1e-8, 1e8, allow_subnormal=False), min_size=1, max_size=9, unique=True),
    zero=st.booleans(),
    rtol=st.floats(1e-12, 1.0),
    notes=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.none()), max_size=3),
)
def test_a_file_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, inner: list[float], zero: bool, rtol: float, notes: dict[str, Any]
) -> None:
    nodes = torch.tensor([0.0] * zero + sorted(inner), dtype=torch.float64)
    if len(nodes) < 2:
        nodes = torch.cat([nodes, nodes * 2])
    path = tmp_path_factory.getbasetemp() / "plan.json"
    told = {f"{key}!": value for key, value in notes.items()}  # none of the names that have a meaning
    plan = Plan(solvers.get("dopri5", rtol=rtol), nodes, "log", notes=told)
    plan.save(path)
    assert same(Plan.load(path), plan)
    assert torch.equal(grids.read_nodes(path), nodes)


def test_a_file_of_notes(tmp_path: Path) -> None:
    """The model by name and hash, its condition, and whatever else is told."""
    field, path = odeddim.load("fashion-mnist"), tmp_path / "plan.json"
    plan = odeddim.plan(field, "ab3", steps=4).noted(field, images="the last 3 of\n'x'", error=1e-3)
    assert plan.notes == {"model": field.name, "sha256": field.sha256, "images": "the last 3 of\n'x'", "error": 1e-3}
    plan.save(path)
    plan.save(str(path))  # over itself
    assert same(Plan.load(str(path)), plan)
    assert path.read_text(encoding="utf-8") == plan.to_json()
    assert json.loads(plan.to_json()) == plan.to_dict()
    assert {"format": FORMAT, "version": VERSION, "solver": "ab3"}.items() <= plan.to_dict().items()
    plan.save(tmp_path / "new" / "plan.json")
    with pytest.raises(InputError, match=r"plan\.json is a file"):
        plan.save(path / "plan.json")


def test_a_long_plan(tmp_path: Path) -> None:
    """Of as many steps as there can be."""
    plan = Plan.of(LINEAR, "euler", defaults.MOST_STEPS, "log")
    plan.save(tmp_path / "plan.json")
    assert same(Plan.load(tmp_path / "plan.json"), plan)


NEWER = "is damaged, or was written by a newer odeddim"
DAMAGES: dict[str, tuple[Any, str]] = {
    "no JSON": ("ab3, log grid", "is no plan"),
    "half of it": ('{"format": "odeddim plan", ', "is no plan"),
    "nothing": ("", "is no plan"),
    "deep": ("[" * 100_000, "is no plan"),
    "no text": (b"\xff\xfe\x00", "is no plan"),
    "a list": ("[0, 1, 2]", "is no plan"),
    "a word": ('"odeddim plan"', "is no plan"),
    "another format": ({"format": "odeddim latents"}, "is no plan"),
    "newer": ({"version": 4}, f"{NEWER} .version 4."),
    "no version": ({"version": None}, f"{NEWER} .version None."),
    **{
        f"no {key}": ({key: None}, f"{NEWER} .{key} is missing or wrong.")
        for key in ("solver", "settings", "grid", "end", "nodes")
    },
    "notes of another kind": ({"notes": ["a"]}, f"{NEWER} .notes is missing or wrong."),
    **{f"{key} of another kind": ({"notes": {key: 5}}, NEWER) for key in ("model", "sha256", "condition")},
    "another solver": ({"solver": "ab9"}, "unknown solver 'ab9'"),
    "another setting": ({"settings": {"speed": 1}}, "no setting 'speed'"),
    "a setting that is none": ({"settings": {"self": 1}}, "is damaged|no setting"),
    "a setting of another kind": ({"settings": {"warmup": 1}}, "warmup of solver 'ab3' must be a word, not 1"),
    "words for nodes": ({"nodes": [0, "a", 2]}, "nodes or settings are not numbers"),
    "lists for nodes": ({"nodes": [[0, 1], [2]]}, "nodes or settings are not numbers"),
    "nothing for a node": ({"nodes": [0, None, 2]}, "nodes or settings are not numbers"),
    "a huge node": ({"nodes": [0, 10**400]}, "nodes or settings are not numbers"),
    "no nodes": ({"nodes": []}, "at least two noise levels"),
    "falling nodes": ({"nodes": [2, 1, 0]}, "must rise strictly"),
    "infinite nodes": ({"nodes": [0, 1, math.inf]}, "must be finite"),
    "nodes that are not": ({"nodes": [0, 1, math.nan]}, "must be finite"),
    "negative nodes": ({"nodes": [-1, 1, 2]}, "not negative"),
    "another end": ({"end": "top"}, "unknown end 'top'"),
    "no end": ({"end": ""}, "is damaged"),
    "an end that is not that of its nodes": ({"end": "sigma_min"}, "end 'sigma_min', but its nodes begin at 0"),
    "a zero that is none": ({"nodes": [0.5, 1, 2]}, "end 'zero', but its nodes begin at 0.5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = Plan.of(LINEAR, "ab3", 4)
    plan.save(path)
    content, words = DAMAGES[damage]
    if isinstance(content, dict):
        content = json.dumps({**plan.to_dict(), **content})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as refused:
        Plan.load(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 250


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=f"the plan {path} cannot be read"):
            Plan.load(path)


# Of which model.


def test_a_plan_of_another_model_is_told() -> None:
    one, other = odeddim.load("fashion-mnist"), odeddim.load("fashion-mnist-flow")
    plan = odeddim.plan(one, "ab3", steps=4)
    assert plan.unlike(one) == plan.unlike(other) == ""  # it says of no model
    found = plan.noted(one)
    assert found.unlike(one) == ""
    assert found.unlike(other) == "for the model 'fashion-mnist', not 'fashion-mnist-flow'"
    retrained = dataclasses.replace(found, notes={**found.notes, "sha256": "0123456789abcdef"})
    assert retrained.unlike(one) == (
        "for the model 'fashion-mnist' with other weights (0123456789ab), not 'fashion-mnist'"
    )
    renamed = dataclasses.replace(found, notes={**found.notes, "model": "moved/elsewhere"})
    assert renamed.unlike(one) == ""  # the weights say which model it is


def test_a_plan_of_another_condition_is_told() -> None:
    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x

    field = VectorField.from_network(network, LINEAR, classes=3, null=3)
    told, other = field.conditioned(1), field.conditioned(2, guidance=2.0)
    plan = Plan.of(LINEAR, "ab3", 4).noted(told)
    assert plan.notes["condition"] == "class 1"
    assert plan.unlike(told) == ""
    assert plan.unlike(other) == "under class 1, not class 2, guidance 2"
    assert plan.unlike(field) == "under class 1, not without condition"
    assert Plan.of(LINEAR, "ab3", 4).noted(field).unlike(told) == "under no condition, not class 1"


# Runs.

CASES: dict[str, dict[str, Any]] = {
    "own grid": {"solver": "belm", "steps": 6},
    "named": {"solver": "ab3", "steps": 6, "grid": "karras", "end": "sigma_min", "warmup": "lower"},
    "nodes": {"solver": "heun", "grid": [0.0, 0.02, 1.0, 157.407]},
    "adaptive": {"solver": "dopri5", "rtol": 1e-2, "atol": 1e-2},
    "by iteration": {"solver": "exact-euler", "steps": 5},
}
cases = pytest.mark.parametrize("how", CASES.values(), ids=[*CASES])


@cases
def test_plans_run_as_their_arguments(how: dict[str, Any]) -> None:
    field = model()
    plan, x_0 = odeddim.plan(field, **how), images()
    state, other = odeddim.encode(x_0, model=field, plan=plan), odeddim.encode(x_0, model=field, **how)
    assert torch.equal(state.xbar, other.xbar)
    assert len(state.aux) == len(other.aux)
    assert all(torch.equal(a, b) for a, b in zip(state.aux, other.aux, strict=True))
    assert (state.sigma, state.kept) == (other.sigma, other.kept)
    assert torch.equal(odeddim.decode(state, model=field, plan=plan), odeddim.decode(other, model=field, **how))
    x_T = odeddim.noise(2, (1, 2, 3), seed=4)
    assert torch.equal(odeddim.solve(x_T, model=field, plan=plan), odeddim.solve(x_T, model=field, **how))
    certified, figures = odeddim.certify(x_0, model=field, plan=plan)
    again, expected = odeddim.certify(x_0, model=field, **how)
    assert torch.equal(certified.xbar, again.xbar)
    assert figures.keys() == expected.keys()
    for key, value in figures.items():
        assert torch.equal(value.nan_to_num(-9), expected[key].nan_to_num(-9)), key
    for direction in ("encode", "decode"):
        assert odeddim.explain(direction=direction, model=field, plan=plan) == odeddim.explain(
            direction=direction, model=field, **how
        )
    if how["solver"] != "exact-euler":
        sampled = odeddim.sample(2, seed=3, shape=(1, 2, 3), model=field, plan=plan)
        assert torch.equal(sampled, odeddim.sample(2, seed=3, shape=(1, 2, 3), model=field, **how))
    assert torch.equal(integrate(field, State(x_0, float(plan.nodes[0])), plan).xbar, state.xbar)


@pytest.mark.parametrize(
    "how", [{"solver": "ddpm", "steps": 6}, {"solver": "ddim-eta", "steps": 6, "grid": "karras"}, {"solver": "euler"}]
)
def test_noise_is_that_of_the_call(how: dict[str, Any]) -> None:
    field, told = model(), {"seed": 3, "start": 5, "shape": (1, 2, 3)}
    eta = {"eta": 0.7} if how["solver"] != "ddpm" else {}
    found = odeddim.sample(2, model=field, plan=odeddim.plan(field, **how), **eta, **told)
    assert torch.equal(found, odeddim.sample(2, model=field, **how, **eta, **told))
    with pytest.raises(InputError, match="only decode"):
        odeddim.encode(images(), model=field, plan=odeddim.plan(field, "ddpm", steps=6))


RUNS: dict[str, Callable[..., Any]] = {
    "encode": lambda **how: odeddim.encode(images(), **how),
    "decode": lambda **how: odeddim.decode(State(images() * 157, LINEAR.sigma_max), **how),
    "solve": lambda **how: odeddim.solve(images(), **how),
    "sample": lambda **how: odeddim.sample(2, shape=(1, 2, 3), **how),
    "certify": lambda **how: odeddim.certify(images(), **how),
    "explain": lambda **how: odeddim.explain(**how),
}
runs = pytest.mark.parametrize("run", RUNS.values(), ids=[*RUNS])


@runs
@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"solver": "heun"}, "solver"),
        ({"solver": solvers.get("heun")}, "solver"),
        ({"steps": 4}, "steps"),
        ({"grid": "log"}, "grid"),
        ({"grid": torch.tensor([0.0, 1.0, 20.0])}, "grid"),
        ({"end": "sigma_min"}, "end"),
        ({"rtol": 1e-3}, "rtol"),
        ({"solver": "heun", "steps": 4}, "solver"),
    ],
)
def test_a_plan_and_an_argument_are_refused(run: Callable[..., Any], said: dict[str, Any], name: str) -> None:
    plan = Plan.of(LINEAR, "ab3", 4)
    with pytest.raises(InputError, match=rf"^plan=\.\.\. says how to run: leave out {name}=, or make another plan"):
        run(model=model(), plan=plan, **said)
    run(model=model(), plan=plan, rtol=None)  # None is not said


@runs
def test_no_plan(run: Callable[..., Any]) -> None:
    for wrong in ("plan.json", (solvers.get("ab3"), torch.tensor(RISING)), 0):
        with pytest.raises(InputError, match=r"plan= takes a Plan, as odeddim\.plan makes it, not"):
            run(model=model(), plan=wrong)


@runs
def test_a_plan_is_checked_for_the_model(run: Callable[..., Any]) -> None:
    low = VectorField(model().eps, Schedule.exploding(sigma_max=30.0), name="low")
    with pytest.raises(InputError, match="above the model's σ_T = 30"):
        run(model=low, plan=Plan.of(LINEAR, "ab3", 4))


@pytest.mark.parametrize("nodes", [[0.0, 0.5, 3.0, 20.0], [0.5, 3.0, 20.0]])
@pytest.mark.parametrize("name", ["ab3", "belm", "exact-euler", "dopri5"])
def test_from_one_end_to_the_other_and_from_nowhere_else(name: str, nodes: list[float]) -> None:
    field = model()
    plan = Plan(solvers.get(name), torch.tensor(nodes, dtype=torch.float64))
    up = integrate(field, State(images(), nodes[0]), plan)
    assert up.sigma == nodes[-1]
    assert integrate(field, up, plan).sigma == nodes[0]
    asked = field.nfe
    for level in (nodes[0] + 0.1, nodes[1] + 0.1, 3.0, 19.99, 20.01, 157.0, math.nan):
        with pytest.raises(InputError, match=r"the state lies at σ = .* goes from σ = .* to 20: give a state at one"):
            integrate(field, State(images(), level), plan)
    with pytest.raises(InputError, match="the latent lies at σ = 19, but the grid ends at σ = 20"):
        odeddim.decode(State(images(), 19.0), model=field, plan=plan)
    assert field.nfe == asked


@ENDS
@pytest.mark.parametrize("row", FIXED, ids=lambda row: row.name)
def test_evaluations_are_those_of_a_run(row: solvers.Solver, end: str) -> None:
    field = model()
    for steps in (1, 2, 3, 12):
        plan = Plan.of(field.schedule, row, steps, end=end)
        field.reset()
        integrate(field, State(images() * plan.top, plan.top), plan)
        assert plan.evaluations_down == field.nfe == field.rows / 2
        if row.stochastic:
            with pytest.raises(InputError, match="only decode"):
                _ = plan.evaluations
        elif row.nfe is None:
            assert math.isnan(plan.evaluations)
        else:
            field.reset()
            integrate(field, State(images(), float(plan.nodes[0])), plan)
            assert plan.evaluations == field.nfe == field.rows / 2
