"""A larger count extends what a finished run has made: nothing is computed twice, and the result is a new run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from support import killed_at

import odeddim
from odeddim import jobs
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.png import MARK
from odeddim.storage.resumable import Run
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
FAST = ("--model", "exact-mixture", "--solver", "bdia", "--steps", 2)
SAMPLE = ("sample", *FAST, "--size", "1,6,6")
OUTPUTS = {
    "encode": ("encode", "photos", *FAST),
    "certified": ("encode", "photos", *FAST, "--certify"),
    "sample": SAMPLE,
    "noisy": ("sample", "--model", "exact-mixture", "--solver", "ddpm", "--steps", 2, "--size", "1,6,6"),
    "bridge": ("bridge", "photos", "--model", "exact-mixture", "--to", "exact-gaussian", "--steps", 2),
}


def content(path: Path) -> dict[str, Any]:
    """Everything that an HDF5 file holds, but the path in its settings."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
            found[name] = {key: str(value) for key, value in item.attrs.items()}
            if isinstance(item, h5py.Dataset):
                found[name]["data"] = (item.dtype, item.chunks, item[()].tobytes())

        file.visititems(look)
        found["/"] = {key: str(value) for key, value in file.attrs.items()}
    return found


def pictures(folder: Path) -> dict[str, Any]:
    """The bytes of all PNGs of a folder, and its settings."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def photos(here: Path) -> Path:
    folder, noise = here / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(9):
        name = f"{i:02d}{'-with-a-long-name' * (i == 8)}.png"
        Image.fromarray(noise.integers(0, 256, (6, 6), np.uint8)).save(folder / name)
    return folder


def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The batches that runs hand out from now on."""
    seen: list[tuple[int, int]] = []
    batches = Run.batches

    def spied(self: Run, size: int) -> Any:
        for batch in batches(self, size):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(Run, "batches", spied)
    return seen


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_is_extended(run: Command, here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = OUTPUTS[name]
    assert run(*command, "-n", 9, "-o", "new.h5", "--batch-size", 4)[0] == 0
    assert run(*command, "-n", 3, "-o", "z.h5")[0] == 0
    seen = rows_computed(monkeypatch)
    code, out, err = run(*command, "-n", 9, "-o", "z.h5", "--batch-size", 4)
    assert code == 0, err
    assert "(6 now, the rest was there already)" in out
    assert seen == [(3, 4), (4, 8), (8, 9)]
    assert content(here / "z.h5") == content(here / "new.h5")
    assert not (here / "z.h5.parts").exists()
    before = (here / "z.h5").read_bytes()
    assert run(*command, "-n", 9, "-o", "z.h5")[0] == 0
    code, out, err = run(*command, "-n", 3, "-o", "z.h5")
    assert code == 2
    assert "number of images: 9 then, 3 now" in err
    assert (here / "z.h5").read_bytes() == before


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", ["sample", "bridge"])
def test_a_folder_is_extended(run: Command, here: Path, name: str) -> None:
    command = OUTPUTS[name]
    assert run(*command, "-n", 9, "-o", "new")[0] == 0
    assert run(*command, "-n", 3, "-o", "out")[0] == 0
    old = {path: path.stat().st_ino for path in (here / "out").glob("*.png")}
    code, out, err = run(*command, "-n", 9, "-o", "out")
    assert code == 0, err
    assert "(6 now, the rest was there already)" in out
    assert pictures(here / "out") == pictures(here / "new")
    assert {path: path.stat().st_ino for path in old} == old
    code, out, err = run(*command, "-n", 3, "-o", "out")
    assert code == 2
    assert "number of images: 9 then, 3 now" in err


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("output", ["images.h5", "out"])
def test_decode_follows_an_extended_file(run: Command, here: Path, output: str) -> None:
    encode = ("encode", "photos", *FAST)
    assert run(*encode, "-n", 3, "-o", "z.h5")[0] == 0
    assert run("decode", "z.h5", "-o", output)[0] == 0
    assert run(*encode, "-n", 9, "-o", "z.h5")[0] == 0
    code, out, err = run("decode", "z.h5", "-o", output)
    assert code == 0, err
    assert "(6 now, the rest was there already)" in out
    assert run("decode", "z.h5", "-o", f"new-{output}")[0] == 0
    alike = content if output.endswith(".h5") else pictures
    assert alike(here / output) == alike(here / f"new-{output}")


@pytest.mark.usefixtures("photos")
def test_certificates_are_not_lost(run: Command, here: Path) -> None:
    encode = ("encode", "photos", *FAST)
    assert run(*encode, "-n", 3, "-o", "z.h5")[0] == 0
    with LatentFile(here / "z.h5") as file:
        prints = [file.fingerprint_of(count) for count in (1, 2, 3)]
        assert prints[2] == file.fingerprint
        assert len(set(prints)) == 3
    assert run("verify", "z.h5")[0] == 0
    with LatentFile(here / "z.h5") as file:
        assert [file.fingerprint_of(count) for count in (1, 2, 3)] == prints
    before = (here / "z.h5").read_bytes()
    code, _, err = run(*encode, "-n", 9, "-o", "z.h5")
    assert code == 2
    assert "z.h5 holds certificates of its 3 latents: give --certify for those of the others too" in err
    assert (here / "z.h5").read_bytes() == before
    assert not (here / "z.h5.parts").exists()
    assert run(*encode, "-n", 9, "-o", "z.h5", "--certify")[0] == 0
    assert run(*encode, "-n", 9, "-o", "new.h5", "--certify")[0] == 0
    assert content(here / "z.h5") == content(here / "new.h5")


def test_only_the_same_run_is_extended(run: Command, here: Path, photos: Path) -> None:
    assert run("encode", "photos", *FAST, "-n", 3, "-o", "z.h5")[0] == 0
    before = (here / "z.h5").read_bytes()
    for more, words in ((["--steps", 3], "steps: 2 then, 3 now"), (["--grid", "karras"], "grid: ")):
        code, _, err = run("encode", "photos", *FAST, "-n", 9, "-o", "z.h5", *more)
        assert code == 2
        assert words in err
    shutil.copy(photos / "08-with-a-long-name.png", photos / "00.png")
    code, _, err = run("encode", "photos", *FAST, "-n", 9, "-o", "z.h5")
    assert code == 2
    assert "z.h5 is there already and was made with other settings (other images)" in err
    assert (here / "z.h5").read_bytes() == before
    assert not (here / "z.h5.parts").exists()
    assert run("encode", "photos", *FAST, "-n", 9, "-o", "z.h5", "--overwrite")[0] == 0
    with LatentFile(here / "z.h5") as file:
        assert len(file) == file.total == 9


@pytest.mark.usefixtures("photos")
def test_a_damaged_file_is_not_extended(run: Command, here: Path) -> None:
    assert run("encode", "photos", *FAST, "-n", 3, "-o", "z.h5")[0] == 0
    with h5py.File(here / "z.h5", "r+") as file:
        file["xbar"][1] += 1
    before = (here / "z.h5").read_bytes()
    code, _, err = run("encode", "photos", *FAST, "-n", 9, "-o", "z.h5")
    assert code == 2
    assert "row 1 was changed" in err
    assert "--overwrite starts anew" in err
    assert (here / "z.h5").read_bytes() == before


@pytest.mark.usefixtures("photos")
def test_the_old_file_stays_until_the_new_one_is_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
    small = {**how, "machine": jobs.Machine(batch_size=2)}
    jobs.encode("photos", "z.h5", count=3, **how)
    before = (here / "z.h5").read_bytes()
    commit, left = Run.commit, [2]

    def stopped(self: Run, *arguments: Any, **notes: Any) -> None:
        commit(self, *arguments, **notes)
        left[0] -= 1
        assert (here / "z.h5").read_bytes() == before
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            jobs.encode("photos", "z.h5", count=9, **small)
    assert (here / "z.h5").read_bytes() == before
    assert jobs.encode("photos", "z.h5", count=3, **how).done == 3  # the former call finds its file whole
    with pytest.raises(InputError, match="number of images: 9 then, 8 now"):
        jobs.encode("photos", "z.h5", count=8, **how)
    with odeddim.open("z.h5") as file:
        assert len(file) == file.total == 3
    seen = rows_computed(monkeypatch)
    jobs.encode("photos", "z.h5", count=9, **small)
    assert seen == [(6, 8), (8, 9)]  # 3, and 4 and 5, were there
    jobs.encode("photos", "new.h5", count=9, **how)
    assert content(here / "z.h5") == content(here / "new.h5")


@pytest.mark.usefixtures("photos")
def test_what_a_killed_run_has_left_is_no_hindrance(here: Path) -> None:
    """A run that was killed while it deleted the parts of its finished file."""
    how: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
    jobs.encode("photos", "z.h5", count=3, **how)
    (here / "z.h5.parts").mkdir()
    shutil.copy(here / "z.h5", here / "z.h5.parts" / "000000000-000000003.h5")
    jobs.encode("photos", "z.h5", count=9, **how)
    jobs.encode("photos", "new.h5", count=9, **how)
    assert content(here / "z.h5") == content(here / "new.h5")
    assert not (here / "z.h5.parts").exists()


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("first", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment(here: Path, first: int) -> None:
    """The file is the old one or the new one, and the same call makes it the new one."""
    how: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
    small = {**how, "machine": jobs.Machine(batch_size=2)}
    jobs.encode("photos", "new.h5", count=9, **how)
    jobs.encode("photos", "old.h5", count=3, **how)
    old, new = content(here / "old.h5"), content(here / "new.h5")
    seen = []
    for step in range(first, 99, 3):
        shutil.copy(here / "old.h5", here / "z.h5")
        killed = killed_at(step, lambda: jobs.encode("photos", "z.h5", count=9, **small))
        there = content(here / "z.h5")
        assert there in (old, new)
        seen.append((killed, there == new))
        jobs.encode("photos", "z.h5", count=9, **how)
        assert content(here / "z.h5") == new
        assert not (here / "z.h5.parts").exists()
        if not killed:
            break
    assert [each for each in dict.fromkeys(seen) if each != (True, True)] == [(True, False), (False, True)]


@pytest.mark.usefixtures("photos")
def test_a_sheet_is_not_extended(run: Command, here: Path) -> None:
    assert run(*SAMPLE, "-n", 3, "-o", "sheet.png")[0] == 0
    before = (here / "sheet.png").read_bytes()
    assert run(*SAMPLE, "-n", 9, "-o", "sheet.png")[0] == 2
    assert (here / "sheet.png").read_bytes() == before


@pytest.mark.usefixtures("photos")
def test_marks_tell_images_of_other_sets(run: Command, here: Path) -> None:
    """What marks a PNG does not depend on the number of images, but on what they are made of."""
    for seed in (0, 1):
        assert run(*SAMPLE, "-n", 2, "--seed", seed, "-o", f"of{seed}")[0] == 0
    marks = {Image.open(path).info[MARK] for folder in ("of0", "of1") for path in (here / folder).glob("*.png")}
    assert len(marks) == 4
    shutil.copy(here / "of1/sample-1-000001.png", here / "of0/sample-0-000001.png")
    code, _, err = run(*SAMPLE, "-n", 2, "--seed", 0, "-o", "of0")
    assert code == 2
    assert "sample-0-000001.png is damaged, or another file" in err
    assert json.loads((here / "of0/odeddim.json").read_text())["total"] == 2
