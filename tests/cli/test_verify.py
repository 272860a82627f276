"""`odeddim verify`, `encode --certify` and `--tol` as a user types them; what could not be reached is listed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support import tiles

from odeddim import defaults, solvers
from odeddim.checks.certificate import BADNESS, CERTIFICATE, LADDER, worst
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.storage.images import open_images

Run = Callable[..., tuple[int, str, str]]
FAST = ("--model", "exact-mixture", "--batch-size", 2)


def succeed(run: Run, *arguments: object) -> str:
    code, out, err = run(*arguments)
    assert (code, err) == (0, ""), (arguments, err)
    return out


def refused(run: Run, *arguments: object) -> str:
    code, _, err = run(*arguments)
    assert code == 2, (arguments, err)
    return err


def rows(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """All columns of a latent file."""
    with LatentFile(Path(path)) as file:
        return dict(file.rows(0, len(file)))


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Bit for bit, also in what they have."""
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def figures(run: Run, path: str, *more: object) -> list[dict[str, Any]]:
    told = json.loads(succeed(run, "verify", path, "--json", *more))
    assert told["file"] == path
    latents: list[dict[str, Any]] = told["latents"]
    return latents


def photos(folder: Path, count: int = 5, seed: int = 0) -> Path:
    """Small pictures, of files whose names look like rich's markup."""
    folder.mkdir()
    chance = np.random.default_rng(seed)
    for i in range(count):
        levels = np.clip(chance.choice([51, 204], (4, 6)) + chance.normal(0, 19, (4, 6)), 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{i} [red]one[bold].png")
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> Callable[[], None]:
    """Ctrl-C in place of a later `LatentRun.write`; returns what ends that."""
    write, done = LatentRun.write, []

    def stop(self: LatentRun, *given: Any, **more: Any) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(write(self, *given, **more))

    monkeypatch.setattr(LatentRun, "write", stop)
    return lambda: monkeypatch.setattr(LatentRun, "write", write)


# Certificates.

SOLVERS = {
    "belm": ("--steps", 8),
    "ab3": ("--steps", 8, "--end", "sigma_min"),
    "euler": ("--steps", 9, "--grid", "linear", "--dtype", "float64"),
    "heun": ("--steps", 3),
    "exact-euler": ("--steps", 6),
    "tsit5-per-image": ("--rtol", 1e-2, "--set", "batch=2"),
    "dopri5": ("--rtol", 1e-2, "--atol", 1e-2),
    "scipy-rk45": ("--rtol", 1e-2, "--atol", 1e-2),
    "tol": ("--solver", "ab3", "--tol", 3e-3),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_verify_computes_what_certify_stores(run: Run, here: Path, solver: str) -> None:
    """Bit for bit, certificates and all else; a second look computes nothing."""
    photos(here / "photos")
    more = SOLVERS[solver] if solver == "tol" else ("--solver", solver, *SOLVERS[solver])
    encode = ("encode", "photos", *FAST, *more)
    for output in (("with.h5", "--certify"), ("without.h5",)):
        code, _, err = run(*encode, "-o", *output)
        assert code == 0
        assert err == "" or "did not converge" in err
    before = rows("without.h5")
    assert not any(name.startswith("certificate/") for name in before if solver != "tol")
    shown = figures(run, "with.h5")
    assert figures(run, "without.h5", "--batch-size", *((2,) if solver == "dopri5" else (3,))) == [*shown]
    after = rows("without.h5")
    assert same(after, rows("with.h5"))
    assert {name for name in after if name.startswith("certificate/")} == {
        f"certificate/{name}" for name in CERTIFICATE
    }
    for name in set(before) - {"crc32", *(f"certificate/{key}" for key in CERTIFICATE)}:
        assert before[name].tobytes() == after[name].tobytes(), name
    with LatentFile(here / "with.h5") as one, LatentFile(here / "without.h5") as other:
        assert one.provenance == other.provenance
        assert "certified" not in one.provenance.details  # the certificates say that they are there
    content = (here / "without.h5").read_bytes()
    assert figures(run, "without.h5") == shown
    assert (here / "without.h5").read_bytes() == content
    assert sorted(item.name for item in here.iterdir()) == ["photos", "with.h5", "without.h5"]
    assert all(row["latent_error"] > 0 for row in shown)


def test_certificates_of_the_built_in_model(run: Run) -> None:
    """Its images are the package's own: nothing has to be named."""
    succeed(run, "encode", "-n", 2, "--steps", 4, "-o", "a.h5")
    succeed(run, "encode", "-n", 2, "--steps", 4, "-o", "b.h5", "--certify")
    out = succeed(run, "verify", "a.h5")
    assert "a.h5: 2 latents, the worst by latent_error first" in out
    assert same(rows("a.h5"), rows("b.h5"))
    assert rows("a.h5")["certificate/round_trip"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("by", CERTIFICATE)
def test_lists_are_whole_and_sorted(run: Run, here: Path, by: str) -> None:
    """JSON and CSV have every latent and every digit, the worst first; the table has as many as asked for."""
    photos(here / "photos")
    succeed(run, "encode", "photos", *FAST, "--solver", "ab3", "--steps", 8, "-o", "z.h5", "--certify")
    with LatentFile(here / "z.h5") as file:
        stored, names = file.figures(), file.names[:]
    order = worst(stored, by).tolist()
    badness = BADNESS[by](stored[by])[order]
    assert bool((badness.diff() <= 0).all())
    told = figures(run, "z.h5", "--by", by)
    assert [row["index"] for row in told] == order
    lines = list(csv.DictReader(io.StringIO(succeed(run, "verify", "z.h5", "--csv", "--by", by))))
    for row, line in zip(told, lines, strict=True):
        assert list(row) == list(line) == ["index", "name", *CERTIFICATE]
        assert row["name"] == line["name"] == names[row["index"]]
        for key in CERTIFICATE:
            assert row[key] == float(line[key]) == float(stored[key][row["index"]])
    table = succeed(run, "verify", "z.h5", "--by", by, "--worst", 2)
    found = [line.split() for line in table.splitlines() if "one[bold].png" in line]
    assert [int(line[0]) for line in found] == order[:2]
    for line in found:
        assert line[1:3] == [line[0], "[red]one[bold].png"]  # as it is, brackets too
        assert line[3:] == [f"{float(stored[key][int(line[0])]):.3g}" for key in CERTIFICATE]
    assert f"the worst by {by} first" in " ".join(table.split())
    median = next(line.split() for line in table.splitlines() if "median" in line)
    assert median[1:] == [f"{float(stored[key].median()):.3g}" for key in CERTIFICATE]
    last = next(line.split() for line in table.splitlines() if line.split()[:1] == ["worst"])
    assert last[1:] == [f"{float(stored[key][worst(stored, key)[0]]):.3g}" for key in CERTIFICATE]


def test_what_is_not_known_is_null_and_first(run: Run, here: Path) -> None:
    """A figure that no latent has, as one pixel has no variance: JSON has no NaN, the table no traceback."""
    (here / "photos [x").mkdir()
    for i in range(5):
        Image.new("L", (1, 1), 50 * i).save(here / "photos [x" / f"{i}.png")
    succeed(run, "encode", "photos [x", *FAST, "--steps", 2, "-o", "[z.h5", "--certify")
    out = succeed(run, "verify", "[z.h5", "--json")
    assert "NaN" not in out
    assert [row["variance"] for row in json.loads(out)["latents"]] == [None] * 5
    table = succeed(run, "verify", "[z.h5", "--by", "variance")
    assert "[z.h5: 5 latents" in table
    assert next(line.split() for line in table.splitlines() if "median" in line)[6] == "-"


def test_names_that_are_markup(run: Run, here: Path) -> None:
    (here / "a[").mkdir()
    Image.new("L", (4, 4), 99).save(here / "a[" / "b].png")
    succeed(run, "encode", ".", *FAST, "--steps", 4, "-o", "z.h5", "--certify")
    assert "a[/b].png" in succeed(run, "verify", "z.h5")


def test_the_worst_is_the_one_that_is_wrong(run: Run, here: Path) -> None:
    """A latent with noise on it, written by the file's own means: neither figure overlooks it."""
    succeed(run, "encode", "-n", 8, *FAST, "--solver", "rk4", "--steps", 40, "--end", "sigma_min", "-o", "good.h5")
    with LatentFile(here / "good.h5") as file:
        state = file.read(0, 8)
        spoilt = state.xbar.clone()
        noise = torch.randn(spoilt[5].shape, generator=torch.Generator().manual_seed(0))
        spoilt[5] += 0.02 * noise * math.sqrt(1 + state.sigma**2)
        with LatentRun(here / "bad.h5", file.names, file.provenance, file.nodes) as made:
            made.write(0, 8, replace(state, xbar=spoilt))
    for by in ("latent_error", "round_trip"):
        told = figures(run, "bad.h5", "--by", by)
        assert told[0]["index"] == 5
        assert told[0][by] > 5 * told[1][by]
        good = figures(run, "good.h5", "--by", by)
        assert good[0][by] < told[0][by] / 5


def test_the_sheet(run: Run, here: Path) -> None:
    """The image, decoded again, ten times the difference: of the worst, in their order."""
    photos(here / "photos")
    encode = ("encode", "photos", *FAST, "--solver", "ab2", "--steps", 6, "-o", "z.h5")
    succeed(run, *encode)
    bare = ("--scale", 1, "--no-labels")
    code, out, err = run("verify", "z.h5", "--by", "round_trip", "--worst", 3, "--sheet", "worst.png", *bare)
    assert (code, err) == (0, "3 images in worst.png\n")
    with LatentFile(here / "z.h5") as file:
        order = worst(file.figures(), "round_trip").tolist()[:3]
    sheet = tiles("worst.png", 6, 4, 1, panes=3)
    assert len(sheet) == 3
    succeed(run, "decode", "z.h5", "-o", "x.h5")
    with h5py.File("x.h5") as again, LatentFile(here / "z.h5") as file:
        for row, i in enumerate(order):
            cells = [tile.astype(np.float32) for tile in sheet[row]]
            original = np.asarray(Image.open(here / "photos" / file.names[i]), np.float32)
            decoded = (again["images"][i, 0] + 1) * 127.5
            assert np.array_equal(cells[0], original)
            assert np.abs(cells[1] - decoded.clip(0, 255)).max() <= 0.51
            assert np.abs(cells[2] - ((decoded - original) * 10 + 127.5).clip(0, 255)).max() <= 0.52
            assert np.abs(decoded - original).max() > 0.5  # there is something to be seen
    code, out, err = run("verify", "z.h5", "--sheet", "all.png", *bare)
    assert len(tiles("all.png", 6, 4, 2, panes=3)) == 3  # of five, two in a row
    (here / "photos").rename(here / "moved")
    code, out, err = run("verify", "z.h5", "--sheet", "some.png", "--worst", 2, *bare)
    assert code == 0
    assert "warning: the sheet has no originals: the images of z.h5 are no longer at photos" in err
    assert len(tiles("some.png", 6, 4, 2)) == 1
    one = str(next((here / "moved").iterdir()))
    assert "jpg: a sheet is a PNG" in refused(run, "verify", "z.h5", "--sheet", "worst.jpg")
    assert "is being read" in refused(run, "verify", "z.h5", one, "--sheet", one)


def test_verifying_goes_on_where_it_was_stopped(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was until it is whole: the file can be read, decoded, and is the same to the byte."""
    photos(here / "photos", 7)
    encode = ("encode", "photos", *FAST, "--steps", 6)
    succeed(run, *encode, "-o", "z.h5")
    succeed(run, *encode, "-o", "whole.h5", "--certify")
    before = (here / "z.h5").read_bytes()
    go_on = stop_after(monkeypatch, 2)
    code, out, err = run("verify", "z.h5", "--batch-size", 2)
    assert code == 130
    assert "the same command goes on" in err
    assert (here / "z.h5").read_bytes() == before
    assert len(list((here / "z.h5.parts").glob("*-*.h5"))) == 2
    succeed(run, "decode", "z.h5", "-o", "x.h5")
    go_on()
    written: list[tuple[int, int]] = []
    write = LatentRun.write

    def note(self: LatentRun, start: int, stop: int, *given: Any) -> None:
        written.append((start, stop))
        write(self, start, stop, *given)

    monkeypatch.setattr(LatentRun, "write", note)
    succeed(run, "verify", "z.h5", "--batch-size", 3)
    assert min(written)[0] == 4  # what was done is not done again
    assert same(rows("z.h5"), rows("whole.h5"))
    assert not (here / "z.h5.parts").exists()


def test_what_cannot_be_verified(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(here / "photos")
    encode = ("encode", "photos", *FAST, "--steps", 4)
    succeed(run, *encode, "-o", "z.h5")
    before = (here / "z.h5").read_bytes()
    assert "did you mean round_trip" in refused(run, "verify", "z.h5", "--by", "roundtrip")
    assert "give --json or --csv, not both" in refused(run, "verify", "z.h5", "--json", "--csv")
    photos(here / "others", 4)
    assert "others does not hold the images of z.h5, from number 0 on" in refused(run, "verify", "z.h5", "others")
    (here / "photos").rename(here / "elsewhere")
    assert "are no longer at photos: give images" in refused(run, "verify", "z.h5")
    (here / "elsewhere" / "2 [red]one[bold].png").rename(here / "one.png")
    assert "does not hold the images of z.h5" in refused(run, "verify", "z.h5", "elsewhere")
    (here / "one.png").rename(here / "elsewhere" / "2 [red]one[bold].png")
    succeed(run, "interpolate", "z.h5", "--pair", 0, 1, "-o", "line.h5")
    for images in ((), ("elsewhere",)):
        assert "made by 'interpolate' and not from images" in refused(run, "verify", "line.h5", *images)
    assert "not of 'exact-gaussian'" in refused(run, "verify", "z.h5", "elsewhere", "--model", "exact-gaussian")
    assert (here / "z.h5").read_bytes() == before
    succeed(run, "verify", "z.h5", "elsewhere")
    go_on = stop_after(monkeypatch, 1)
    assert run("encode", "elsewhere", *FAST, "--steps", 4, "-o", "some.h5")[0] == 130
    go_on()
    assert "some.h5 is unfinished, with 2 of 5 latents" in refused(run, "verify", "some.h5")
    assert sorted(item.name for item in here.iterdir() if item.suffix == ".parts") == ["some.h5.parts"]


def test_images_that_are_only_numbered(run: Run, here: Path) -> None:
    """An array's images have no names: another array is known by its fingerprint."""
    chance = np.random.default_rng(0)
    for name in ("x", "y"):
        np.save(here / f"{name}.npy", chance.integers(0, 256, (4, 5, 5), dtype=np.uint8))
    succeed(run, "encode", "x.npy", *FAST, "--steps", 4, "-o", "z.h5")
    assert "not hold the images of z.h5, which was made of other ones" in refused(run, "verify", "z.h5", "y.npy")
    (here / "x.npy").rename(here / "moved.npy")
    succeed(run, "verify", "z.h5", "moved.npy")
    succeed(run, "encode", "-n", 3, *FAST, "--steps", 4, "-o", "sample.h5")
    succeed(run, "verify", "sample.h5")


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("column", ["xbar", "aux/1", "names"])
def test_a_damaged_row_is_named(run: Run, here: Path, column: str, certified: bool) -> None:
    photos(here / "photos")
    succeed(run, "encode", "photos", *FAST, "--steps", 4, "-o", "z.h5", *(("--certify",) if certified else ()))
    with h5py.File("z.h5", "r+") as file:  # through HDF5, whose own checksums then fit
        row = np.array(file[column][3:4])
        raw = bytearray(row.tobytes())
        raw[0] ^= 1
        file[column][3:4] = np.frombuffer(bytes(raw), row.dtype).reshape(row.shape)
    err = refused(run, "verify", "z.h5")
    # A name that is not the image's any more is seen first where the images are looked up.
    assert "z.h5: row 3 was changed" in err or (column == "names" and "does not hold the images of z.h5" in err)
    with h5py.File("z.h5") as file:
        assert ("certificate" in file) == certified


# A tolerance in place of steps.

TOL = ("--model", "exact-mixture", "--solver", "ab3")


def steps_of(path: str) -> list[int]:
    with LatentFile(Path(path)) as file:
        found: list[int] = file.figures("report")["steps"].tolist()
    return found


def test_encoding_to_a_tolerance(run: Run, here: Path) -> None:
    """Steps of each image, the tally, and images that decode to within the tolerance."""
    photos(here / "photos", 8)
    out = succeed(run, "encode", "photos", *TOL, "--tol", 3e-3, "-o", "z.h5")
    with LatentFile(here / "z.h5") as file:
        made, trip = file.provenance, file.figures()["round_trip"]
    taken = steps_of("z.h5")
    assert set(taken) <= set(LADDER)
    assert len(set(taken)) > 1
    assert bool((trip <= 3e-3).all())
    assert made.end == "sigma_min"
    assert (made.details["tol"], made.details["ladder"]) == (3e-3, list(LADDER))
    tally = ", ".join(f"{steps} steps for {taken.count(steps)}" for steps in sorted(set(taken)))
    assert f"ab3, {solvers.get('ab3').grid} grid, {tally}, " in out
    spent = rows("z.h5")["report/evaluations"]
    assert re.search(r"([\d.]+) evaluations per image \((\d+) to (\d+)\)", out).groups() == (  # type: ignore[union-attr]
        f"{spent.mean():.4g}",
        str(spent.min()),
        str(spent.max()),
    )
    out = succeed(run, "decode", "z.h5", "-o", "x.h5")
    assert "ab3, steps as encoded" in out
    with h5py.File("x.h5") as file, LatentFile(here / "z.h5") as latents:
        for i in range(8):
            original = np.asarray(Image.open(here / "photos" / latents.names[i]), np.float64) / 127.5 - 1
            apart = math.sqrt(np.square(file["images"][i, 0] - original).mean())
            assert apart <= 3e-3 * (1 + 1e-6)
            assert apart == pytest.approx(float(trip[i]), rel=1e-3)
    succeed(run, "encode", "photos", *TOL, "--tol", 1, "--end", "zero", "-o", "zero.h5")
    with LatentFile(here / "zero.h5") as file:
        assert (file.provenance.end, float(file.nodes[0])) == ("zero", 0.0)
    out = succeed(run, "interpolate", "z.h5", "--pair", 0, 1, "--count", 3, "-o", "line.h5", "--sheet", "line.png")
    assert Image.open("line.png").width >= 6


def test_what_misses_its_tolerance_is_named_the_worst_first(run: Run, here: Path) -> None:
    """Euler does not get there; eight are named, the others counted."""
    names = [f"{i:06d}" for i in range(10)]
    arguments = ("-n", 10, "--model", "exact-mixture", "--solver", "euler", "--tol", 1e-6)
    np.save(here / "x.npy", open_images()[0:10].numpy()[:, :, 9:13, 9:13])
    code, out, err = run("encode", "x.npy", *arguments, "-o", "z.h5")
    assert code == 0
    trip = rows("z.h5")["certificate/round_trip"]
    order = sorted(range(10), key=lambda i: -trip[i])
    named = ", ".join(f"'{names[i]}' ({trip[i]:.1e})" for i in order[:8])
    most = LADDER[-1]
    assert f"warning: 10 of 10 images do not keep 1e-06 with {most} steps: {named} and 2 more\n" in err
    assert f"{most} steps for 10" in out
    assert steps_of("z.h5") == [most] * 10
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "--tol", 1e-6)
    assert code == 0
    assert f"10 of 10 images do not keep 1e-06 with {most} steps" in err
    assert f"euler, {most} steps for 10" in out
    told = succeed(run, "decode", "z.h5", "-o", "y.h5", "--tol", 0.5)
    assert "10 steps for" in told


def test_refusals_of_a_tolerance(run: Run, here: Path) -> None:
    (here / "own.txt").write_text("0.01 0.5 3 20 157.40728")
    encode = ("encode", "-n", 2, "--model", "exact-mixture", "-o", "z.h5", "--tol", 1e-2)
    for arguments, words in (
        (("--steps", 10), "leave out --steps"),
        (("--solver", "tsit5-per-image"), "give --rtol and --atol"),
        (("--solver", "dopri5"), "give --rtol and --atol"),
        (("--grid", "own.txt"), "name the grid"),
        (("--solver", "belm"), "comes back exactly"),
        (("--solver", "exact-heun"), "comes back exactly"),
        (("--solver", "mf-rk4", "--end", "zero"), "comes back exactly"),
        (("--solver", "ddpm"), "can only decode"),
    ):
        assert words in refused(run, *encode, *arguments), arguments
    assert run("encode", "--tol", 0, "-o", "z.h5")[0] == 2
    assert [item.name for item in here.iterdir()] == ["own.txt"]
    succeed(run, "encode", "-n", 2, *FAST, "--steps", 4, "-o", "y.h5")
    for arguments, words in (
        (("--steps", 10), "leave out --steps"),
        (("--solver", "dopri5"), "give --rtol and --atol"),
        (("--grid", "own.txt"), "name the grid"),
    ):
        assert words in refused(run, "decode", "y.h5", "-o", "x.h5", "--tol", 1e-2, *arguments), arguments
    assert (
        f"{defaults.TOLERANCE}, " in run("decode", "y.h5", "-o", "x.h5", "--tol", 0.1)[1]
    )  # belm's way back is of its nodes only


def test_a_tolerance_run_goes_on_where_it_was_stopped(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches were: who leaves early changes nothing for the others."""
    photos(here / "photos", 20)
    encode = ("encode", "photos", *TOL, "--tol", 3e-3, "--certify")
    whole = succeed(run, *encode, "-o", "whole.h5")
    go_on = stop_after(monkeypatch, 1)
    assert run(*encode, "-o", "z.h5", "--batch-size", 1)[0] == 130
    with LatentFile(here / "z.h5") as file:
        assert (len(file), file.total) == (8, 20)
        assert set(CERTIFICATE) <= set(file.figures())
    go_on()
    out = succeed(run, *encode, "-o", "z.h5")
    assert "(12 now, the rest was there already)" in out
    assert same(rows("z.h5"), rows("whole.h5"))
    assert "20 latents" in whole
    assert "other settings (tol: 0.003 then, 0.002 now)" in refused(
        run, "encode", "photos", *TOL, "--tol", 2e-3, "--certify", "-o", "z.h5"
    )


def test_a_grid_that_ends_elsewhere_does_not_decode_to_a_tolerance(run: Any, here: Path) -> None:
    """The images would be those of another noise level, without a word."""
    succeed(run, "encode", "-n", 1, "-o", "z.h5", "--model", "exact-mixture", "--solver", "ab2", "--steps", 5)
    for more in (("--tol", 1e-2), ()):
        code, _, err = run("decode", "z.h5", "-o", "x.h5", "--solver", "ab2", "--grid", "edm", *more)
        assert code == 2
        assert "but the grid ends at σ = 80" in err
    assert not list(here.glob("x.h5*"))
