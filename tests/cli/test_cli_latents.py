"""`odeddim shift` and `odeddim neighbours`: what they write is what the arithmetic says, also cut or killed."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import tiles

from odeddim.cli import main
from odeddim.latents.arithmetic import Shifted, apart_by_chance, direction, distances, join, mean, rms, shift
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.types import InputError, State

Run = Callable[..., tuple[int, str, str]]
SIGMA = 157.0
SIZE = 28  # of the sample images


@pytest.fixture
def z(run: Run, here: Path) -> Path:
    """Twelve latents with the auxiliary states of a reversible run."""
    return encode(run, here / "z.h5")


def encode(run: Run, path: Path, *more: object, count: int = 12, model: str = "exact-mixture", steps: int = 3) -> Path:
    code, _, err = run("encode", "-o", path.name, "-n", count, "--model", model, "--steps", steps, *more)
    assert code == 0, err
    return path


def succeed(run: Run, *arguments: object) -> str:
    code, out, err = run(*arguments)
    assert (code, "warning" in err) == (0, False), err
    return out


def rows(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All columns of a latent file."""
    with LatentFile(path) as file:
        return dict(file.rows(0, len(file)))


def same(one: Path, other: Path) -> bool:
    a, b = rows(one), rows(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def equal(state: State, other: State) -> bool:
    """Bit for bit, with the auxiliary states."""
    pairs = zip((state.xbar, *state.aux), (other.xbar, *other.aux), strict=True)
    alike = (state.sigma, state.kept) == (other.sigma, other.kept)
    return alike and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def group(file: LatentFile, *indices: int) -> State:
    return join([file.pick(index) for index in indices])


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("float64", torch.float64)])
def test_a_shift_is_what_the_arithmetic_says(run: Run, here: Path, name: str, dtype: torch.dtype) -> None:
    z = encode(run, here / "z.h5", "--dtype", name)
    given = ("--from", "0-3,5", "--to", "11,7-9", "--of", "6,1-2", "--by=-1,0,1.5")
    out = succeed(run, "shift", "z.h5", *given, "-o", "shifted.h5")
    assert "9 latents in shifted.h5" in out
    with LatentFile(z) as file, LatentFile(here / "shifted.h5") as shifted:
        assert file.aux_count > 0
        way = direction(mean([group(file, 0, 1, 2, 3, 5)]), mean([group(file, 11, 7, 8, 9)]))
        way = way.to(dtype)
        expected = [shift(file.pick(index), way, by) for index in (6, 1, 2) for by in (-1.0, 0.0, 1.5)]
        found = shifted.read(0, 9)
        assert found.xbar.dtype == dtype
        assert equal(found, join(expected))
        assert equal(shifted.pick(1), file.pick(6))
        assert shifted.names[:4] == ["000006-1.png", "000006+0.png", "000006+1.5.png", "000001-1.png"]
        assert torch.equal(shifted.nodes, file.nodes)
        made = shifted.provenance
        assert (made.made_by, made.solver, made.nodes) == ("shift", "belm", file.provenance.nodes)
        assert made.details["of"] == {
            "path": "z.h5",
            "sha256": file.fingerprint,
            "from": "0-3,5",
            "to": "11,7-9",
            "indices": "6,1-2",
            "by": [-1.0, 0.0, 1.5],
        }
        assert f"{float(rms(way.x)):.4g} apart" in out
    code, _, err = run("decode", "shifted.h5", "-o", "out")
    assert (code, err) == (0, "")  # nothing to come back to
    assert (here / "out" / "000006+1.5.png").exists()


def test_the_groups_by_default(run: Run, z: Path, here: Path) -> None:
    """Those of --from are moved, by -1, 0, 1 and 2; along a stored direction all of them."""
    assert "16 latents" in succeed(run, "shift", "z.h5", "--from", "0-3", "--to", "4-7", "-o", "a.h5")
    succeed(run, "shift", "z.h5", "--from", "0-3", "--to", "4-7", "--of", "0-3", "--by", "-1,0,1,2", "-o", "b.h5")
    assert same(here / "a.h5", here / "b.h5")
    succeed(run, "shift", "z.h5", "--from", "0-3", "--to", "4-7", "--direction", "d.h5")
    assert "12 latents" in succeed(run, "shift", "z.h5", "--along", "d.h5", "--by", 0, "-o", "all.h5")
    with LatentFile(z) as file, LatentFile(here / "all.h5") as shifted:
        assert equal(file.read(0, 12), shifted.read(0, 12))


def test_a_stored_direction(run: Run, z: Path, here: Path) -> None:
    """Both means and their difference; along it is the same shift, bit for bit, and other latents go along too."""
    groups = ("--from", "0-4", "--to", "5,6,7-11")
    out = succeed(run, "shift", "z.h5", *groups, "--of", "2-3", "-o", "a.h5", "--direction", "d.h5")
    assert "both means and their difference in d.h5" in out
    with LatentFile(z) as file, LatentFile(here / "d.h5") as stored:
        means = mean([file.read(0, 5)]), mean([file.read(5, 12)])
        expected = [state.to(torch.float32) for state in (*means, direction(*means))]
        assert equal(stored.read(0, 3), join(expected))
        assert stored.names[:] == ["mean of --from", "mean of --to", "difference"]
        of = {"path": "z.h5", "sha256": file.fingerprint, "from": "0-4", "to": "5-11"}
        assert (stored.provenance.made_by, stored.provenance.details["of"]) == ("direction", of)
        length = float(rms(expected[2].x))
    out = succeed(run, "shift", "z.h5", "--along", "d.h5", "--of", "2-3", "-o", "b.h5")
    assert f"{length:.4g} long" in out
    assert same(here / "a.h5", here / "b.h5")
    encode(run, here / "other.h5", "--solver", "belm", count=2)
    succeed(run, "shift", "other.h5", "--along", "d.h5", "--by", 1, "-o", "c.h5")
    with LatentFile(here / "other.h5") as other, LatentFile(here / "c.h5") as shifted:
        assert equal(shifted.pick(1), shift(other.pick(1), expected[2], 1.0))
        assert shifted.provenance.details["of"]["along"]["path"] == "d.h5"


def test_what_is_expected_of_noise() -> None:
    """Means of groups of white noise are as far apart as is said, also of groups that share latents."""
    generator = torch.Generator().manual_seed(0)
    noise = State(torch.randn(12, 40_000, generator=generator, dtype=torch.float64) * math.sqrt(1 + SIGMA**2), SIGMA)
    assert torch.allclose(rms(noise.x), torch.ones(12, dtype=torch.float64), atol=0.02)
    for first, second in ((range(5), range(5, 12)), (range(9), range(6, 12)), (range(12), range(3)), ([0], [1])):
        a, b = (mean([State(noise.xbar[list(some)], SIGMA)]) for some in (first, second))
        expected, spread = apart_by_chance(len(first), len(second), len({*first} & {*second}), 40_000)
        assert abs(float(rms(direction(a, b).x)) - expected) < 4 * spread
        assert spread < 0.01


def test_the_length_of_a_direction_is_told_with_that_of_chance(run: Run, z: Path) -> None:
    out = succeed(run, "shift", "z.h5", "--from", "0-7", "--to", "6-11")
    found = re.search(r"means of 8 and 6 latents are ([\d.]+) apart, .* would be ([\d.]+) ± ([\d.]+)", out)
    assert found is not None
    with LatentFile(z) as file:
        apart = distances(mean([file.read(0, 8)]), mean([file.read(6, 12)]))
    assert float(found[1]) == pytest.approx(float(apart), rel=1e-3)
    assert float(found[2]) == pytest.approx(math.sqrt(1 / 8 + 1 / 6 - 2 * 2 / 48), rel=1e-3)
    assert float(found[3]) == pytest.approx(float(found[2]) / math.sqrt(2 * SIZE**2), rel=0.5)


def shifted_latents() -> Shifted:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(6, 3, 5, generator=generator) for _ in range(3)]

    class Source:
        def read(self, start: int, stop: int) -> State:
            return State(parts[0][start:stop], SIGMA, (parts[1][start:stop],), "bdia")

    return Shifted(Source(), [4, 0, 5], State(parts[2][:1], SIGMA, (parts[2][1:2],), "bdia"), [0.5, -2.0])


def test_shifted_latents_are_the_same_however_they_are_cut() -> None:
    shifted = shifted_latents()
    whole = shifted.read(0, 6)
    assert len(shifted) == 6
    for start in range(6):
        for stop in range(start + 1, 7):
            expected = State(whole.xbar[start:stop], SIGMA, (whole.aux[0][start:stop],), "bdia")
            assert equal(shifted.read(start, stop), expected), (start, stop)
    for start, stop in ((0, 7), (-1, 2), (2, 2)):
        with pytest.raises(InputError, match="of 6 shifted latents"):
            shifted.read(start, stop)
    for by, words in (([], "needs latents and amounts"), ([1.0, math.inf], "finite")):
        with pytest.raises(InputError, match=words):
            Shifted(shifted.latents, [0], shifted.direction, by)


def test_states_of_different_runs_do_not_join() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(InputError, match="different reversible runs"):
        join([State(one, SIGMA, (one,), "bdia"), State(one, SIGMA)])


SHIFT = ("shift", "z.h5", "--from", "0-3", "--to", "4-11", "--of", "0-5")
NEAR = ("neighbours", "z.h5", "--of", "0-5", "-k", 3)


@pytest.mark.parametrize("command", [SHIFT, NEAR], ids=["shift", "neighbours"])
def test_neither_batch_sizes_nor_a_kill_change_a_bit(
    run: Run, z: Path, here: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    for size in (1, 7):
        succeed(run, *command, "-o", f"{size}.h5", "--batch-size", size)
    write, spans = LatentRun.write, []

    def killed(self: LatentRun, start: int, stop: int, *more: Any) -> None:
        if len(spans) == 2:
            raise KeyboardInterrupt
        spans.append((start, stop))
        write(self, start, stop, *more)

    with monkeypatch.context() as patch:
        patch.setattr(LatentRun, "write", killed)
        assert run(*command, "-o", "cut.h5", "--batch-size", 7)[0] == 130
    with LatentFile(here / "cut.h5") as file:
        assert len(file) == 14
    with monkeypatch.context() as patch:
        again = []
        patch.setattr(LatentRun, "write", lambda self, *some: (again.append(some[:2]), write(self, *some)))
        succeed(run, *command, "-o", "cut.h5", "--batch-size", 5)
    assert not (here / "cut.h5.parts").exists()
    assert min(start for start, _ in again) == 14
    assert same(here / "1.h5", here / "7.h5")
    assert same(here / "1.h5", here / "cut.h5")
    before = (here / "cut.h5").read_bytes()
    more = ("--by", 3) if command is SHIFT else ("-k", 2)
    code, _, err = run(*command, *more, "-o", "cut.h5")
    assert code == 2
    assert "with other settings" in err
    assert (here / "cut.h5").read_bytes() == before
    succeed(run, *command, *more, "-o", "cut.h5", "--overwrite")
    assert (here / "cut.h5").read_bytes() != before


BARE = ("--scale", 1, "--no-labels")


def test_sheets_have_a_row_for_each_latent(run: Run, z: Path) -> None:
    """Of which a neighbour's query is the image itself; a shift is decoded by a solver that starts from x̄ alone."""
    succeed(run, "decode", "z.h5", "-o", "x.h5")
    with h5py.File("x.h5") as file:
        images = (np.clip(file["images"][:, 0], -1, 1) + 1) / 2
    succeed(
        run, "shift", "z.h5", "--from", "0-3", "--to", "4-11", "--of", "7,2", "--by", "0,1,2", "--sheet", "s.png", *BARE
    )
    succeed(run, "neighbours", "z.h5", "--of", "7,2", "-k", 4, "--sheet", "n.png", *BARE)
    assert len(tiles("s.png", SIZE, SIZE, 3)) == 2
    for row, index in zip(tiles("n.png", SIZE, SIZE, 5), (7, 2), strict=True):
        drawn, nearest = (tile / 255 for tile in row[:2])
        assert np.allclose(drawn, images[index], rtol=0, atol=0.51 / 255), index
        assert not np.allclose(nearest, drawn, rtol=0, atol=0.02)


def found_by_hand(file: LatentFile, query: int, k: int) -> list[tuple[int, float]]:
    apart = distances(file.pick(query), file.read(0, len(file)))[0].tolist()
    return sorted(((i, d) for i, d in enumerate(apart) if i != query), key=lambda pair: (pair[1], pair[0]))[:k]


def test_neighbours(run: Run, z: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each its k nearest but not itself; in the table, as JSON and in a file, queries in blocks of any size."""
    module = importlib.import_module("odeddim.jobs.neighbours")  # `odeddim.jobs.neighbours` is the function
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "CHUNK", 5)
    code, out, err = run("neighbours", "z.h5", "--of", "9,0-3", "-k", 3, "-o", "near.h5", "--json")
    assert (code, err) == (0, "20 latents in near.h5\n")
    told = json.loads(out)
    assert [row["latent"] for row in told] == [9, 0, 1, 2, 3]
    places = []
    with LatentFile(z) as file, LatentFile(here / "near.h5") as near:
        for row in told:
            expected = found_by_hand(file, row["latent"], 3)
            assert [(item["latent"], item["distance"]) for item in row["neighbours"]] == expected
            assert row["name"] == file.names[row["latent"]]
            assert [item["name"] for item in row["neighbours"]] == [file.names[i] for i, _ in expected]
            places += [(row["latent"], 0.0), *expected]
        state = near.read(0, 20)
        assert equal(state, group(file, *(i for i, _ in places)))
        assert near.names[:] == [file.names[i] for i, _ in places]
        assert list(state.report) == ["distance"]
        assert state.report["distance"].tolist() == [d for _, d in places]
        of = {"path": "z.h5", "sha256": file.fingerprint, "indices": "9,0-3", "neighbours": 3}
        assert (near.provenance.made_by, near.provenance.details["of"]) == ("neighbours", of)
    out = succeed(run, "neighbours", "z.h5", "-k", 1)  # of the first eight
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    with LatentFile(z) as file:
        for query, line in enumerate(lines):
            ((index, apart),) = found_by_hand(file, query, 1)
            assert line == [str(query), file.names[query], str(index), file.names[index], f"{apart:.4f}"]
    assert len(lines) == 8


def test_equal_latents_are_neighbours_of_each_other(run: Run, z: Path, here: Path) -> None:
    """Of five equal ones each finds the others, at 0, and never itself."""
    assert run("shift", "z.h5", "--from", "0", "--to", "1", "--of", "3,4", "--by", "0,0,0,0,0", "-o", "five.h5")[0] == 0
    told = json.loads(succeed(run, "neighbours", "five.h5", "--of", "0-9", "-k", 2, "--json"))
    for query, row in enumerate(told):
        own = range(5) if query < 5 else range(5, 10)
        assert [item["latent"] for item in row["neighbours"]] == [i for i in own if i != query][:2]
        assert [item["distance"] for item in row["neighbours"]] == [0.0, 0.0]


def test_neighbours_among_another_file(run: Run, z: Path, here: Path) -> None:
    """There a latent finds itself too; the same file under another name is not another one."""
    succeed(run, "shift", "z.h5", "--from", "0-3", "--to", "4-7", "--of", "5", "--by", "0.1,0", "-o", "q.h5")
    (here / "link.h5").symlink_to("z.h5")
    code, out, _ = run("neighbours", "q.h5", "--among", "link.h5", "-k", 2, "--json", "-o", "near.h5")
    assert code == 0
    moved, own = json.loads(out)
    assert [row["neighbours"][0]["latent"] for row in (moved, own)] == [5, 5]
    assert own["neighbours"][0]["distance"] == 0.0 < moved["neighbours"][0]["distance"] < 0.2
    with LatentFile(z) as file, LatentFile(here / "q.h5") as q, LatentFile(here / "near.h5") as near:
        second = own["neighbours"][1]["latent"]
        assert equal(near.read(3, 6), join([q.pick(1), file.pick(5), file.pick(second)]))
        assert near.provenance.details["of"]["among"] == {"path": "link.h5", "sha256": file.fingerprint}
    own = json.loads(succeed(run, "neighbours", "z.h5", "--among", "link.h5", "-k", 11, "--json"))
    assert all(row["latent"] not in [item["latent"] for item in row["neighbours"]] for row in own)


def test_latents_of_other_solvers_are_compared_but_not_mixed(run: Run, z: Path, here: Path) -> None:
    encode(run, here / "euler.h5", "--solver", "euler")
    told = json.loads(succeed(run, "neighbours", "z.h5", "--among", "euler.h5", "-k", 1, "--json"))
    assert len(told) == 8
    encode(run, here / "log.h5", "--solver", "euler", "--grid", "log")
    encode(run, here / "steps.h5", "--solver", "euler", steps=4)
    encode(run, here / "float64.h5", "--solver", "euler", "--dtype", "float64")
    for first, second, words in (
        ("z.h5", "log.h5", "different reversible runs"),
        ("euler.h5", "steps.h5", "on other nodes"),
        ("euler.h5", "float64.h5", "float64 latents"),
    ):
        code, out, err = run("neighbours", first, "--among", second, "-k", 1, "-o", "near.h5")
        assert (code, out) == (2, ""), (first, second)
        assert words in err
        assert not (here / "near.h5").exists()


GROUPS = ("--from", "0-3", "--to", "4-7")
BAD = {
    "no groups": (["shift", "z.h5", "-o", "y.h5"], "two groups, --from and --to"),
    "one group": (["shift", "z.h5", "--to", "1", "-o", "y.h5"], "two groups, --from and --to"),
    "groups and a direction": (["shift", "z.h5", *GROUPS, "--along", "d.h5"], "two groups, --from and --to"),
    "a group and a direction": (["shift", "z.h5", "--to", "1", "--along", "d.h5"], "two groups, --from and --to"),
    "a direction of a direction": (["shift", "z.h5", "--along", "d.h5", "--direction", "y.h5"], "give one of the two"),
    "one name for two": (["shift", "z.h5", *GROUPS, "-o", "y.h5", "--direction", "./y.h5"], "same file"),
    "words": (["shift", "z.h5", "--from", "0-x", "--to", "1"], "'0-x' is no index"),
    "nothing": (["shift", "z.h5", "--from", "", "--to", "1"], "'' is no index"),
    "nothing between": (["shift", "z.h5", "--from", "0", "--to", "1,,2"], "'' is no index"),
    "below 0": (["shift", "z.h5", "--from", "0", "--to=-1"], "'-1' is no index"),
    "backwards": (["shift", "z.h5", "--from", "3-0", "--to", "1"], "range 3-0 falls"),
    "twice": (["shift", "z.h5", "--from", "0-3,2", "--to", "1"], "latent 2 is given twice"),
    "beyond": (["shift", "z.h5", "--from", "0-3", "--to", "4-12"], "0 to 11: there is no latent 12"),
    "far beyond": (["shift", "z.h5", "--from", "0-3", "--to", "4-999999999999"], "there is no latent 999999999999"),
    "of beyond": (["shift", "z.h5", *GROUPS, "--of", "12"], "there is no latent 12"),
    "the same": (["shift", "z.h5", "--from", "0-2", "--to", "2,0,1", "-o", "y.h5"], "same latents"),
    "no amount": (["shift", "z.h5", *GROUPS, "--by", ",", "-o", "y.h5"], "empty list"),
    "an endless amount": (["shift", "z.h5", *GROUPS, "--by", "inf", "-o", "y.h5"], "--by"),
    "no number": (["shift", "z.h5", *GROUPS, "--by", "0,nan", "--direction", "y.h5"], "finite number"),
    "over itself": (["shift", "z.h5", *GROUPS, "-o", "z.h5"], "is being read"),
    "direction over itself": (["shift", "z.h5", *GROUPS, "--direction", "z.h5"], "is being read"),
    "over the direction": (["shift", "z.h5", "--along", "d.h5", "-o", "d.h5"], "is being read"),
    "no HDF5": (["shift", "z.h5", *GROUPS, "-o", "y.png"], "NAME.h5"),
    "direction no HDF5": (["shift", "z.h5", *GROUPS, "--direction", "y.txt"], "NAME.h5"),
    "no PNG": (["shift", "z.h5", *GROUPS, "--sheet", "y.h5"], "a sheet is a PNG"),
    "no such latents": (["shift", "nope.h5", *GROUPS, "-o", "y.h5"], "nope.h5"),
    "another's name": (["shift", "z.h5", *GROUPS, "-o", "other.h5"], "with other settings"),
    "along latents": (["shift", "z.h5", "--along", "other.h5", "-o", "y.h5"], "holds no direction"),
    "along another model": (
        ["shift", "other.h5", "--along", "d.h5", "-o", "y.h5"],
        "latents of the model 'exact-mixture'",
    ),
    "along another grid": (["shift", "steps.h5", "--along", "d.h5", "-o", "y.h5"], "on other nodes"),
    "along another run": (["shift", "ab2.h5", "--along", "d.h5"], "different reversible runs"),
    "sheet by another model": (
        [
            "shift",
            "z.h5",
            *GROUPS,
            "-o",
            "y.h5",
            "--direction",
            "x.h5",
            "--sheet",
            "y.png",
            "--model",
            "exact-gaussian",
        ],
        "give the former with --model",
    ),
    "neighbours beyond": (["neighbours", "z.h5", "--of", "3,12", "-o", "y.h5"], "there is no latent 12"),
    "neighbours of words": (["neighbours", "z.h5", "--of", "all"], "'all' is no index"),
    "too many": (["neighbours", "z.h5", "-k", "12", "-o", "y.h5"], "11 other latents"),
    "too many there": (["neighbours", "z.h5", "-k", "4", "--among", "d.h5"], "holds 3 latents"),
    "none": (["neighbours", "z.h5", "-k", "0"], "-k"),
    "among another model": (["neighbours", "z.h5", "--among", "other.h5"], "latents of the model 'exact-gaussian'"),
    "among nothing": (["neighbours", "z.h5", "--among", "nope.h5"], "nope.h5"),
    "neighbours over itself": (["neighbours", "z.h5", "-o", "z.h5"], "is being read"),
    "neighbours over others": (["neighbours", "z.h5", "--among", "d.h5", "-k", "1", "-o", "d.h5"], "being read"),
    "neighbours no PNG": (["neighbours", "z.h5", "--sheet", "y.jpg"], "a sheet is a PNG"),
    "neighbours by another model": (
        ["neighbours", "z.h5", "-o", "y.h5", "--sheet", "y.png", "--model", "exact-gaussian"],
        "give the former with --model",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents, a direction between them, and what it does not belong to."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def call(*arguments: object) -> tuple[int, str, str]:
            patch.setattr(sys, "argv", ["odeddim", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
            return int(str(stop.value.code)), "", ""

        encode(call, folder / "z.h5")
        encode(call, folder / "other.h5", count=3, model="exact-gaussian")
        encode(call, folder / "steps.h5", count=2, steps=4)
        encode(call, folder / "ab2.h5", "--solver", "ab2", "--grid", "log", count=2)
        assert call("shift", "z.h5", *GROUPS, "--direction", "d.h5")[0] == 0
    return folder


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(run: Run, here: Path, files: Path, arguments: list[str], words: str) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for name, content in before.items():
        (here / name).write_bytes(content)
    code, out, err = run(*arguments)
    assert code == 2, (out, err)
    message = err.strip().splitlines()[-1]
    assert message.startswith("Error: ")
    assert words in message
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before  # nothing half-written, nothing replaced
