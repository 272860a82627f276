"""Portable runs: the same bits whatever rounds the last digits of the network and of libm."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import command
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.portable import MARGIN, portable_noise, tolerance, uncertain
from odeddim.plans import Plan
from odeddim.solvers._portable import BITS, GRID, NODE_BITS, Shortened, short_nodes
from odeddim.storage.images import open_images
from odeddim.types import InputError, Point, State

LAST_BIT = 2.0**-52
PORTABLE = [name for name in solvers.names() if solvers.get(name).portable]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def small() -> odeddim.VectorField:
    """A network whose last digits depend on its batch."""
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(784, 64), torch.nn.SiLU(), torch.nn.Linear(64, 784)]
    network = torch.nn.Sequential(*layers).double().requires_grad_(False)
    return odeddim.VectorField(
        lambda x, t: network(x).reshape(x.shape) + x / 2, odeddim.Schedule.linear(), name="small"
    )


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(
    "model",
    [small, pytest.param(lambda: odeddim.load("fashion-mnist", dtype="float64"), marks=pytest.mark.slow, id="U-Net")],
)
def test_the_same_bits_for_any_threads_batch_and_backend(model: Any) -> None:
    """slow: the U-Net in float64 takes half a minute."""
    model, images = model(), open_images()[0:3]

    def bits(solver: str, threads: int, batch: int | None, onednn: bool, portable: bool = True) -> State:
        torch.set_num_threads(threads)
        model.network_batch = batch
        with torch.backends.mkldnn.flags(enabled=onednn):
            return odeddim.encode(images.double(), solver, model=model, steps=3, portable=portable)

    for solver in ("unipc-2", "belm"):
        state = bits(solver, 1, 7, True)
        assert state.xbar.dtype == torch.float64
        assert bool((state.report[MARGIN] >= 1).all())
        for threads, batch, onednn in ((2, 1, True), (1, 1, False)):
            assert bits(solver, threads, batch, onednn) == state
        model.network_batch = 2
        back = odeddim.decode(state, model=model)
        model.network_batch = 1
        assert torch.equal(odeddim.decode(state, model=model), back)
        assert torch.equal(back, images.double()) == (solver == "belm")
    assert bits("belm", 2, 64, False) == state
    assert bits("belm", 1, 7, True, portable=False) != bits("belm", 1, 1, True, portable=False)  # or nothing is shown


def test_another_libm_changes_no_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp, log and the like are off by their last bit, up or down as it falls; the nodes by more."""
    chance = np.random.default_rng(0)

    def found(row: odeddim.Solver, nodes: list[float], short: Shortened | None) -> list[Any]:
        steps: list[Any] = [*row.instructions(nodes)] if row.instructions else []
        made: list[Any] = []
        for step in steps:
            if isinstance(step, Point):
                point = step if short is None else short.point(step)
                made.append((point.sigma, dict(point.points), dict(point.slopes)))
                continue
            made.append((step if short is None else short.operation(step)).key())
            if getattr(step, "base", None) is not None:
                made += found(step.base, [step.sigma, step.end], short)
        return made

    def all_of(off: float, short: bool) -> dict[str, tuple[list[Any], bool]]:
        table = {}
        for name in PORTABLE:
            for steps in (3, 7, 16):
                levels = np.geomspace(0.01, 157.4, steps) * (1 + off * chance.uniform(-1, 1, steps))
                nodes = short_nodes(levels.tolist()) if short else levels.tolist()
                for way in (1, -1):
                    by = Shortened() if short else None
                    table[f"{name} {steps * way}"] = found(solvers.get(name), nodes[::way], by), by is None or by.sure
        return table

    here, raw = all_of(0.0, short=True), all_of(0.0, short=False)
    for name in ("exp", "expm1", "log", "log1p", "pow", "hypot"):
        own = getattr(math, name)
        monkeypatch.setattr(
            math, name, lambda *x, own=own: math.nextafter(own(*x), chance.choice([-math.inf, math.inf]))
        )
    from odeddim.solvers import _points

    _points.gauss_legendre.cache_clear()
    there, other = all_of(1e-15, short=True), all_of(0.0, short=False)
    assert sum(raw[run][0] != other[run][0] for run in raw) > len(raw) / 2  # or nothing is shown
    unsure = [run for run in here if not (here[run][1] and there[run][1])]
    assert len(unsure) <= len(here) // 50, unsure
    for run in here:
        assert here[run][0] == there[run][0] or run in unsure, run


def test_euler_is_that_of_python_integers() -> None:
    """The algorithm of docs/portable.md, in fractions."""
    nodes = [0.0, 0.3, 1.7, 9.1, 60.0]

    def shortened(value: float, bits: int) -> Fraction:
        unit = Fraction(2) ** (math.frexp(1.4 * abs(value))[1] - bits) if value else Fraction(1)
        return round(Fraction(value) / unit) * unit

    levels = [shortened(sigma, NODE_BITS) for sigma in nodes]
    quantum = Fraction(2) ** (math.frexp(2.0**13 * math.hypot(1, 60) / 2.0**53)[1])
    start = [0.7, -0.2, 0.1234567, 1.0]

    def eps(xbar: float, sigma: float) -> float:
        return math.sin(3 * xbar) + sigma / (1 + sigma)

    registers = [round(Fraction(value) / quantum) for value in start]
    for here, there in itertools.pairwise(levels):
        weight = shortened(float(there - here), BITS)
        for i, register in enumerate(registers):
            answer = round(Fraction(eps(float(register * quantum), float(here))) / Fraction(GRID)) * Fraction(GRID)
            registers[i] += round(Fraction(float(answer * weight / quantum)))  # a product is rounded once, to float64

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return torch.tensor([[eps(value, float(sigma)) for value in row] for row in xbar.tolist()], dtype=torch.float64)

    plan = Plan(solvers.get("euler"), torch.tensor(nodes, dtype=torch.float64), portable=True)
    end = odeddim.integrate(field, State(torch.tensor([start], dtype=torch.float64), 0.0), plan)
    assert end.xbar.tolist() == [[float(register * quantum) for register in registers]]


@pytest.mark.parametrize("name", PORTABLE)
def test_a_portable_run_is_the_run(name: str) -> None:
    """Up to the rounding of the answers; reversible rows come back bit for bit."""
    model = odeddim.load("exact-gaussian")
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for end in ("zero", "sigma_min"):
        found = [
            odeddim.encode(images, name, model=model, steps=16, grid="karras", end=end, portable=portable)
            for portable in (True, False)
        ]
        assert float((found[0].x - found[1].x).abs().max()) < 1e-3 * float(found[1].x.abs().max())
        assert found[0].plan.portable
        assert found[0].plan.end == end
        back = odeddim.decode(found[0], model=model)
        if solvers.get(name).reversible:
            assert torch.equal(back, images)
        assert float((back - odeddim.decode(found[1], model=model)).abs().max()) < 3e-3


class Near(torch.nn.Module):
    """Answers in the middle of two edges, but for bright images: theirs lie at an edge, or on the other side of it."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = torch.nn.Parameter(torch.tensor(off, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        bright = (x.flatten(1)[:, 0] > 0).double().reshape(-1, 1, 1, 1)
        return torch.zeros_like(x) + (0.2 + 0.3 * bright) * GRID * (1 + self.off)


def near(off: float = LAST_BIT) -> odeddim.VectorField:
    """The field of `Near`."""
    return odeddim.VectorField(Near(off), odeddim.Schedule.linear(), name="near", shape=(1, 2, 2), sha256="0" * 64)


def test_what_another_machine_may_round_otherwise_is_named(tmp_path: Path) -> None:
    images = torch.tensor([-0.5, 0.5, -0.5]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    with pytest.warns(UserWarning, match="images 1 are not certified portable"):
        here = odeddim.encode(images, "euler", model=near(), steps=4, portable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = odeddim.encode(images, "euler", model=near(-LAST_BIT), steps=4, portable=True)
    assert uncertain(here.report[MARGIN]) == [1]
    assert [a == b for a, b in zip(here, there, strict=True)] == [True, False, True]
    with pytest.warns(UserWarning, match="'000001' is not certified"):
        made = odeddim.jobs.encode(
            images, tmp_path / "z.h5", model=near(), solver="euler", steps=4, portable=True,
        )  # fmt: skip
    assert str(made).endswith("certified portable but for 1")
    with odeddim.open(tmp_path / "z.h5") as file:
        assert uncertain(file.figures("report")[MARGIN]) == [1]
        assert file.summary()["portable"] == "certified, but for 000001"


def test_the_tolerance_follows_the_network() -> None:
    """It is that of sums in another order: more where the network loses more digits."""
    like, sigmas = torch.zeros(1, 1, 2, 2), torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)

    def model(scale: float) -> odeddim.VectorField:
        def network(x: Tensor, t: Tensor) -> Tensor:
            return x + (scale / len(x) + x - scale / len(x)) * 1e-3

        return odeddim.VectorField(network, odeddim.Schedule.linear())

    exact, losing = (tolerance(model(scale), like, sigmas) for scale in (0.0, 1e10))
    assert exact < 1e-7
    assert 1e3 * exact < losing < 1


def test_noise_of_any_machine() -> None:
    """Against NumPy and SciPy, which make it of the same bits in other ways."""
    scipy_special = pytest.importorskip("scipy.special")
    found, margin = portable_noise(3, (1, 32, 32), seed=5, start=2)
    raw = np.random.PCG64(np.random.SeedSequence([5, 4, 0])).random_raw(1024)
    expected = scipy_special.ndtri(((raw >> np.uint64(12)).astype(float) + 0.5) / 2**52)
    torch.testing.assert_close(found[2].flatten(), torch.from_numpy(expected), rtol=0, atol=GRID / 2 * 1.001)
    assert torch.equal(found / GRID, (found / GRID).round())
    assert bool((margin >= 1).all())
    assert abs(float(found.mean())) < 0.1
    assert abs(float(found.std()) - 1) < 0.1
    images = odeddim.sample(3, model="exact-mixture", steps=4, shape=(1, 4, 4), portable=True)
    assert torch.equal(
        images[1:], odeddim.sample(2, model="exact-mixture", steps=4, shape=(1, 4, 4), start=1, portable=True)
    )


def test_files_of_any_machine(here: Path) -> None:
    """A run goes on with other threads and another batch, and its file is decoded to the same bits anywhere."""
    made = ("--model", "exact-mixture", "--steps", 4)
    for name, more in (("a", ("--network-batch", 3)), ("b", ("--threads", 2, "--batch-size", 2))):
        said = command("encode", "-o", f"{name}.h5", "-n", 3, *made, "--portable", *more)
        assert "certified portable" in said
    command("encode", "-o", "a.h5", "-n", 5, *made, "--portable", "--network-batch", 2)  # extends it
    found = odeddim.jobs.verify("a.h5", against="b.h5").against
    assert found is not None
    assert (found.same, found.lacking) == (3, (2, 0))
    assert set(found.why) == {"network_batch", "threads"}
    for name, more in (("a", ("--network-batch", 1)), ("b", ("--threads", 2))):
        said = command("decode", f"{name}.h5", "-o", f"{name}.npz", *more)
        assert "certified portable" in said
        assert "warning" not in said
    a, b = (np.load(f"{name}.npz") for name in "ab")
    assert np.array_equal(a["images"][:3], b["images"])
    assert np.array_equal(b["images"], open_images()[0:3].double().numpy())  # belm
    assert bool((a["margin"] >= 1).all())
    assert "starts from x̄ alone" in command("decode", "a.h5", "-o", "c.npz", "--no-portable")
    command("encode", "-o", "c.h5", "-n", 2, *made, "--dtype", "float64")
    assert "no portable run" in command("decode", "c.h5", "-o", "d.npz", "--portable")
    assert "certified portable" in command("sample", "-n", 2, "-o", "e.npz", "--size", "1,4,4", *made, "--portable")
    command("decode", "a.h5", "-o", "f.npz", "--steps", 3, "--solver", "unipc-2")
    with LatentFile(Path("a.h5")) as file:
        assert file.provenance.details["made_on"]["torch"] == torch.__version__
        assert file.noted is not None
        assert file.noted.portable
        file.plan.save("plan.json")
    assert Plan.load("plan.json").portable
    command("encode", "-o", "g.h5", "-n", 3, "--model", "exact-mixture", "--plan", "plan.json")
    assert odeddim.jobs.verify("g.h5", against="b.h5").against.same == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--solver", "dopri5"), "'dopri5' has no portable form"),
        (("--solver", "mf-rk4"), "'mf-rk4' has no portable form"),
        (("--solver", "edict", "--set", "p=0.9", "--steps", 100), "would amplify the rounding of --portable"),
        (("--top", "gaussian:50"), "--portable excludes --top"),
        (("--start", "forward:2", "--solver", "euler"), "--portable excludes --start"),
        (("--tol", 1e-2), "leave out --tol or --portable"),
        (("--density",), "leave out --portable"),
        (("--trajectory", "t.h5"), "leave out --trajectory"),
        (("--parallel", 4, "--solver", "euler"), "leave out --parallel"),
        (("--dtype", "float32", "--model", "fashion-mnist"), "needs the network in float64, not float32"),
    ],
)
def test_what_cannot_be_portable_is_said(here: Path, arguments: tuple[object, ...], words: str) -> None:
    said = command("encode", "-o", "z.h5", "-n", 1, "--model", "exact-samples", "--portable", *arguments, code=2)
    assert words in said
    assert not Path("z.h5").exists()


def test_gradients_and_damage_are_refused() -> None:
    model = odeddim.load("exact-mixture")
    with pytest.raises(InputError, match="gives no gradients"):
        odeddim.solve(torch.ones(1, 1, 2, 2, requires_grad=True), "euler", model=model, steps=2, portable=True)
    plan = odeddim.plan(model, "euler", steps=3, portable=True)
    assert str(plan).endswith(", portable")
    assert plan.evaluations == 3
    assert plan.portably(False) != plan
    content = plan.to_dict()
    assert Plan.from_dict(content, "p") == plan
    with pytest.raises(InputError, match="portable is missing or wrong"):
        Plan.from_dict({**content, "version": 1}, "p")
    with pytest.raises(InputError, match="two of this grid are the same: take fewer"):
        replace(plan, nodes=torch.tensor([1.0, 1.0 + 1e-9], dtype=torch.float64))
    unstable = replace(plan, nodes=torch.tensor([1e-3, 1.0, 100.0], dtype=torch.float64))
    with pytest.raises(InputError, match="unstable"):
        odeddim.integrate(lambda sigma, xbar: xbar * 1e9, State(torch.ones(1, 2), float(unstable.nodes[0])), unstable)
