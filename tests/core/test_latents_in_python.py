"""Latent files in Python: `odeddim.open` and `odeddim.save` do what the commands do, and h5py alone reads the files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import odeddim
from odeddim import jobs
from odeddim.ode.field import VectorField
from odeddim.types import InputError

MODEL = "exact-samples"


@pytest.fixture
def z(tmp_path: Path) -> Path:
    path = tmp_path / "z.h5"
    jobs.encode(None, path, model=MODEL, count=5, solver="belm", steps=6)
    return path


def test_a_file_is_a_sequence_of_states(z: Path) -> None:
    with odeddim.open(z) as latents:
        assert len(latents) == 5
        whole = latents[:]
        assert isinstance(whole, odeddim.State)
        assert len(whole) == 5
        assert latents[1:3] == whole[1:3]
        assert latents[-1] == whole[4:]
        assert latents[::2] == whole[::2]
        assert len(latents[3:3]) == 0
        assert latents.names[:2] == ["000000", "000001"]
        assert latents.plan == odeddim.plan(MODEL, "belm", steps=6)
        assert latents.certificate == {}
        assert latents.summary()["latents"] == 5
        json.dumps(latents.summary())
        for index in (5, -6):
            with pytest.raises(IndexError, match="holds latents 0 to 4"):
                latents[index]


def test_decode_gives_what_the_command_writes(z: Path, tmp_path: Path) -> None:
    for how in ({}, {"solver": "unipc-2"}, {"solver": "ddpm", "seed": 3, "steps": 5}, {"steps": 9, "grid": "karras"}):
        jobs.decode(z, tmp_path / "out.h5", overwrite=True, **how)
        with h5py.File(tmp_path / "out.h5") as file, odeddim.open(z) as latents:
            written = torch.from_numpy(file["images"][:])
            assert torch.equal(latents.decode(**how), written)
            assert torch.equal(latents.decode(slice(2, 4), **how), written[2:4])
            assert torch.equal(latents.decode(-1, **how), written[4:])


def test_what_is_saved_is_what_encode_writes(z: Path, tmp_path: Path) -> None:
    with odeddim.open(z) as latents:
        state, plan, names = latents[:], latents.plan, latents.names[:]
    state.save(tmp_path / "again.h5", names=names, model=MODEL, plan=plan)
    with odeddim.open(tmp_path / "again.h5") as again:
        assert again[:] == state
        assert again.plan == plan
        assert repr(again).endswith(f"latents of {MODEL} in {tmp_path / 'again.h5'}: {plan}>")
        assert again.names[:] == names
        assert again.provenance.sha256 == odeddim.load(MODEL).sha256
    jobs.decode(z, tmp_path / "a.h5")
    jobs.decode(tmp_path / "again.h5", tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert np.array_equal(a["images"][:], b["images"][:])
        assert a["names"][:].tolist() == b["names"][:].tolist()


def test_a_state_of_encode_is_saved_by_the_same_words(tmp_path: Path) -> None:
    x_0 = torch.linspace(-0.8, 0.8, 32).reshape(2, 1, 4, 4)
    how = {"model": "exact-mixture", "solver": "bdia", "steps": 7, "grid": "karras", "gamma": 0.9}
    state = odeddim.encode(x_0, **how)
    odeddim.save(state, tmp_path / "z.h5", **how)
    with odeddim.open(tmp_path / "z.h5") as latents:
        assert latents[:] == state
        assert latents.names[:] == ["000000", "000001"]
        assert latents.plan.settings == {"gamma": 0.9}
        assert torch.equal(odeddim.decode(latents[:], model="exact-mixture", plan=latents.plan), x_0)


def test_a_field_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its dtype is what the file says, and what decodes."""
    field = odeddim.load("fashion-mnist", dtype="float64")
    jobs.encode(None, tmp_path / "z.h5", model=field, count=1, solver="euler", steps=2)
    with odeddim.open(tmp_path / "z.h5") as latents:
        assert latents.provenance.details["dtype"] == "float64"
        assert latents[0].xbar.dtype == torch.float64


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            {"solver": "ab2", "steps": 8, "grid": "leading"},
            "encoded by ab2, log grid, 8 steps, end zero, not by ab2, lea",
        ),
        ({"solver": "ab2"}, "not by ab2, log grid, 50 steps"),
        ({"names": ["one"]}, "1 names for 2 latents"),
        ({"solver": "ab2", "plan": odeddim.plan("exact-mixture")}, r"plan=\.\.\. says how to run: leave out solver="),
    ],
)
def test_what_cannot_be_saved(how: dict[str, object], words: str, tmp_path: Path) -> None:
    state = odeddim.encode(torch.zeros(2, 1, 4, 4), "ab2", model="exact-mixture", steps=8)
    with pytest.raises(InputError, match=words):
        odeddim.save(state, tmp_path / "z.h5", model="exact-mixture", **how)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(z: Path) -> None:
    state = odeddim.encode(torch.zeros(2, 1, 4, 4), "ab2", model="exact-mixture", steps=8)
    before = z.read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        odeddim.save(state, z, model="exact-mixture", solver="ab2", steps=8)
    assert z.read_bytes() == before
    odeddim.save(state, z, model="exact-mixture", solver="ab2", steps=8, overwrite=True)
    with odeddim.open(z) as latents:
        assert latents[:] == state


def test_h5py_alone_reads_the_layout_that_is_documented(z: Path) -> None:
    """The layout of docs/latent-files.md: nothing of odeddim is needed to use a latent file."""
    with odeddim.open(z) as latents:
        state, plan = latents[:], latents.plan
    with h5py.File(z) as file:
        assert {"xbar", "aux", "names", "crc32", "nodes", "provenance"} <= set(file)
        xbar, sigma = file["xbar"][:], float(file["xbar"].attrs["sigma"])
        assert (xbar.shape, xbar.dtype) == ((5, 1, 28, 28), np.float32)
        x_T = xbar / np.sqrt(1 + sigma**2)
        assert np.array_equal(xbar, state.xbar.numpy())
        assert np.allclose(x_T, state.x.numpy(), rtol=1e-6)
        assert [file[f"aux/{k}"][:].tolist() for k in range(len(file["aux"]))] == [a.tolist() for a in state.aux]
        assert file["nodes"][:].tolist() == plan.nodes.tolist()
        assert file["nodes"][-1] == sigma
        assert file["names"][0].decode() == "000000"
        provenance = json.loads(file["provenance"][()])
        assert (provenance["solver"], provenance["grid"], provenance["steps"]) == ("belm", "log", 6)
        assert provenance["model"] == MODEL
        assert "xbar = x/sqrt(alpha)" in str(file["xbar"].attrs["unit"])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_saved_state_comes_back_exactly_in_any_company(batch_size: int | None, tmp_path: Path) -> None:
    """The file says how many images the network saw at once, and whoever decodes it gives it as many."""
    x_0 = odeddim.sample(6, steps=3, seed=0)
    state = odeddim.encode(x_0, "belm", steps=4, batch_size=batch_size)
    odeddim.save(state, tmp_path / "z.h5")
    odeddim.save(state[:3], tmp_path / "some.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with odeddim.open(tmp_path / "z.h5") as latents, odeddim.open(tmp_path / "some.h5") as some:
            assert (latents.decode() == x_0).all()
            assert (latents.decode(slice(4, 6)) == x_0[4:6]).all()
            assert (some.decode() == x_0[:3]).all()
            odeddim.save(latents[:2], tmp_path / "again.h5")
        with odeddim.open(tmp_path / "again.h5") as again:
            assert (again.decode() == x_0[:2]).all()


def test_another_condition_or_model_starts_from_the_latent_alone(tmp_path: Path) -> None:
    """What belm keeps leads back to the image that was encoded, and not to that of another condition (an edit)."""
    schedule = odeddim.Schedule.linear()

    def told(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 0.9 - (y / 20).view(-1, 1, 1, 1)

    model = VectorField.from_network(told, schedule, classes=10, shape=(1, 4, 4), name="classes")
    three, seven = model.conditioned(3), model.conditioned(7)
    images = torch.rand(2, 1, 4, 4) * 2 - 1
    state = odeddim.encode(images, "belm", model=three, steps=6)
    alone = odeddim.State(state.xbar, state.sigma)
    edited = odeddim.decode(state, model=seven)
    assert torch.equal(edited, odeddim.decode(alone, "unipc-2", model=seven, steps=6, grid="log"))
    with_belm = odeddim.decode(state, "belm", model=seven)
    assert torch.equal(with_belm, odeddim.decode(alone, "belm", model=seven, steps=6))
    assert torch.equal(odeddim.decode(state, model=three), images)

    odeddim.save(state, tmp_path / "z.h5", model=three)
    with odeddim.open(tmp_path / "z.h5") as latents:
        assert torch.equal(latents.decode(model=three), images)
        assert torch.equal(latents.decode(model=seven), edited)

    other = VectorField.from_network(told, schedule, classes=10, shape=(1, 4, 4), name="other").conditioned(7)
    with pytest.warns(UserWarning, match="encoded for the model 'classes', not 'other': a bridge"):
        assert torch.equal(odeddim.decode(state, model=other), edited)
