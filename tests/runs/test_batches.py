"""batch_size=, progress= and callback= of encode, decode, solve and sample; NumPy arrays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import odeddim
from odeddim.ode.analytic import GaussianMixture
from odeddim.runs import batches
from odeddim.runs.batches import ON_A_CPU
from odeddim.types import InputError, State, lacks_memory

LINEAR = odeddim.Schedule.linear()
SOLVERS = ("euler", "ab3", "rk4", "belm", "edict", "exact-euler", "dopri5-per-image", "scipy-rk45")


def images(count: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(5)) * 2 - 1


def mixture() -> odeddim.VectorField:
    return odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(LINEAR), LINEAR)


class Convolution(nn.Sequential):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x)


def convolution() -> odeddim.VectorField:
    torch.manual_seed(0)
    network = Convolution(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
    return odeddim.VectorField(network, LINEAR)


def how(solver: str) -> dict[str, Any]:
    return {} if odeddim.solvers.get(solver).adaptive else {"steps": 6}


def same(a: State, b: State) -> None:
    """All that a run says: x̄, aux, where it lies and by whom it is kept, and its report."""
    assert a == b
    assert a.report.keys() == b.report.keys()
    for name, values in a.report.items():
        assert torch.equal(values, b.report[name]), name


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("solver", SOLVERS)
def test_batches_change_no_bit_of_exact_fields(solver: str, size: int) -> None:
    field, settings = mixture(), how(solver)
    whole = odeddim.encode(images(), solver, model=field, **settings)
    state = odeddim.encode(images(), solver, model=field, batch_size=size, **settings)
    same(state, whole)
    image = odeddim.decode(whole, solver, model=field, **settings)
    assert torch.equal(odeddim.decode(whole, solver, model=field, batch_size=size, **settings), image)
    again = odeddim.solve(whole.x, solver, model=field, **settings)
    assert torch.equal(odeddim.solve(whole.x, solver, model=field, batch_size=size, **settings), again)


def test_combined_latents_stay_so() -> None:
    state = odeddim.encode(images(2), "belm", model=mixture(), steps=6)
    path = odeddim.interpolate(state[0], state[1], 5)
    assert path.combined
    whole = odeddim.decode(path, model=mixture(), steps=6)
    assert torch.equal(odeddim.decode(path, model=mixture(), steps=6, batch_size=2), whole)


def test_batches_change_the_last_digits_of_convolutions_only() -> None:
    field, x_0 = convolution(), images(dtype=torch.float32)
    whole = odeddim.encode(x_0, "ab3", model=field, steps=6)
    state = odeddim.encode(x_0, "ab3", model=field, steps=6, batch_size=2)
    assert torch.allclose(state.x, whole.x, rtol=1e-4, atol=1e-5)
    field.network_batch = 4  # and none where the network always sees as many
    same(
        odeddim.encode(x_0, "belm", model=field, steps=6, batch_size=3),
        odeddim.encode(x_0, "belm", model=field, steps=6),
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_noise_is_that_of_the_image_in_any_batch(size: int) -> None:
    settings: dict[str, Any] = {"model": mixture(), "shape": (1, 4, 4), "steps": 5, "seed": 3}
    for more in ({}, {"eta": 1.0}, {"solver": "ddpm"}):
        whole = odeddim.sample(5, start=2, **settings, **more)
        assert torch.equal(odeddim.sample(5, start=2, batch_size=size, **settings, **more), whole)
    x_T = odeddim.noise(5, (1, 4, 4))
    for first in ({}, {"first": 4}):
        row = odeddim.solvers.get("ddpm", seed=9, **first)
        whole = odeddim.solve(x_T, row, model=mixture(), steps=5)
        assert torch.equal(odeddim.solve(x_T, row, model=mixture(), steps=5, batch_size=size), whole)
        assert not torch.equal(odeddim.solve(x_T[1:], row, model=mixture(), steps=5), whole[1:])


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "all"])
def test_what_is_no_batch_size_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"batch_size must be a positive whole number, 'auto' or None"):
        odeddim.encode(images(), model=mixture(), batch_size=wrong)


def test_refusals_name_the_image_among_all_and_come_before_the_work() -> None:
    broken, field = images(), mixture()
    broken[5, 0, 1, 1] = torch.nan
    for act in (
        lambda: odeddim.encode(broken, model=field, batch_size=2, steps=3),
        lambda: odeddim.solve(broken, model=field, batch_size=2, steps=3),
        lambda: odeddim.decode(State(broken, LINEAR.sigma_max), "ab3", model=field, batch_size=2, steps=3),
    ):
        with pytest.raises(InputError, match="image 5 "):
            act()
    assert field.nfe == 0
    with pytest.raises(InputError, match="at least one image"):
        odeddim.encode(images()[:0], model=field, batch_size=2)
    with pytest.raises(InputError, match="at least one image"):
        odeddim.sample(0, model=field, shape=(1, 2, 2), batch_size="auto")
    with pytest.raises(odeddim.BudgetExceeded, match="images 0 to 1: ") as caught:
        odeddim.encode(images(), "dopri5", model=field, batch_size=2, max_nfe=20)
    assert len(caught.value.state) == 2


class Limited:
    """A network that does not fit more than so many images into memory; it notes how many it was given."""

    def __init__(self, most: int, error: Callable[[], BaseException]) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []
        self.kept: list[weakref.ref[Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            held = x.clone()
            self.kept.append(weakref.ref(held))
            raise self.error()
        if self.kept:
            assert all(kept() is None for kept in self.kept), "the failed run still holds its tensors"
        return x / 2


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    batches._FITS.clear()


ERRORS = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


@pytest.mark.parametrize("error", ERRORS)
def test_auto_goes_down_to_what_fits_and_remembers_it(error: str) -> None:
    limited = Limited(5, ERRORS[error])
    field = odeddim.VectorField(limited, LINEAR)
    whole = odeddim.encode(images(21), "euler", model=odeddim.VectorField(lambda x, t: x / 2, LINEAR), steps=3)
    gc.disable()
    gc.freeze()  # what lives already is a million objects, which each collection would look at
    try:
        state = odeddim.encode(images(21), "euler", model=field, steps=3, batch_size="auto")
    finally:
        gc.unfreeze()
        gc.enable()
    same(state, whole)
    assert list(dict.fromkeys(limited.sizes)) == [21, 16, 8, 4, 1]  # 21 = 5·4 + 1
    limited.sizes.clear()
    same(odeddim.encode(images(21), "euler", model=field, steps=3, batch_size="auto"), whole)
    assert set(limited.sizes) == {4, 1}
    limited.sizes.clear()
    odeddim.encode(images(21), "rk4", model=field, steps=3, batch_size="auto")  # another solver, another size
    assert limited.sizes[0] == 21
    with pytest.raises(type(ERRORS[error]())):
        odeddim.encode(images(21), "euler", model=field, steps=3, batch_size=6)


def test_auto_finds_less_in_the_middle_of_a_run() -> None:
    limited = Limited(8, ERRORS["torch"])
    field = odeddim.VectorField(limited, LINEAR)
    told: list[tuple[float, float]] = []

    def callback(step: int, sigma: float, xbar: Tensor) -> None:
        limited.most = 3 if len(told) > 12 else limited.most

    state = odeddim.encode(
        images(20), "euler", model=field, steps=5, batch_size="auto", callback=callback,
        progress=lambda *it: told.append(it),
    )  # fmt: skip
    alone = odeddim.encode(images(20), "euler", model=odeddim.VectorField(lambda x, t: x / 2, LINEAR), steps=5)
    same(state, alone)
    assert 2 in limited.sizes
    assert [done for done, _ in told] == sorted({done for done, _ in told})  # never backwards
    assert told[-1] == (20, 20)


def test_auto_ends_where_not_one_image_fits_and_at_other_errors() -> None:
    field = odeddim.VectorField(Limited(0, ERRORS["torch"]), LINEAR)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        odeddim.encode(images(3), "euler", model=field, steps=3, batch_size="auto")
    broken = Limited(0, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        odeddim.encode(images(3), "euler", model=odeddim.VectorField(broken, LINEAR), steps=3, batch_size="auto")
    assert broken.sizes == [3]
    assert not lacks_memory(ValueError("out of memory"))


def test_auto_does_not_try_the_memory_of_a_cpu() -> None:
    limited = Limited(10**6, ERRORS["python"])
    field = odeddim.VectorField(limited, LINEAR)
    odeddim.sample(100, "euler", model=field, shape=(1, 2, 2), steps=2, batch_size="auto")
    assert set(limited.sizes) == {ON_A_CPU, 100 % ON_A_CPU}


def test_progress_counts_images_and_parts_of_a_batch_by_its_steps() -> None:
    told: list[tuple[float, float]] = []
    odeddim.sample(
        3, "euler", model=mixture(), shape=(1, 2, 2), steps=4, batch_size=2, progress=lambda *it: told.append(it)
    )
    assert told == [(0.5, 3), (1, 3), (1.5, 3), (2, 3), (2.25, 3), (2.5, 3), (2.75, 3), (3, 3)]
    told.clear()
    odeddim.encode(images(), "dopri5-per-image", model=mixture(), progress=lambda *it: told.append(it))
    assert told == [(7, 7)]


def test_a_callback_sees_each_step_of_each_batch() -> None:
    plan = odeddim.plan(mixture(), "ab3", steps=4)
    seen: list[tuple[int, float, Tensor]] = []
    x_0 = images()
    state = odeddim.encode(x_0, model=mixture(), plan=plan, batch_size=4, callback=lambda *it: seen.append(it))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4] * 2
    assert [sigma for _, sigma, _ in seen] == plan.nodes.tolist()[1:] * 2
    assert torch.equal(torch.cat([seen[3][2], seen[7][2]]), state.xbar)
    seen.clear()
    image = odeddim.decode(state, model=mixture(), plan=plan, callback=lambda *it: seen.append(it))
    assert [sigma for _, sigma, _ in seen] == plan.nodes.tolist()[-2::-1]
    assert torch.equal(seen[-1][2], image)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8", "longdouble"])
def test_numpy_is_taken(dtype: str) -> None:
    array = images().numpy().astype(dtype)
    kept = torch.float32 if array.dtype.itemsize < 8 else torch.float64
    tensor = torch.from_numpy(array.astype(np.float64)).to(kept)
    for given, right in ((array, tensor), (array[::-1], tensor.flip(0))):
        state = odeddim.encode(given, "euler", model=mixture(), steps=3)
        assert isinstance(state.xbar, Tensor)
        assert state.xbar.dtype == kept
        same(state, odeddim.encode(right, "euler", model=mixture(), steps=3, batch_size=2))
        x_0 = odeddim.solve(given, "euler", model=mixture(), steps=3)
        assert torch.equal(x_0, odeddim.solve(right, "euler", model=mixture(), steps=3))
    assert np.array_equal(array, images().numpy().astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64", "object", "U3"])
def test_numpy_of_other_kinds_is_refused(dtype: str) -> None:
    array = np.zeros((2, 1, 4, 4)).astype(dtype)
    with pytest.raises(InputError, match=r"are floating point, images in \[-1, 1\], not .*x / 127.5 - 1"):
        odeddim.encode(array, model=mixture())
    with pytest.raises(InputError, match="decode takes a State"):
        odeddim.decode(array, model=mixture())  # type: ignore[arg-type]
