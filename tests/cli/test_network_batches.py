"""Batch sizes of the built-in network, by the commands: same image, same latent, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import encoded, same

from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.storage.images import open_images

Run = Callable[..., tuple[int, str, str]]
COARSE = ("--rtol", 0.1, "--atol", 0.1)
NETWORK = {
    "belm": ("-n", 4, "--steps", 3),
    "ab3": ("-n", 4, "--steps", 3, "--network-batch", 2),
    "heun": ("-n", 4, "--steps", 2, "--network-batch", 2),
    "unipc-2": ("-n", 4, "--steps", 3, "--network-batch", 2),
    "mf-heun": ("-n", 4, "--steps", 2, "--network-batch", 2),
    "exact-euler": ("-n", 2, "--steps", 3, "--network-batch", 2, "--max-nfe", 30),
    "dpm-solver-12": ("-n", 2, *COARSE, "--set", "batch=2"),
    "scipy-rk45": ("-n", 2, *COARSE),
    "euler": ("-n", 2, "--steps", 3, "--network-batch", 2, "--certify"),
}
MORE = ("scipy-rk45", "heun", "unipc-2", "exact-euler", "dpm-solver-12", "euler")
"""Rows that an exact field tries too, or that run as one of the others does: slow on a network."""


@pytest.mark.parametrize(
    "solver", [pytest.param(name, marks=[pytest.mark.slow] if name in MORE else []) for name in NETWORK]
)
def test_batch_sizes_of_the_built_in_network(run: Run, solver: str) -> None:
    """Latents, auxiliary states, reports, certificates and checksums."""
    first, *others = (encoded(run, "--solver", solver, *NETWORK[solver], "--batch-size", size) for size in (1, 3, 64))
    for other in others:
        assert same(first, other)
    assert ("aux/0" in first) == (solver in ("belm", "mf-heun", "exact-euler"))


def test_reversible_images_come_back_whatever_the_batch(run: Run) -> None:
    """Bit for bit, also where the file was made with another --network-batch than the default: it is kept."""
    originals = open_images()[0:4].numpy()
    for more in ((), ("--network-batch", 3)):
        encoded(run, "-n", 4, "--steps", 3, *more)
        for size in (1, 2, 64):
            code, out, err = run("decode", "z.h5", "-o", "x.h5", "--batch-size", size, "--overwrite")
            assert (code, err) == (0, "")
            with h5py.File("x.h5") as file:
                assert np.array_equal(file["images"][:], originals), (more, size)


@pytest.mark.slow
def test_another_network_batch_changes_the_last_digits_only(run: Run) -> None:
    """The network rounds otherwise, and latents show it as much as any rounding: a few 1e-6 in float32."""
    for solver, dtype, bound in (("belm", "float32", 2e-5), ("ab3", "float32", 2e-5), ("ab3", "float64", 1e-12)):
        arguments = ("-n", 4, "--steps", 3, "--solver", solver, "--dtype", dtype)
        eight, three = encoded(run, *arguments), encoded(run, *arguments, "--network-batch", 3)
        assert all(
            same(three, encoded(run, *arguments, "--network-batch", 3, "--batch-size", size)) for size in (1, 64)
        )
        with LatentFile(Path("z.h5")) as file:
            apart = (three["xbar"] - eight["xbar"]).astype(np.float64) / np.sqrt(1 + file.sigma**2)
            assert file.provenance.details["network_batch"] == 3
        worst = float(np.sqrt(np.square(apart).mean(axis=(1, 2, 3))).max())
        print(f"\n{solver}, {dtype}: --network-batch 8 and 3 apart by {worst:.1e} rms in x_T at most")
        assert 0 < worst < bound
        code, out, err = run("encode", "-o", "z.h5", *arguments)
        assert code == 2
        assert "network-batch: 3 then, 8 now" in err


FIELDS = {
    "tsit5-per-image": (*COARSE, "--set", "batch=4"),
    "bosh3-per-image": (*COARSE,),
    "scipy-bdf": (*COARSE, "--end", "sigma_min"),
    "euler": ("--tol", 0.03),
    "ab3": ("--tol", 0.1, "--end", "zero", "--certify"),
    "edict": ("--steps", 5, "--dtype", "float64"),
}


@pytest.mark.parametrize("solver", FIELDS)
def test_batch_sizes_of_an_exact_field(run: Run, tmp_path: Path, solver: str) -> None:
    """Images of 3×5×7, whose numbers are no multiple of a vector register: the last ones are computed otherwise."""
    count = 2 if solver == "scipy-bdf" else 9
    side = (3, 2) if solver == "scipy-bdf" else (5, 7, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *side), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    arguments = ("x.npy", "--model", "exact-mixture", "--solver", solver, *FIELDS[solver])
    first, *others = (encoded(run, *arguments, "--batch-size", size) for size in (1, 7, 64))
    for other in others:
        assert same(first, other)
    if "--tol" in FIELDS[solver]:
        assert len(set(first["report/steps"].tolist())) > 1  # some leave the batch before others
    # Other company and another order: row 4 + i is what row 8 - i was.
    np.save(tmp_path / "x.npy", pixels[::-1][: count // 2 + 1])
    other = encoded(run, *arguments)
    for key in set(first) - {"names", "crc32"}:
        assert other[key].tobytes() == first[key][::-1][: count // 2 + 1].tobytes(), key


# What is not the same, and says so.


def test_images_with_common_steps_keep_their_batch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchdiffeq's adaptive rows choose one step for the batch, so that its size belongs to the run's settings."""
    arguments = ("-n", 5, "--model", "exact-mixture", "--solver", "dopri5", *COARSE)
    whole = encoded(run, *arguments, "--batch-size", 2)
    code, out, err = run("encode", "-o", "z.h5", *arguments, "--batch-size", 3)
    assert code == 2
    assert "batch-size: 2 then, 3 now" in err
    assert "Traceback" not in err
    done = []
    write = LatentRun.write

    def stop(self: LatentRun, *given: Any, **more: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(write(self, *given, **more))

    monkeypatch.setattr(LatentRun, "write", stop)
    assert run("encode", "-o", "y.h5", *arguments, "--batch-size", 2)[0] == 130
    monkeypatch.setattr(LatentRun, "write", write)
    code, out, err = run("encode", "-o", "y.h5", *arguments, "--batch-size", 4)
    assert code == 2
    assert "y.h5 was begun with other settings (batch-size: 2 then, 4 now)" in err
    assert run("encode", "-o", "y.h5", *arguments, "--batch-size", 2)[0] == 0
    with LatentFile(Path("y.h5")) as file:
        assert same(whole, dict(file.rows(0, 5)))
