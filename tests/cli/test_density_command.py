"""`odeddim density`, `encode --density` and `sample --density`: the library's numbers, whatever stops a run."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import killed_at

import odeddim
from odeddim import jobs
from odeddim.latents.latent_file import LatentFile
from odeddim.types import InputError

Run = Callable[..., tuple[int, str, str]]
FAST = ("--model", "exact-mixture", "--steps", 6, "--batch-size", 2)
SMALL: dict[str, Any] = {"model": "exact-mixture", "steps": 6, "draws": 2}


def images(count: int, side: int = 6) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    return generator.choice(np.array([51, 204], np.uint8), (count, side, side))


@pytest.fixture
def array(here: Path) -> Path:
    np.save("x.npy", images(5))
    return Path("x.npy")


def columns(path: str) -> dict[str, Any]:
    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    found.pop("provenance")
    return found


def same(a: str, b: str) -> bool:
    one, other = columns(a), columns(b)
    return [key for key in one if not np.array_equal(one[key], other.get(key))] == []


def test_the_command_is_the_job_is_the_library(run: Run, array: Path) -> None:
    code, out, err = run("density", array, "-o", "d.h5", *FAST, "--draws", 2, "--seed", 3)
    assert (code, err) == (0, "")
    assert "bits/dim in the mean" in out
    assert "a bound for images of 8 bits" in out
    made = jobs.density(array, "e.h5", seed=3, **SMALL)
    assert same("d.h5", "e.h5")
    x = odeddim.open_images("x.npy")[:]
    field = odeddim.load("exact-mixture")
    field.network_batch = 8
    found = odeddim.log_density(x, model=field, steps=6, draws=2, seed=3, batch_size=2)
    assert found.nats.equal(made.figures["nats"])
    assert found.bits_per_dim.numpy().tolist() == columns("d.h5")["bits_per_dim"].tolist()
    for name, part in found.terms.items():
        assert part.equal(made.figures[f"terms/{name}"])
    assert made.names == ("000000", "000001", "000002", "000003", "000004")


def test_json_and_csv(run: Run, array: Path) -> None:
    code, out, _ = run("density", array, "-o", "d.h5", *FAST, "--draws", 1, "--json")
    told = json.loads(out)
    assert (code, told["file"]) == (0, "d.h5")
    assert [row["index"] for row in told["images"]] == list(range(5))
    assert told["images"][0]["errors/dequantisation"] is None
    _, out, _ = run("density", array, "-o", "d.h5", *FAST, "--draws", 1, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["nats"]) for row in rows] == [row["nats"] for row in told["images"]]
    code, _, err = run("density", array, "-o", "d.h5", *FAST, "--draws", 1, "--csv", "--json")
    assert code == 2
    assert "not both" in err
    code, out, _ = run("inspect", "d.h5")
    assert "a file of log densities" in out


def test_more_images_extend_a_file(run: Run, array: Path) -> None:
    assert run("density", array, "-o", "all.h5", *FAST)[0] == 0
    assert run("density", array, "-o", "d.h5", "-n", 2, *FAST)[0] == 0
    code, out, _ = run("density", array, "-o", "d.h5", *FAST, "--batch-size", 1)
    assert code == 0
    assert "3 now" in out
    assert same("d.h5", "all.h5")
    code, _, err = run("density", array, "-o", "d.h5", *FAST, "--probes", 4)
    assert code == 2
    assert "probes" in err
    assert "--overwrite" in err


def test_killed_at_any_step_the_same_call_goes_on(array: Path) -> None:
    machine = jobs.Machine(batch_size=2)

    def make(name: str) -> None:
        jobs.density(array, name, machine=machine, **SMALL)

    make("whole.h5")
    for step in itertools.count(1, 7):
        name = f"d{step}.h5"
        killed = killed_at(step, lambda name=name: make(name))  # type: ignore[misc]
        make(name)
        assert same(name, "whole.h5"), step
        assert not Path(f"{name}.parts").exists()
        if not killed:
            break
    assert step > 10


REFUSED = {
    "end": (("--plan", "zero.json"), "end"),
    "bits": (("--bits", 3), "--bits"),
    "probes": (("--probes", 3), "power of two"),
    "words": (("--probes", "some"), "exact"),
    "draws": (("--dequantise", "none", "--draws", 2), "--draws"),
    "solver": (("--solver", "ddpm"), "only decode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_writes_nothing(run: Run, array: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    odeddim.plan("exact-mixture", "ab3", steps=6).save("zero.json")
    fast = ("--model", "exact-mixture") if case == "end" else FAST
    code, _, err = run("density", array, "-o", "d.h5", *fast, *arguments)
    assert code == 2
    assert words in err
    assert not Path("d.h5").exists()
    assert not Path("d.h5.parts").exists()


def test_encoding_measures_by_the_way(run: Run, array: Path) -> None:
    assert run("encode", array, "-o", "z.h5", *FAST, "--density")[0] == 0
    assert run("encode", array, "-o", "plain.h5", *FAST, "--end", "sigma_min")[0] == 0
    with LatentFile(Path("z.h5")) as file, LatentFile(Path("plain.h5")) as plain:
        assert file[:] == plain[:]
        report = file.figures("report")
    x = odeddim.open_images("x.npy")[:]
    found = odeddim.log_density(x, "belm", model="exact-mixture", steps=6, dequantise="none")
    torch.testing.assert_close(report["bits_per_dim"], found.bits_per_dim, rtol=0, atol=1e-6)
    torch.testing.assert_close(report["bits_per_dim_error"], found.standard_error, rtol=0, atol=1e-6)
    assert run("encode", array, "-o", "c.h5", *FAST, "--density", "--certify")[0] == 0
    with LatentFile(Path("c.h5")) as file:
        assert file.figures("report")["bits_per_dim"].equal(report["bits_per_dim"])
        assert bool(file.certificate["round_trip"].isfinite().all())
    for more, words in ((("--tol", 0.1), "--tol"), (("--steps", 6, "--end", "zero"), "--end")):
        code, _, err = run("encode", array, "-o", "no.h5", "--model", "exact-mixture", "--density", *more)
        assert (code, words in err) == (2, True), err


def test_sampling_measures_by_the_way(run: Run, here: Path) -> None:
    size = ("--size", "1,6,6", "-n", 3)
    assert run("sample", "-o", "s.h5", *FAST, *size, "--density")[0] == 0
    assert run("sample", "-o", "plain.h5", *FAST, *size, "--end", "sigma_min")[0] == 0
    made, plain = columns("s.h5"), columns("plain.h5")
    assert np.array_equal(made["images"], plain["images"])
    assert np.isfinite(made["bits_per_dim"]).all()
    assert (made["bits_per_dim_error"] > 0).all()
    with pytest.raises(InputError, match="only decode"):
        jobs.sample(1, "t.h5", model="exact-mixture", shape=(1, 4, 4), eta=0.5, density=True)
