"""Trajectory files: what is in them, kills, damage, and the pictures that are drawn of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from support import killed_at

import odeddim
from odeddim import jobs
from odeddim.storage.resumable import Run
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {"model": "exact-samples", "solver": "ab2", "steps": 4, "machine": jobs.Machine("cpu")}


def same(path: Path | str, other: odeddim.Trajectory) -> bool:
    made = odeddim.Trajectory.load(path)
    return torch.equal(made.xbar, other.xbar) and torch.equal(made.eps, other.eps)


@pytest.fixture
def x_T() -> torch.Tensor:
    return odeddim.noise(5, (1, 4, 4))


def test_a_file_holds_what_memory_holds(here: Path, x_T: torch.Tensor) -> None:
    how: dict[str, Any] = {"model": "exact-mixture", "solver": "ab2", "steps": 5}
    for name, at in (("all.h5", None), ("some.h5", [0.1, 5.0])):
        kept = odeddim.trajectory(x_T, **how, at=at)
        filed = odeddim.trajectory(x_T, **how, at=at, keep=here / name, batch_size=2)
        assert filed.end == kept.end
        read = odeddim.Trajectory.load(name)
        assert same(name, kept)
        assert torch.equal(read.sigmas, kept.sigmas)
        assert (read.plan, read.every, read.end) == (kept.plan, at is None, None)
        assert torch.equal(read.of([1, -1]).x0, kept.x0[:, [1, 4]])
        assert not (here / f"{name}.parts").exists()
    assert torch.equal(odeddim.Trajectory.load("all.h5").at(0.7).xbar, odeddim.trajectory(x_T, **how).at(0.7).xbar)
    odeddim.trajectory(x_T, **how, keep="all.h5")  # the same run: nothing is lost
    with pytest.raises(InputError, match="made with other settings"):
        odeddim.trajectory(x_T + 1, **how, keep="all.h5")
    odeddim.trajectory(x_T + 1, **how, keep="all.h5", overwrite=True)
    assert same("all.h5", odeddim.trajectory(x_T + 1, **how))
    noisy = odeddim.trajectory(x_T, "ddim-eta", model="exact-mixture", steps=4, eta=0.8)
    odeddim.trajectory(x_T, "ddim-eta", model="exact-mixture", steps=4, eta=0.8, keep="noisy.h5")
    assert torch.equal(odeddim.Trajectory.load("noisy.h5").log_prob(), noisy.log_prob())


def test_damage_and_strangers_are_found(here: Path, x_T: torch.Tensor) -> None:
    odeddim.trajectory(x_T, model="exact-mixture", steps=3, keep="t.h5")
    whole = (here / "t.h5").read_bytes()
    with h5py.File("t.h5", "r+") as file:
        file["xbar"][2, 1] += 1
    read = odeddim.Trajectory.load("t.h5")
    assert torch.isfinite(read.of(0).xbar).all()
    with pytest.raises(InputError, match="row 2 was changed"):
        read.of(2)
    (here / "t.h5").write_bytes(whole)
    with h5py.File("t.h5", "r+") as file:
        file["nodes"][1] = 3.0
    with pytest.raises(InputError, match="noise levels do not fit"):
        odeddim.Trajectory.load("t.h5")
    (here / "t.h5").write_bytes(whole[:3000])
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        odeddim.Trajectory.load("t.h5")
    with pytest.raises(InputError, match="does not exist"):
        odeddim.Trajectory.load("none.h5")
    jobs.encode(None, "z.h5", count=1, **SMALL)
    with pytest.raises(InputError, match="holds no trajectories"):
        odeddim.Trajectory.load("z.h5")
    with pytest.raises(InputError, match=r"z\.h5"):
        odeddim.trajectory(x_T, model="exact-mixture", steps=3, keep="z.h5")
    assert len(odeddim.open("z.h5")) == 1


def test_encode_and_decode_keep_the_points_of_their_runs(here: Path) -> None:
    jobs.encode(None, "plain.h5", count=5, **SMALL)
    jobs.encode(None, "z.h5", count=5, trajectory="t.h5", **SMALL)
    with odeddim.open("plain.h5") as plain, odeddim.open("z.h5") as latents:
        assert latents[:] == plain[:]
        state = plain[:]
    images = odeddim.open_images()[:5]
    path = odeddim.Trajectory.load("t.h5")
    assert torch.equal(path.xbar[0], images)
    assert torch.equal(path.xbar[-1], state.xbar)
    again = odeddim.trajectory(images, "ab2", direction="encode", model="exact-samples", steps=4)
    assert torch.equal(path.xbar, again.xbar)
    assert torch.equal(path.eps, again.eps)
    for noise in ({}, {"solver": "ddpm", "seed": 1}):
        name = f"{len(noise)}"
        jobs.decode("z.h5", f"plain{name}.h5", **noise)
        keep = jobs.Recording(Path(f"d{name}.h5"), None if noise else [0.5, 157.407])
        jobs.decode("z.h5", f"out{name}.h5", trajectory=keep, machine=jobs.Machine("cpu", batch_size=2), **noise)
        with h5py.File(f"plain{name}.h5") as file, h5py.File(f"out{name}.h5") as other:
            assert np.array_equal(file["images"][:], other["images"][:])
        down = odeddim.Trajectory.load(f"d{name}.h5")
        assert torch.equal(down.xbar[0], state.xbar)
        if noise:
            assert np.array_equal(down.xbar[-1].numpy(), h5py.File(f"out{name}.h5")["images"][:])
        else:
            assert down.sigmas.tolist() == [state.sigma, 0.5]


def test_a_recording_joins_a_finished_run_and_grows_with_it(here: Path) -> None:
    jobs.encode(None, "z.h5", count=3, **SMALL)
    before = (here / "z.h5").read_bytes()
    jobs.encode(None, "z.h5", count=3, trajectory="t.h5", **SMALL)
    assert (here / "z.h5").read_bytes() == before
    jobs.encode(None, "z.h5", count=5, trajectory="t.h5", **SMALL)
    assert odeddim.Trajectory.load("t.h5").count == 5
    jobs.encode(None, "new.h5", count=5, trajectory="new-t.h5", **SMALL)
    assert same("t.h5", odeddim.Trajectory.load("new-t.h5"))


@pytest.mark.usefixtures("here")
def test_each_batch_is_computed_once() -> None:
    field = odeddim.load("exact-samples").conditioned()
    machine = jobs.Machine("cpu", batch_size=2, network_batch=2)
    jobs.encode(None, "z.h5", count=8, trajectory="t.h5", **{**SMALL, "model": field, "machine": machine})
    assert field.nfe == 4 * (4 + 1)  # batches · (steps + the last node)


def test_a_stopped_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the two files, and with another batch size afterwards."""
    small = {**SMALL, "machine": jobs.Machine("cpu", batch_size=2)}
    jobs.encode(None, "new.h5", count=6, trajectory="new-t.h5", **SMALL)
    wanted, commit, left = odeddim.Trajectory.load("new-t.h5"), Run.commit, [4]

    def stopping(run: Run, *arguments: Any, **more: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        commit(run, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "commit", stopping)
        with pytest.raises(KeyboardInterrupt):
            jobs.encode(None, "z.h5", count=6, trajectory="t.h5", **small)
    assert odeddim.Trajectory.load("t.h5").count == 4
    assert len(odeddim.open("z.h5")) == 2
    jobs.encode(None, "z.h5", count=6, trajectory="t.h5", **{**SMALL, "machine": jobs.Machine("cpu", batch_size=3)})
    assert same("t.h5", wanted)
    with odeddim.open("z.h5") as latents, odeddim.open("new.h5") as new:
        assert latents[:] == new[:]


@pytest.mark.slow
def test_a_kill_at_any_moment(here: Path) -> None:
    """Of both files none is ever half: the same call makes them what an undisturbed one makes."""
    small = {**SMALL, "machine": jobs.Machine("cpu", batch_size=2)}
    jobs.encode(None, "new.h5", count=5, trajectory="new-t.h5", **SMALL)
    wanted = odeddim.Trajectory.load("new-t.h5")
    for step in range(1, 150, 3):
        killed = killed_at(step, lambda: jobs.encode(None, "z.h5", count=5, trajectory="t.h5", **small))
        if (here / "t.h5").exists():
            there = odeddim.Trajectory.load("t.h5")
            assert torch.equal(there.of(range(there.count)).xbar, wanted.of(range(there.count)).xbar)
        jobs.encode(None, "z.h5", count=5, trajectory="t.h5", **SMALL)
        assert same("t.h5", wanted)
        with odeddim.open("z.h5") as latents, odeddim.open("new.h5") as new:
            assert latents[:] == new[:]
        assert not (here / "t.h5.parts").exists()
        for name in ("t.h5", "z.h5"):
            (here / name).unlink()
        if not killed:
            return
    raise AssertionError("the run was killed each time")


def test_what_a_job_cannot_record_is_said_before_it_begins(here: Path) -> None:
    def refused(words: str, **how: Any) -> None:
        with pytest.raises(InputError, match=words):
            jobs.encode(None, "z.h5", count=2, **{**SMALL, "trajectory": "t.h5", **how})
        assert list(here.iterdir()) == []

    refused("steps of their own", tol=1e-2, steps=None)
    refused("odeddim verify", certify=True)
    refused("steps of its own", solver="tsit5-per-image", steps=None)
    refused("at=...", solver="dopri5", steps=None)
    refused("not between", trajectory=jobs.Recording(Path("t.h5"), [500.0]))
    refused("z.h5", trajectory="z.h5")
    refused("t.txt", trajectory="t.txt")


def test_the_command_line(run: Command, here: Path) -> None:
    how = ("--model", "exact-samples", "--solver", "ab2", "--steps", 4, "--device", "cpu")
    code, out, err = run("encode", "-n", 3, "-o", "z.h5", *how, "--trajectory", "t.h5", "--trajectory-at", "0.1,1,10")
    assert code == 0, err
    assert "3 points of each in t.h5" in out
    code, out, err = run("decode", "z.h5", "-o", "out", "--trajectory", "d.h5")
    assert code == 0, err
    assert "5 points of each in d.h5" in out
    facts = json.loads(run("inspect", "t.h5", "--json")[1])
    assert facts["kind"] == "a trajectory file"
    assert (facts["trajectories"], facts["levels"], facts["made by"]) == (3, [0.1, 1.0, 10.0], "encode")
    code, out, err = run("trajectory", "t.h5", "-o", "strip.png", "--images", "0,2")
    assert code == 0, err
    assert "2 trajectories of t.h5 in strip.png" in out
    assert (
        run("trajectory", "d.h5", "-o", "film.gif", "--trajectory-at", "200,1,0.3", "--fps", 5)[0] == 2
    )  # above the top
    assert run("trajectory", "d.h5", "-o", "film.gif", "--trajectory-at", "100,1,0.3", "--fps", 5)[0] == 0
    for words, *arguments in (
        ("give it with --trajectory-at", "trajectory", "t.h5", "-o", "a.png", "--trajectory-at", 2),
        ("has 3 images", "trajectory", "t.h5", "-o", "a.png", "--images", "0,9"),
        ("holds no trajectories", "trajectory", "z.h5", "-o", "a.png"),
        ("a.bmp", "trajectory", "t.h5", "-o", "a.bmp"),
        ("give --trajectory FILE", "encode", "-o", "y.h5", "--trajectory-at", "1"),
        ("nodes of its own", "encode", "-o", "y.h5", *how[:2], "--solver", "dopri5", "--trajectory", "y-t.h5"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert words in err, err
    (here / "mine.png").write_text("a picture")
    assert run("trajectory", "t.h5", "-o", "mine.png")[0] == 2
    assert (here / "mine.png").read_text() == "a picture"
    assert run("trajectory", "t.h5", "-o", "mine.png", "--overwrite")[0] == 0
    assert run("trajectory", "t.h5", "-o", "mine.png")[0] == 0  # its own


def test_a_strip_and_a_film_show_the_points(here: Path, x_T: torch.Tensor) -> None:
    path = odeddim.trajectory(x_T, "ab2", model="exact-mixture", steps=6)
    path.save_strip("strip.png", images=[1, 4], at=[10.0, 1.0, 0.0], scale=1)
    sheet = torch.from_numpy(np.asarray(PIL.Image.open("strip.png")).copy())
    shown = [tile for point in (10.0, 1.0, 0.0) for i in (1, 4) for tile in (path.at(point).x[i], path.at(point).x0[i])]
    windows = sheet.unfold(0, 4, 1).unfold(1, 4, 1)
    for image in shown:
        pixels = image[0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        assert bool((windows == pixels).all(-1).all(-1).any())
    path.save_animation("film.gif", images=[0, 1], scale=1)
    with PIL.Image.open("film.gif") as film:
        assert (film.n_frames, film.size) == (7, (8, 8))
        first = torch.from_numpy(np.asarray(film.convert("L")).copy())
    pixels = path[0].x[0, 0].clamp(-1, 1).add(1).mul(127.5).round()
    assert torch.allclose(first[:4, :4].float(), pixels, atol=2)
    path.save_strip("strip.png", images=[1, 4], at=[10.0, 1.0, 0.0], scale=1)  # its own file
    with pytest.raises(InputError, match="is there already"):
        path.save_strip("strip.png", images=[1, 2], at=[10.0, 1.0, 0.0], scale=1)
    path.save_strip("strip.png", images=[0], overwrite=True)
    with pytest.raises(InputError, match=r"strip\.jpg"):
        path.save_strip("strip.jpg")


@pytest.mark.usefixtures("here")
def test_what_cannot_be_drawn_is_said(here: Path, x_T: torch.Tensor) -> None:
    path = odeddim.trajectory(x_T, model="exact-mixture", steps=3)
    flat = odeddim.trajectory(x_T.flatten(1), model="exact-mixture", steps=3)
    for scale in (0, 1.5):
        with pytest.raises(InputError, match="give a whole number, 1 or more"):
            path.save_strip("s.png", scale=scale)  # type: ignore[arg-type]
    for save, name in (("save_strip", "s.png"), ("save_animation", "s.gif")):
        with pytest.raises(InputError, match="names no noise level"):
            getattr(path, save)(name, at=[])
        with pytest.raises(InputError, match="are no images"):
            getattr(flat, save)(name)
    assert not [*here.glob("s.*")]


@pytest.mark.parametrize("name", ["z.h5", "../Z/z.h5"])
def test_latents_and_trajectories_cannot_share_a_file(here: Path, name: str) -> None:
    name = name.replace("Z", here.name)
    with pytest.raises(InputError, match="another file of this run: give the trajectories a name of their own"):
        jobs.encode(None, "z.h5", count=2, trajectory=name, **SMALL)
    assert not [*here.glob("z.h5*")]


def test_a_latent_model_draws_its_data_through_its_autoencoder(here: Path) -> None:
    model = odeddim.load("exact-mixture")
    path = odeddim.trajectory(odeddim.noise(1, (4, 4, 4)), "ab2", model=model, steps=2)
    with pytest.raises(InputError, match="1 or 3 channels"):
        path.save_strip("strip.png")

    class Channels:
        image_shape = (1, 4, 4)

        def decode(self, data: torch.Tensor) -> torch.Tensor:
            return data[:, :1]

    latent = odeddim.load("exact-mixture").conditioned()
    latent.codec = Channels()  # type: ignore[assignment]
    path.save_strip("strip.png", model=latent)
