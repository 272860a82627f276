"""Reversible rows: back bit for bit, as their papers have them, and refused where rounding would spoil the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_solvers import DIRECTIONS, IMAGES, MIXTURE, bent_grid, directed, each, log_grid
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import provenance_of
from odeddim.plans import Plan
from odeddim.solvers import reversible
from odeddim.solvers._operations import Kick, Mix, Moves
from odeddim.solvers._registers import Flip, Registers
from odeddim.solvers.reversible import mccallum_foster
from odeddim.types import InputError, State

ROWS = [row for row in solvers.SOLVERS.values() if row.family == "reversible"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
AWKWARD = [0.0, 1e-12, -3e-8, 1 / 3]  # nothing that a grid of a fixed step holds


def images(dtype: torch.dtype) -> Tensor:
    """(8, 2) in [-1, 1], some of it awkward."""
    x = IMAGES.clone()
    x[:4, 0] = torch.tensor(AWKWARD, dtype=torch.float64)
    return x.to(dtype)


@DTYPES
@pytest.mark.parametrize("direction", DIRECTIONS)
@each(ROWS)
def test_there_and_back_bit_for_bit(row: solvers.Solver, direction: str, dtype: torch.dtype) -> None:
    for steps in (1, 2, 3, 10, 40):
        for grid in (log_grid, bent_grid):
            sigmas = directed(grid(steps, 0.01, 157.0), direction)
            x = images(dtype) * (1 if direction == "encode" else 157)
            there = row.run(MIXTURE, State(x, float(sigmas[0])), sigmas)
            back = row.run(MIXTURE, there, sigmas.flip(0))
            assert torch.equal(back.xbar, x)
            assert back.xbar.dtype == there.xbar.dtype == dtype
            assert all(part.shape == x.shape and part.dtype == dtype for part in there.aux)
            assert back.aux == ()
            assert back.sigma == float(sigmas[0])


@DTYPES
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@each(ROWS)
def test_encode_and_decode(row: solvers.Solver, end: str, dtype: torch.dtype) -> None:
    """Through the public interface, the step at σ = 0 included, which by itself does not come back."""
    model = odeddim.load("exact-mixture")
    for steps, grid in ((1, "log"), (2, "karras"), (20, "linear"), (50, "log")):
        x = images(dtype).reshape(8, 1, 1, 2)
        state = odeddim.encode(x, row, model=model, steps=steps, grid=grid, end=end)
        assert torch.equal(odeddim.decode(state, row, model=model, steps=steps, grid=grid, end=end), x)


@each(ROWS)
def test_through_a_file(row: solvers.Solver, tmp_path: Path) -> None:
    model = odeddim.load("exact-mixture")
    x = images(torch.float32).reshape(8, 1, 1, 2)
    nodes = odeddim.grid("karras", model.schedule, 12)
    state = odeddim.encode(x, row, model=model, grid=nodes)
    made = provenance_of(model, Plan(row, nodes, "karras"), "encode")
    with LatentRun(tmp_path / "z.h5", ["x"] * 8, made, nodes) as run:
        for start, stop in run.batches(5):
            aux = tuple(values[start:stop] for values in state.aux)
            run.write(start, stop, dataclasses.replace(state, xbar=state.xbar[start:stop], aux=aux))
    with LatentFile(tmp_path / "z.h5") as file:
        kept = file.read(0, 8)
    assert kept.kept == state.kept
    assert torch.equal(odeddim.decode(kept, row, model=model, grid=nodes), x)


def test_a_damaged_note_of_what_is_kept(tmp_path: Path) -> None:
    """Unnoticed, it would turn an exact way back into a fresh run."""
    model = odeddim.load("exact-mixture")
    nodes = odeddim.grid("karras", model.schedule, 4)
    state = odeddim.encode(torch.zeros(1, 1, 1, 2), "bdia", model=model, grid=nodes)
    made = provenance_of(model, Plan(solvers.get("bdia"), nodes, "karras"), "encode")
    with LatentRun(tmp_path / "z.h5", ["x"] * 1, made, nodes) as run:
        run.write(0, 1, state)
    with h5py.File(tmp_path / "z.h5", "r+") as file:
        file["aux"].attrs["kept"] = state.kept.replace("up", "UP")
    with pytest.raises(InputError, match="checksum"):
        LatentFile(tmp_path / "z.h5")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file["aux"].__delitem__("4"),
        lambda file: file.__delitem__("aux"),
        lambda file: file["aux/1"].write_direct(np.zeros((3, 1, 1, 2), np.float32)),
        lambda file: file["xbar"].write_direct(np.ascontiguousarray(file["xbar"][:][::-1])),
        lambda file: file["nodes"].write_direct(file["nodes"][:] * np.where(np.arange(5) == 2, 1.01, 1)),
        lambda file: (file.move("aux/0", "aux/x"), file.move("aux/1", "aux/0"), file.move("aux/x", "aux/1")),
    ],
    ids=["one part lost", "all parts lost", "a part of zeros", "other latents", "another node", "parts exchanged"],
)
def test_parts_that_no_longer_belong_together(damage: Callable[[h5py.File], object], tmp_path: Path) -> None:
    """Unnoticed, the way back would lead to anything."""
    model = odeddim.load("exact-mixture")
    nodes = odeddim.grid("karras", model.schedule, 4)
    state = odeddim.encode(torch.rand(3, 1, 1, 2), "bdia", model=model, grid=nodes)
    made = provenance_of(model, Plan(solvers.get("bdia"), nodes, "karras"), "encode")
    with LatentRun(tmp_path / "z.h5", ["x"] * 3, made, nodes) as run:
        run.write(0, 3, state)
    with h5py.File(tmp_path / "z.h5", "r+") as file:
        damage(file)
    with pytest.raises(InputError), LatentFile(tmp_path / "z.h5") as file:
        file.read(0, 3)


def test_aux_that_does_not_fit() -> None:
    model = odeddim.load("exact-mixture")
    state = odeddim.encode(torch.rand(3, 1, 1, 2), "bdia", model=model, steps=4)
    for aux in (
        state.aux[:2],
        state.aux[:-1],
        state.aux * 2,
        (*state.aux[:-1], state.aux[-1][:1]),
        *((*state.aux[:-1], torch.full_like(state.xbar, value)) for value in (math.nan, math.inf, -math.inf)),
    ):
        with pytest.raises(InputError, match="aux"):
            odeddim.decode(dataclasses.replace(state, aux=aux), "bdia", model=model, steps=4)
    with pytest.raises(InputError, match="State"):
        odeddim.decode(state.x, "bdia", model=model, steps=4)  # type: ignore[arg-type]


def test_what_is_kept_is_what_was_done() -> None:
    """A setting said or left at its default, the state in more digits: the same way back. Another one: a warning."""
    model = odeddim.load("exact-mixture")
    x = images(torch.float32).reshape(8, 1, 1, 2)
    state = odeddim.encode(x, "bdia", model=model, steps=20)
    assert torch.equal(odeddim.decode(state, "bdia", model=model, steps=20, gamma=1.0), x)
    wider = dataclasses.replace(state, xbar=state.xbar.double(), aux=tuple(part.double() for part in state.aux))
    assert torch.equal(odeddim.decode(wider, "bdia", model=model, steps=20), x.double())
    for changed in ({"gamma": 0.99}, {"steps": 21}):
        with pytest.warns(UserWarning, match="starts from x̄ alone"):
            odeddim.decode(state, "bdia", model=model, **{"steps": 20, **changed})  # type: ignore[arg-type]


def test_a_field_too_large_to_be_kept_is_refused() -> None:
    """What the step at σ = 0 lacks must fit: exact, or a sentence."""
    x = images(torch.float32).reshape(8, 1, 1, 2)
    for size in (1.0, 30.0, 60.0, 300.0, 3000.0):
        model = odeddim.VectorField(lambda x, t, size=size: size * torch.sin(50 * x), odeddim.Schedule.linear())
        try:
            state = odeddim.encode(x, "belm", model=model, steps=5)
        except InputError:
            assert size > 30
        else:
            assert torch.equal(odeddim.decode(state, "belm", model=model, steps=5), x)


@pytest.mark.filterwarnings("ignore:the latents were kept")
@each(ROWS)
def test_what_others_kept_is_not_used(row: solvers.Solver) -> None:
    """By another method, on other nodes, with another setting: the run starts from x̄ alone."""
    sigmas = log_grid(10, 0.05, 20.0)
    other = solvers.get("edict" if row.name != "edict" else "bdia")
    for maker, nodes in ((other, sigmas), (row, log_grid(9, 0.05, 20.0))):
        kept = maker.run(MIXTURE, State(IMAGES, 0.05), nodes)
        found = row.run(MIXTURE, kept, sigmas.flip(0)).xbar
        assert torch.equal(found, row.run(MIXTURE, State(kept.xbar, kept.sigma), sigmas.flip(0)).xbar)
    if row.settings:
        changed = row.with_settings(**{next(iter(row.settings)): 0.9})
        kept = changed.run(MIXTURE, State(IMAGES, 0.05), sigmas)
        assert kept.kept != row.run(MIXTURE, State(IMAGES, 0.05), sigmas).kept
        assert torch.equal(changed.run(MIXTURE, kept, sigmas.flip(0)).xbar, IMAGES)


def test_interpolated_latents_are_decoded_with_what_was_kept() -> None:
    model = odeddim.load("exact-mixture")
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    state = odeddim.encode(x, "bdia", model=model, steps=20)
    a, b = (
        dataclasses.replace(state, xbar=state.xbar[i : i + 1], aux=tuple(part[i : i + 1] for part in state.aux))
        for i in (0, 1)
    )
    path = odeddim.interpolate(a, b, 5)
    assert path.kept == state.kept
    decoded = odeddim.decode(path, "bdia", model=model, steps=20)
    assert float((decoded[[0, -1]] - x).abs().max()) < 1e-5
    other = odeddim.encode(x[:1], "edict", model=model, steps=20)
    with pytest.raises(InputError, match="kept"):
        odeddim.interpolate(a, other, 5)


matrices = st.tuples(*[st.floats(-3, 3)] * 4).filter(lambda m: abs(m[0] * m[3] - m[1] * m[2]) > 0.2)
kicks = st.tuples(st.integers(0, 1), st.floats(-5, 5), st.sampled_from([0.1, 0.5, 2.0]))


@settings(max_examples=60)
@given(operations=st.lists(st.one_of(matrices, kicks), min_size=1, max_size=6), single=st.booleans())
def test_any_list_of_operations_is_undone(operations: list[tuple[float, ...]], single: bool) -> None:
    """And it is what its matrices and kicks say, to the registers' precision."""
    made = [
        Kick(int(part[0]), part[2], part[1]) if len(part) == 3 else Mix(((part[0], part[1]), (part[2], part[3])))
        for part in operations
    ]
    operated = [
        part
        for part in made
        if not isinstance(part, Mix) or max(map(abs, (part.matrix[0][1], part.matrix[1][0]))) > 0.1
    ]
    bank = Registers(Moves(tuple(operated)), [0.1, 2.0], single=single)
    start = [bank.read(IMAGES[:, :1]), bank.read(IMAGES[:, 1:])]
    registers = [register.clone() for register in start]
    bank.run(_wave, registers, False, {})
    values = [IMAGES[:, :1], IMAGES[:, 1:]]
    for part in operated:
        if isinstance(part, Kick):
            values[part.register] = values[part.register] + part.weight * _wave(
                torch.tensor(part.sigma), values[1 - part.register]
            )
        else:
            (a, b), (c, d) = part.matrix
            values = [a * values[0] + b * values[1], c * values[0] + d * values[1]]
    for register, value in zip(registers, values, strict=True):
        assert torch.allclose(
            register.double() * bank.quantum * bank.scale, value, rtol=1e-4, atol=1e-4 if single else 1e-7
        )
    bank.run(_wave, registers, True, {})
    assert all(torch.equal(*pair) for pair in zip(registers, start, strict=True))


def _wave(sigma: Tensor, xbar: Tensor) -> Tensor:
    return torch.sin(xbar + sigma)


def alpha(sigma: float) -> float:
    """√α."""
    return 1 / math.sqrt(1 + sigma**2)


def ddim_step(sigma_from: float, sigma_to: float, z: Tensor, eps: Tensor) -> Tensor:
    """DDIM in the paper's z = √α·x̄."""
    return alpha(sigma_to) / alpha(sigma_from) * z + (alpha(sigma_to) * sigma_to - alpha(sigma_to) * sigma_from) * eps


def falling_in_z(method: str, nodes: Sequence[float], z: Tensor, gamma: float = 1.0) -> Tensor:
    """Sampling as the papers have it, in z."""

    def eps(sigma: float, z: Tensor) -> Tensor:
        return MIXTURE(torch.tensor(sigma, dtype=torch.float64), z / alpha(sigma))

    before, z = z, ddim_step(nodes[0], nodes[1], z, eps(nodes[0], z))
    for upper, here, lower in zip(nodes, nodes[1:], nodes[2:], strict=False):
        e = eps(here, z)
        if method == "bdia":
            new = gamma * (before - ddim_step(here, upper, z, e)) + ddim_step(here, lower, z, e)
        else:  # O-BELM, arXiv 2410.07273, eq. 18, with its steps h = σ_i - σ_{i-1} and h' = σ_{i+1} - σ_i
            h, h_up = here - lower, upper - here
            new = (
                h**2 / h_up**2 * alpha(lower) / alpha(upper) * before
                + (h_up**2 - h**2) / h_up**2 * alpha(lower) / alpha(here) * z
                - h * (h + h_up) / h_up * alpha(lower) * e
            )
        before, z = z, new
    return z


@pytest.mark.parametrize(("method", "gamma"), [("bdia", 1.0), ("bdia", 0.7), ("obelm", 1.0)])
def test_as_in_the_papers(method: str, gamma: float) -> None:
    sigmas = bent_grid(9, 0.05, 20.0).flip(0)
    row = solvers.get(method, **({"gamma": gamma} if method == "bdia" else {}))
    found = row.run(MIXTURE, State(20 * IMAGES, 20.0), sigmas).xbar
    truth = falling_in_z(method, sigmas.tolist(), alpha(20.0) * 20 * IMAGES, gamma) / alpha(0.05)
    assert torch.allclose(found, truth, rtol=0, atol=1e-8)


class Edict:
    """EDICT, arXiv 2211.12446, eq. 13-15, in DDIM's x = √α·x̄ with a network ε(x, t).

    The states take turns in being moved first, as in the authors' code; the mixtures always change x first, then y.
    """

    def __init__(self, sigmas: Sequence[float], p: float) -> None:
        """sigmas: σ_0 < ... < σ_T."""
        self.sigmas, self.p = sigmas, p
        self.alphas = [1 / (1 + sigma**2) for sigma in sigmas]

    def network(self, x: Tensor, t: int) -> Tensor:
        """ε(x, t): of the mixture's images in noise of the level t."""
        return MIXTURE(torch.tensor(self.sigmas[t], dtype=torch.float64), x / math.sqrt(self.alphas[t]))

    def coefficients(self, t: int) -> tuple[float, float]:
        """a_t and b_t, of x_{t-1} = a_t·x_t + b_t·ε."""
        now, then = self.alphas[t], self.alphas[t - 1]
        return math.sqrt(then / now), math.sqrt(1 - then) - math.sqrt(then * (1 - now) / now)

    def order(self, t: int) -> tuple[int, int]:
        """Which of (x, y) is moved first in the step from t: x in the first step from the noise."""
        return (0, 1) if (len(self.sigmas) - 1 - t) % 2 == 0 else (1, 0)

    def decode(self, x_T: Tensor) -> Tensor:
        """x_0."""
        pair = [x_T, x_T]
        for t in range(len(self.sigmas) - 1, 0, -1):
            a, b = self.coefficients(t)
            for i in self.order(t):
                pair[i] = a * pair[i] + b * self.network(pair[1 - i], t)
            x = self.p * pair[0] + (1 - self.p) * pair[1]
            pair = [x, self.p * pair[1] + (1 - self.p) * x]
        return pair[0]

    def encode(self, x_0: Tensor) -> Tensor:
        """x_T."""
        x, y = x_0, x_0
        for t in range(1, len(self.sigmas)):
            a, b = self.coefficients(t)
            y = (y - (1 - self.p) * x) / self.p
            pair = [(x - (1 - self.p) * y) / self.p, y]
            for i in reversed(self.order(t)):
                pair[i] = (pair[i] - b * self.network(pair[1 - i], t)) / a
            x, y = pair
        return x


@pytest.mark.parametrize("p", [0.93, 1.0])
@pytest.mark.parametrize("steps", [4, 19, 49])
def test_edict_as_in_its_paper(steps: int, p: float) -> None:
    """Both ways, on DDIM's schedule with the nodes evenly spaced in t; and back bit for bit."""
    levels = odeddim.Schedule.linear().levels
    sigmas = levels[torch.linspace(1, 999, steps + 1).long()]
    paper, row = Edict(sigmas.tolist(), p), solvers.get("edict", p=p)
    low, high = sigmas[0].item(), sigmas[-1].item()
    x_T = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = row.run(MIXTURE, State(x_T * math.hypot(1, high), high), sigmas.flip(0))
    truth = paper.decode(x_T)
    assert float((there.x - truth).abs().max()) < 1e-9 * max(1.0, float(truth.abs().max()))
    assert torch.equal(row.run(MIXTURE, there, sigmas).xbar, x_T * math.hypot(1, high))
    there = row.run(MIXTURE, State(IMAGES * math.hypot(1, low), low), sigmas)
    truth = paper.encode(IMAGES)
    assert float((there.x - truth).abs().max()) < 1e-9 * max(1.0, float(truth.abs().max()))
    assert torch.equal(row.run(MIXTURE, there, sigmas.flip(0)).xbar, IMAGES * math.hypot(1, low))


def test_edict_in_words() -> None:
    """The second evaluation is made in the units of the level that x has reached, √(1+3²)/√(1+1²) = √5 as large."""
    words = [kick.words(0) for kick in solvers.get("edict", p=1.0).instructions([3.0, 1.0])]  # type: ignore[misc]
    assert words == ["u = u - 2·ε(v, σ = 3)", "v = v - 2·ε(2.23607·u, σ = 3)"]


def test_reversible_heun_as_in_its_paper() -> None:
    """Kidger et al. 2021, Algorithm 1: ẑ' = 2z - ẑ + h·f(ẑ), z' = z + h·(f(ẑ) + f(ẑ'))/2."""
    sigmas = bent_grid(9, 0.05, 20.0)
    z = hat = IMAGES
    for here, there in pairwise(sigmas):
        h, slope = there - here, MIXTURE(here, hat)
        hat = 2 * z - hat + h * slope
        z = z + h * (slope + MIXTURE(there, hat)) / 2
    found = solvers.get("reversible-heun").run(MIXTURE, State(IMAGES, 0.05), sigmas).xbar
    assert torch.allclose(found, z, rtol=0, atol=1e-8)


def test_mccallum_foster_as_in_its_paper() -> None:
    """Eq. 5: y' = λy + (1-λ)z + Ψ_h(z), z' = z - Ψ_{-h}(y'), with Heun's increment for Ψ."""
    sigmas = bent_grid(9, 0.05, 20.0)

    def increment(here: Tensor, there: Tensor, x: Tensor) -> Tensor:
        first = MIXTURE(here, x)
        return (there - here) / 2 * (first + MIXTURE(there, x + (there - here) * first))

    y = z = IMAGES
    for here, there in pairwise(sigmas):
        y = 0.9 * y + (1 - 0.9) * z + increment(here, there, z)
        z = z - increment(there, here, y)
    found = solvers.get("mf-heun", coupling=0.9).run(MIXTURE, State(IMAGES, 0.05), sigmas).xbar
    assert torch.allclose(found, y, rtol=0, atol=1e-8)


def test_growth_by_hand() -> None:
    """The products that the papers' coefficients give, up and down."""
    steps = 20
    nodes = bent_grid(steps, 0.05, 20.0).tolist()
    h = np.diff(nodes)
    growth = solvers.get("bdia", gamma=0.5).growth
    assert growth is not None
    weight = 0.5 ** (steps - 1) * math.prod(alpha(c) / alpha(a) for a, c in zip(nodes, nodes[2:], strict=False))
    found = growth(nodes, True)
    assert 0.3 < found.encode * weight < 3  # γ^(1-N), times the telescoped alphas
    assert found.decode == pytest.approx(1, abs=0.5)
    growth = solvers.get("obelm").growth
    assert growth is not None
    found = growth(nodes, True)
    assert (h[-1] / h[0]) ** 2 / 50 < found.encode < 50 * (h[-1] / h[0]) ** 2
    growth = solvers.get("edict").growth
    assert growth is not None
    assert growth(nodes, True).encode == pytest.approx(0.93**-100, rel=0.5)
    for name in ("leapfrog", "reversible-heun", "ab3"):
        growth = solvers.get(name).growth
        assert growth is not None
        assert growth(nodes, True).encode < 2 * steps


@each(ROWS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_growth_is_what_a_disturbance_does(row: solvers.Solver, direction: str) -> None:
    """In a field of zeros an error in any evaluation arrives as the account says: none is larger, one is as large."""
    sigmas = directed(bent_grid(8, 0.05, 20.0), direction)
    nodes = sigmas.tolist()
    assert row.growth is not None
    account = row.growth(nodes, False)
    bound = account.encode if direction == "encode" else account.decode
    calls = 0

    def run(place: int) -> tuple[float, int]:
        nonlocal calls
        calls = 0

        def field(sigma: Tensor, xbar: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return torch.full_like(xbar, 1.0 if calls - 1 == place else 0.0)

        return float(row.run(field, State(torch.zeros(1, 1, dtype=torch.float64), nodes[0]), sigmas).xbar), calls

    count = run(-1)[1]
    arrived = [abs(run(place)[0]) for place in range(count)]
    longest = max(abs(there - here) for here, there in zip(nodes, nodes[2:], strict=False))
    assert max(arrived) <= 3 * bound * longest


def test_a_run_that_must_explode_is_refused() -> None:
    model = odeddim.load("exact-mixture")
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match=r"bdia on this grid .* amplify rounding errors .* fewer steps"):
        odeddim.encode(x, "bdia", model=model, steps=100, gamma=0.5)
    with pytest.raises(InputError, match="float64"):
        odeddim.encode(x, "bdia", model=model, steps=50, gamma=0.7)
    odeddim.encode(x.double(), "bdia", model=model, steps=50, gamma=0.7)
    odeddim.encode(x, "bdia", model=model, steps=50, gamma=0.9)


@DTYPES
@pytest.mark.parametrize("answer", [1e9, -1e9, 1e300, math.inf, math.nan])
@pytest.mark.parametrize("name", ["leapfrog", "belm"])
def test_a_run_that_leaves_its_registers(name: str, answer: float, dtype: torch.dtype) -> None:
    """Float64 holds what is too large for a register, so that it is found there; int64 would begin again from below."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return torch.full_like(xbar, answer)

    with pytest.raises(InputError, match="take back"):
        solvers.get(name).run(field, State(IMAGES.to(dtype), 0.1), log_grid(5, 0.1, 10.0))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("bdia", "gamma", 0.0),
        ("bdia", "gamma", 1.5),
        ("edict", "p", 0.0),
        ("edict", "p", 2.0),
        ("mf-euler", "coupling", -1.0),
    ],
)
def test_settings_out_of_range(name: str, setting: str, value: float) -> None:
    with pytest.raises(InputError, match=setting):
        solvers.get(name, **{setting: value}).run(MIXTURE, State(IMAGES, 0.1), log_grid(5, 0.1, 10.0))


def test_only_one_step_rows_are_coupled() -> None:
    assert mccallum_foster(solvers.get("heun")).nfe == 4
    for name in ("ab2", "dopri5"):
        with pytest.raises(InputError, match="one-step"):
            mccallum_foster(solvers.get(name))


def test_coupling_of_one_step_needs_no_mixture() -> None:
    made = reversible.coupled([0.1, 1.0, 10.0], base=solvers.get("euler"), coupling=1.0)
    assert not any(isinstance(operation, Mix) for operation in made.operations)
    assert not any(isinstance(step, Flip) for step in Registers(made, [0.1, 10.0], single=True).steps)
