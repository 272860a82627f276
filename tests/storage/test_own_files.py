"""No command replaces a file that it has not written itself, whatever its kind, unless --overwrite says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from odeddim.bench import tables
from odeddim.bench.tables import Column, Table

Command = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture")
ENCODE = ("encode", "-n", 2, *MIXTURE, "--solver", "ab2", "--steps", 3)
SAMPLE = ("sample", "-n", 2, *MIXTURE, "--size", "1,6,6", "--steps", 2)
BRIDGE = ("bridge", "-n", 1, *MIXTURE, "--to", "exact-mixture", "--steps", 3)
SCORE = ("score", "good", *MIXTURE, "--calibrate", "good", "--steps", 2)
BENCH = ("bench", "-n", 1, *MIXTURE)
FIND = (
    "bench", "work-precision", "--find", 0.5, "-n", 1, "--size", "1,4,4", "--solvers", "euler", *MIXTURE,
)  # fmt: skip

# What a command writes, and the command.
OUTPUTS = {
    "new.h5": (*ENCODE, "-o", "new.h5"),
    "images.h5": ("decode", "z.h5", "-o", "images.h5"),
    "images.png": ("decode", "z.h5", "-o", "images.png"),
    "images.npz": ("decode", "z.h5", "-o", "images.npz"),
    "out/000001.png": ("decode", "z.h5", "-o", "out"),
    "other/000001.webp": ("decode", "z.h5", "-o", "other", "--format", "webp"),
    "samples.h5": (*SAMPLE, "-o", "samples.h5"),
    "samples.png": (*SAMPLE, "-o", "samples.png"),
    "some/sample-0-000000.png": (*SAMPLE, "-o", "some"),
    "bridged.h5": (*BRIDGE, "-o", "bridged.h5"),
    "bridged.png": (*BRIDGE, "-o", "bridged.png"),
    "over/000000.png": (*BRIDGE, "-o", "over"),
    "t.h5": (*ENCODE, "-o", "recorded.h5", "--trajectory", "t.h5"),
    "down.h5": ("decode", "z.h5", "-o", "recorded", "--trajectory", "down.h5"),
    "strip.png": ("trajectory", "up.h5", "-o", "strip.png"),
    "film.gif": ("trajectory", "up.h5", "-o", "film.gif"),
    "path.h5": ("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "-o", "path.h5"),
    "path.png": ("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "--sheet", "path.png"),
    "path.gif": ("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "--animate", "path.gif"),
    "shifted.h5": ("shift", "z.h5", "--from", 0, "--to", 1, "-o", "shifted.h5"),
    "shifted.png": ("shift", "z.h5", "--from", 0, "--to", 1, "--sheet", "shifted.png"),
    "d.h5": ("shift", "z.h5", "--from", 0, "--to", 1, "--direction", "d.h5"),
    "near.h5": ("neighbours", "z.h5", "-k", 1, "-o", "near.h5"),
    "near.png": ("neighbours", "z.h5", "-k", 1, "--sheet", "near.png"),
    "explore.html": ("explore", "z.h5", "--corners", 0, 1, 1, 0, "--tiles", 2, "-o", "explore.html"),
    "densities.h5": ("density", "-n", 1, *MIXTURE, "--steps", 5, "--draws", 1, "-o", "densities.h5"),
    "worst.png": ("verify", "z.h5", "--sheet", "worst.png"),
    "scores.csv": (*SCORE, "-o", "scores.csv"),
    "scores.json": (*SCORE, "-o", "scores.json"),
    "scores.h5": (*SCORE, "-o", "scores.h5"),
    "reference.json": (*SCORE, "--reference", "reference.json"),
    "merged.h5": ("merge", "z.h5", "-o", "merged.h5"),
    "plan.json": ("fit", "-n", 1, "--solver", "euler", "--steps", 3, *MIXTURE, "-o", "plan.json"),
    "report.html": ("bench", "report", "tables"),
    "page.html": ("bench", "report", "tables", "-o", "page.html"),
    **{
        f"bench/reconstruction.{kind}": (*BENCH, "--solvers", "euler", "--steps", 2)
        for kind in ("h5", "json", "csv", "svg", "png")
    },
    "bench/consistency-sheet.png": (
        "bench", "consistency", "-n", 2, "--solvers", "euler", "--steps", 2, *MIXTURE, "--size", "1,8,8",
    ),
    "bench/plan.json": FIND,
}  # fmt: skip
LONG = (
    "bench/reconstruction",
    "bench/consistency",
    "bench/plan",
)  # seconds each: one of them is run every day
SHORT = "bench/reconstruction.csv"
KINDS = {
    ".png": "a picture", ".h5": "data", ".html": "<p>a page</p>", ".txt": "0 1 2\n", ".csv": "a,b\n", ".json": "{}",
    ".svg": "<svg/>", ".npz": "arrays", ".webp": "a photo", ".gif": "a film",
}  # fmt: skip


@pytest.fixture
def prepared(run: Command, here: Path) -> Path:
    """A folder with z.h5, two latents, good/, 20 images, and tables/, a folder of a bench."""
    assert run(*ENCODE, "-o", "z.h5", "--certify")[0] == 0
    assert run(*ENCODE, "-o", "y.h5", "--trajectory", "up.h5")[0] == 0
    (here / "good").mkdir()
    for i in range(20):
        Image.linear_gradient("L").rotate(7 * i).resize((4, 4)).save(here / "good" / f"{i:02d}.png")
    columns = (Column("steps", "steps"), Column("error", "error", "rms", ".2e"))
    (here / "tables").mkdir()
    Table("demo", "A title", {"model": "m"}, columns, ({"steps": 1, "error": 0.5},)).save(here / "tables")
    return here


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_of_somebody_else_stays(run: Command, prepared: Path, name: str) -> None:
    path, command = prepared / name, OUTPUTS[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text(KINDS[path.suffix])
    before = listed(prepared)
    code, _, err = run(*command)
    assert code == 2, err
    (sentence,) = (line for line in err.splitlines() if line.startswith("Error: "))
    assert name in sentence
    assert "--overwrite" in sentence
    assert path.read_text() == KINDS[path.suffix]
    assert listed(prepared) == before  # nothing else has been begun


@pytest.mark.parametrize("name", [name for name in OUTPUTS if OUTPUTS[name][0] != "bench" and "/" not in name])
def test_folders_are_made(run: Command, prepared: Path, name: str) -> None:
    """For each output of each command, and only when there is something to write."""
    command = [f"far/away/{word}" if word == name else word for word in OUTPUTS[name]]
    assert "far/away/" + name in command
    assert run(*command, "--nonsense")[0] == 2
    assert not (prepared / "far").exists()
    code, _, err = run(*command)
    assert code == 0, err
    assert (prepared / "far/away" / name).is_file()
    (prepared / "file").touch()
    code, _, err = run(*(f"file/away/{word}" if word == name else word for word in OUTPUTS[name]))
    assert code == 2
    assert "file is a file" in err


@pytest.mark.parametrize(
    "output", ["far/away/out", pytest.param("far/away/bench", marks=pytest.mark.slow), "far/away/page.html"]
)
def test_folders_of_folders_are_made(run: Command, prepared: Path, output: str) -> None:
    command = {
        "out": ("decode", "z.h5"),
        "bench": (*BENCH, "--solvers", "euler", "--steps", 2),
        "page.html": ("bench", "report", "tables"),
    }[Path(output).name]
    code, _, err = run(*command, "-o", output)
    assert code == 0, err
    assert (prepared / output).exists()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith(LONG) and name != SHORT else ()) for name in OUTPUTS],
)
def test_overwrite_replaces_it_and_the_same_command_its_own(run: Command, prepared: Path, name: str) -> None:
    path, command = prepared / name, OUTPUTS[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text(KINDS[path.suffix])
    code, _, err = run(*command, "--overwrite")
    assert code == 0, err
    own = path.read_bytes()
    assert own != KINDS[path.suffix].encode()
    if name != "merged.h5":  # several files put together are not known by what they are made of
        assert run(*command)[0] == 0
        assert path.read_bytes() == own
    path.write_text(KINDS[path.suffix])  # somebody else's again, beside what the run has left
    assert run(*command)[0] == 2
    assert path.read_text() == KINDS[path.suffix]


def test_a_sheet_of_other_settings_is_another_file(run: Command, prepared: Path) -> None:
    assert run("decode", "z.h5", "-o", "a.png")[0] == 0
    before = (prepared / "a.png").read_bytes()
    code, _, err = run("decode", "z.h5", "-o", "a.png", "--solver", "euler")
    assert code == 2
    assert "a.png is there already, and this command with these settings has not written it" in err
    assert (prepared / "a.png").read_bytes() == before
    assert run("decode", "z.h5", "-o", "a.png", "--batch-size", 1)[0] == 0  # not a setting of the result


def test_tables_of_a_bench_know_their_files(tmp_path: Path) -> None:
    """Edited ones are somebody's; those of a run that was killed while it wrote them are its own."""
    columns = (Column("steps", "steps"), Column("error", "error", "rms", ".2e"))
    one, two = (Table("demo", "t", {}, columns, ({"steps": 1, "error": error},)) for error in (0.5, 0.25))
    one.save(tmp_path, {"demo.svg": b"drawn", "plan.json": b"{}"})
    tables.check_files(tmp_path, "demo", ["plan.json"])
    with h5py.File(tmp_path / "demo.h5") as file:
        hashes = json.loads(file.attrs["files"])
    assert hashes["demo.csv"] == [hashlib.sha256((tmp_path / "demo.csv").read_bytes()).hexdigest()]
    old = {name: (tmp_path / name).read_bytes() for name in ("demo.csv", "demo.json", "demo.svg")}
    two.save(tmp_path, {"demo.svg": b"drawn anew"})
    tables.check_files(tmp_path, "demo", ["plan.json"])
    for name, content in old.items():  # killed after the table, and before what is beside it
        (tmp_path / name).write_bytes(content)
    tables.check_files(tmp_path, "demo")
    for name in ("demo.csv", "demo.json", "demo.svg", "plan.json"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept + b"\n# my own remark")
        with pytest.raises(tables.InputError, match=rf"{name} is there already.*overwrite=True"):
            tables.check_files(tmp_path, "demo", ["plan.json"])
        (tmp_path / name).write_bytes(kept)
    (tmp_path / "demo-notes.csv").write_text("mine")  # no name of the bench's
    (tmp_path / "demonstration.png").write_text("mine")
    tables.check_files(tmp_path, "demo")
    (tmp_path / "demo.h5").unlink()
    with pytest.raises(tables.InputError, match=r"demo\.csv is there already"):
        tables.check_files(tmp_path, "demo")


def test_what_a_stopped_run_finds_in_its_place(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was put there after the run had begun."""
    from odeddim.storage.outputs import Images

    write = Images.write

    def stop(images: Images, start: int, *rest: object) -> None:
        if start:
            raise KeyboardInterrupt
        write(images, start, *rest)  # type: ignore[arg-type]

    command = (*SAMPLE, "-o", "s.png", "--batch-size", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Images, "write", stop)
        assert run(*command)[0] == 130
    (here / "s.png").write_text("mine")
    code, _, err = run(*command)
    assert code == 2
    assert "s.png is there already" in err
    assert (here / "s.png").read_text() == "mine"
    (here / "s.png").unlink()
    code, out, _ = run(*command)
    assert (code, "(1 now, the rest was there already)" in out) == (0, True)
    assert sorted(path.name for path in here.iterdir()) == ["s.png"]
    assert np.frombuffer((here / "s.png").read_bytes()[:4], np.uint8).tolist() == [0x89, 80, 78, 71]


@pytest.mark.parametrize(
    "command",
    [
        ("interpolate", "z.h5", "--pair", 0, 1, "-n", 3),
        ("shift", "z.h5", "--from", 0, "--to", 1),
        ("neighbours", "z.h5", "-k", 1),
    ],
    ids=lambda command: command[0],
)
def test_a_sheet_that_is_anothers_is_found_before_latents_are_written(
    run: Command, prepared: Path, command: tuple[object, ...]
) -> None:
    """-o and --sheet together: what stands in the way of one keeps the other from being begun."""
    (prepared / "sheet.png").write_bytes(b"a picture")
    code, _, err = run(*command, "-o", "new.h5", "--sheet", "sheet.png")
    assert code == 2
    assert "sheet.png is there already" in err
    assert (prepared / "sheet.png").read_bytes() == b"a picture"
    assert not list(prepared.glob("new.h5*"))
