"""Runs that are killed, interrupted, or meet a full disk: nothing acknowledged is lost, and the same command goes on.

`pytest -s tests/system/test_crash.py -m "slow or not slow" -k kills` prints how 100 kills went; a run of all tests
does 5.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from odeddim.cli import main
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.hdf5 import _Sink, writing

FAST = ("--model", "exact-mixture", "--solver", "bdia", "--steps", "12", "--batch-size", "4")


def start(*arguments: object, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "odeddim", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def run(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """The command in this process, two seconds cheaper than one of its own: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),  # a process of its own would say each warning, and not only the first of its words
    ):
        patched.chdir(cwd)
        patched.setattr(sys, "argv", ["odeddim", *map(str, arguments)])
        patched.setattr("odeddim.runs.progress.FIRST", 600.0)  # what it says must not depend on how busy we are
        with pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    assert "Traceback" not in err.getvalue()
    return stop.value.code, out.getvalue(), err.getvalue()


def run_limited(size: int, *arguments: object, cwd: Path) -> tuple[int, str, str]:
    """The command in a process that cannot write files larger than this."""
    process = start(*arguments, "-q", cwd=cwd, preexec_fn=limited(size))
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def content(path: Path) -> dict[str, Any]:
    """Everything that a file holds: datasets and attributes, whether virtual or not."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
            found[name] = {key: str(value) for key, value in item.attrs.items()}
            if isinstance(item, h5py.Dataset):
                found[name]["data"] = item[()].tobytes()

        file.visititems(look)
    return found


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def parts(path: Path) -> int:
    return len(list(Path(f"{path}.parts").glob("*-*.h5")))


def rows(path: Path) -> int:
    """The rows in the parts of a file."""
    spans = (part.stem.split("-") for part in Path(f"{path}.parts").glob("*-*.h5"))
    return sum(int(stop) - int(start) for start, stop in spans)


def wait_for_parts(path: Path, count: int) -> Callable[[], bool]:
    return lambda: parts(path) >= count


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what uninterrupted runs make: z.h5 of 256 latents, x.h5 of their images."""
    folder = tmp_path_factory.mktemp("whole")
    assert run("encode", "-o", "z.h5", *FAST, cwd=folder)[0] == 0
    assert run("decode", "z.h5", "-o", "x.h5", "--batch-size", 4, cwd=folder)[0] == 0
    return folder


ENCODE = ("encode", "-o", "z.h5", *FAST)
ONE_BY_ONE = ("--batch-size", "1")  # the same file, a little later: there is time to stop the run
DECODE = ("decode", "z.h5", "-o", "x.h5", "--batch-size", "4")


def test_ctrl_c_and_on_again(tmp_path: Path, whole: Path) -> None:
    process = start(*ENCODE, *ONE_BY_ONE, cwd=tmp_path)
    until(wait_for_parts(tmp_path / "z.h5", 2))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; what was finished is safe" in err
    done, kept = rows(tmp_path / "z.h5"), parts(tmp_path / "z.h5")
    assert 2 <= done < 256
    with LatentFile(tmp_path / "z.h5") as file, LatentFile(whole / "z.h5") as reference:
        assert len(file) == done  # the index was brought up to date
        assert file.is_index
        assert file.total == 256
        assert np.array_equal(file.read(0, done).xbar, reference.read(0, done).xbar)
    code, out, err = run("inspect", "z.h5", cwd=tmp_path)
    assert f"{done} of 256 so far" in out
    code, out, err = run("decode", "z.h5", "-o", "some", cwd=tmp_path)
    assert (code, err) == (0, f"warning: z.h5 is unfinished: {done} of 256 latents are there\n")
    code, out, err = run("merge", "z.h5", cwd=tmp_path)
    assert code == 2
    assert f"z.h5 is unfinished, {done} of 256 rows are there" in err
    assert run("merge", "z.h5", "-o", "some.h5", cwd=tmp_path)[0] == 0
    with LatentFile(tmp_path / "some.h5") as file:
        assert (len(file), file.total, file.is_index) == (done, done, False)
    code, out, err = run("encode", "-o", "z.h5", *FAST, "--steps", "4", "--rtol", "1", cwd=tmp_path)
    assert code == 2
    code, out, err = run(*ENCODE, "--steps", "4", cwd=tmp_path)
    assert code == 2
    assert "z.h5 was begun with other settings (steps: 12 then, 4 now)" in err
    assert parts(tmp_path / "z.h5") == kept
    code, out, err = run(*ENCODE, "--batch-size", "7", cwd=tmp_path)  # not a setting of the result
    assert code == 0, err
    assert f"({256 - done} now, the rest was there already)" in out
    assert content(tmp_path / "z.h5") == content(whole / "z.h5")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["some", "some.h5", "z.h5"]
    before = (tmp_path / "z.h5").read_bytes()
    code, out, err = run(*ENCODE, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "(0 now, the rest was there already)" in out
    assert (tmp_path / "z.h5").read_bytes() == before


def test_ctrl_c_while_hdf5_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a callback from the library it would be printed and lost: it waits until the file is whole."""
    write = _Sink.write
    monkeypatch.setattr(_Sink, "write", lambda sink, data: (signal.raise_signal(signal.SIGINT), write(sink, data))[1])
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "whole.h5") as file:
        file["rows"] = np.arange(3)
    with h5py.File(tmp_path / "whole.h5") as file:
        assert list(file["rows"]) == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "stopped.h5") as file:  # noqa: PT012
        file["rows"] = np.arange(3)
        file.commit()  # where a long file is interrupted
        raise AssertionError("it went on")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tmp_path: Path, whole: Path, kills: int) -> None:
    """Encode, decode and merge are killed in turn; every file that is there can be read, and nothing done is lost."""
    chance = random.Random(kills)
    expected = {name: content(whole / name) for name in ("z.h5", "x.h5")}
    reference = tmp_path / "reference.h5"
    shutil.copy(whole / "z.h5", reference)
    resumed = unfinished = joining = 0
    for kill in range(kills):
        name, command = (("z.h5", ENCODE), ("x.h5", ("decode", "reference.h5", *DECODE[2:])))[kill % 2]
        output = tmp_path / name
        before = parts(output)
        process = start(*command, cwd=tmp_path)
        if chance.random() < 0.3:  # while the parts are made one
            folder = Path(f"{output}.parts")
            until(lambda folder=folder, it=process: [*folder.glob("whole.*.tmp")] or it.poll() is not None, 60)  # type: ignore[misc]
            joining += process.poll() is None
            time.sleep(chance.random() * 0.05)
        else:
            until(lambda output=output, before=before: parts(output) > before or output.exists(), 60)  # type: ignore[misc]
            time.sleep(chance.random() * 0.7)
        process.kill()
        process.communicate()
        assert parts(output) >= before or output.exists()
        if output.exists():
            shown = content(output)
            with h5py.File(output) as file:
                count = len(file["crc32"])
            unfinished += count < 256
            for key in ("xbar", "images"):
                if key in shown:
                    assert expected[name][key]["data"].startswith(shown[key]["data"]), (kill, key)
        if output.exists() and not Path(f"{output}.parts").exists():
            assert content(output)["crc32"] == expected[name]["crc32"]
            output.unlink()
        elif chance.random() < 0.3:
            code, out, err = run(*command, cwd=tmp_path)
            assert code == 0, err
            resumed += "now, the rest" in out
            same = content(output)
            if name == "x.h5":  # it was decoded from a file of another name
                same["provenance"] = expected[name]["provenance"]
            assert same == expected[name], kill
            output.unlink()
            assert not Path(f"{output}.parts").exists()
    assert joining > 0 or kills < 10
    print(
        f"\n{kills} kills, {joining} of them while parts were made one file: {unfinished} left an unfinished file, all "
        f"readable; {resumed} runs gone on with, all equal"
    )


def limited(size: int) -> Callable[[], None]:
    """A limit on the size of files fails as a full disk does, at a write: HDF5 itself would crash there."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_at_the_first_part(tmp_path: Path) -> None:
    (tmp_path / "z.h5").write_bytes(b"an older file")
    code, out, err = run(*ENCODE, cwd=tmp_path)
    assert code == 2
    assert "z.h5 is not a readable HDF5 file" in err
    code, out, err = run_limited(20_000, *ENCODE, "--overwrite", cwd=tmp_path)
    assert code == 2
    assert err.startswith(
        "Error: z.h5.parts/000000000-000000004.h5 cannot be written (File too large)".replace(
            "z.h5", str(tmp_path / "z.h5"), 1
        )
    )
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "z.h5").read_bytes() == b"an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["z.h5"]


def test_a_full_disk_at_the_end(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are there, the one file has no room: the index stays, and `merge` or the same command goes on."""
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr("odeddim.storage.write_behind.REST", 0.0)
    monkeypatch.setattr("odeddim.storage.write_behind.PATIENCE", 0.0)  # so that no part is as large as the file
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited(700_000)()
    try:
        code, out, err = run(*ENCODE, "--overwrite", cwd=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "File too large" in err
    assert "the parts of all 256 rows are in" in err
    assert len(err.strip().splitlines()) == 1
    with LatentFile(full / "z.h5") as file:
        assert file.is_index
        assert len(file) == 256
        file.read(0, 256)
    for go_on in (ENCODE, ("merge", "z.h5")):
        again = shutil.copytree(full, tmp_path / go_on[0])
        code, out, err = run(*go_on, cwd=again)
        assert code == 0, err
        assert content(again / "z.h5") == content(whole / "z.h5")
        assert [path.name for path in again.iterdir()] == ["z.h5"]


def test_a_folder_of_pictures_goes_on(tmp_path: Path, whole: Path) -> None:
    shutil.copy(whole / "z.h5", tmp_path)
    command = ("decode", "z.h5", "-o", "out", "--batch-size", "2")
    process = start(*command, cwd=tmp_path)
    until(lambda: len(list((tmp_path / "out").glob("*.png"))) > 5)
    process.kill()
    process.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert len(done) < 256
    code, out, err = run(*command, "--solver", "euler", cwd=tmp_path)
    assert code == 2
    assert "out was begun with other settings" in err
    code, out, err = run(*command, cwd=tmp_path)
    assert code == 0, err
    assert f"({256 - len(done)} now, the rest was there already)" in out
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    with h5py.File(whole / "x.h5") as file:
        for i, picture in enumerate(sorted((tmp_path / "out").glob("*.png"))):
            pixels = np.asarray(Image.open(picture), np.float32) / 127.5 - 1
            assert np.abs(pixels - np.clip(file["images"][i, 0], -1, 1)).max() < 1 / 127, i
    assert sorted(item.name for item in (tmp_path / "out").iterdir() if item.suffix != ".png") == ["odeddim.json"]


def test_a_folder_with_pictures_of_one_s_own(tmp_path: Path, whole: Path) -> None:
    """Decoding into the folder of the originals must not replace them."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "000003.png").write_bytes(b"mine")
    code, out, err = run("decode", whole / "z.h5", "-o", "photos", cwd=tmp_path)
    assert code == 2
    assert "000003.png is there already: give another folder, or --overwrite" in err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["000003.png"]
    assert run("decode", whole / "z.h5", "-o", "photos", "--overwrite", cwd=tmp_path)[0] == 0
    assert (tmp_path / "photos" / "000003.png").read_bytes() != b"mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, out, err = run(*ENCODE, cwd=tmp_path)
    tmp_path.chmod(0o700)
    assert code == 2
    assert "cannot be written to" in err


@pytest.mark.slow  # two runs that are long enough to be caught on the way
def test_images_that_are_lost_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.full((6, 6), i, np.uint8)).save(folder / f"{i:02d}.png")
    command = ("encode", "photos", "-o", "z.h5", *FAST, "--batch-size", "1", "--solver", "rk4", "--steps", "200")
    process = start(*command, "-q", cwd=tmp_path)
    until(wait_for_parts(tmp_path / "z.h5", 2))
    lost = (folder / "23.png").read_bytes()
    (folder / "23.png").unlink()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "23.png" in err
    assert len(err.strip().splitlines()) == 1
    with LatentFile(tmp_path / "z.h5") as file:
        assert 20 <= len(file) < 24
    (folder / "23.png").write_bytes(lost)
    code, out, err = run(*command, cwd=tmp_path)
    assert code == 0, err
    with LatentFile(tmp_path / "z.h5") as file:
        assert len(file) == 24


def test_processes_of_one_s_own_share_the_work(tmp_path: Path, whole: Path) -> None:
    """The same command three times at once: each image is encoded once, and one of them makes the file."""
    several = [start(*ENCODE, "--steps", "20", cwd=tmp_path) for _ in range(3)]
    outs = [process.communicate(timeout=300) for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], outs
    assert run("encode", "-o", "alone.h5", *FAST, "--steps", "20", cwd=tmp_path)[0] == 0
    assert content(tmp_path / "z.h5") == content(tmp_path / "alone.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.h5", "z.h5"]


@pytest.mark.slow  # an example of `odeddim encode --help` runs torchrun
@pytest.mark.parametrize("processes", [3, 5])
def test_torchrun(tmp_path: Path, whole: Path, processes: int) -> None:
    """Through gloo on the CPU, with one process killed on the way, and once more."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "odeddim", *ENCODE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "z.h5") == content(whole / "z.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["z.h5"]
    result = subprocess.run(
        [sys.executable, *command, "--steps", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert result.returncode != 0
    assert "z.h5 is there already and was made with other settings (steps: 12 then, 4 now)" in result.stderr
    assert content(tmp_path / "z.h5") == content(whole / "z.h5")


def test_photographs_and_bad_files_among_them_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for i in range(160):
        pixels = generator.integers(0, 256, (10 + i % 7, 12 + i % 5), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:03d}.png")
    for i in (0, 5, 90):  # what it begins with, and what comes later
        place = tmp_path / "photos" / f"{i:03d}.png"
        place.write_bytes(place.read_bytes()[:-30] if i else b"")
    long = ("--steps", "60")  # a busy machine sees the first parts late: there must be time to stop the run
    command = ("encode", "photos", *FAST, *long, "--resize", "8", "--skip-bad", "-o")
    assert run(*command, "whole.h5", cwd=tmp_path)[0] == 0
    process = start(*command, "z.h5", *ONE_BY_ONE, cwd=tmp_path)
    until(wait_for_parts(tmp_path / "z.h5", 2))
    process.kill()
    process.communicate(timeout=60)
    assert 2 <= rows(tmp_path / "z.h5") < 157
    code, out, err = run(*command, "z.h5", cwd=tmp_path)
    assert code == 0, err
    assert "the rest was there already" in out
    assert out.endswith(", 3 files skipped\n")
    assert [line.split()[2] for line in err.splitlines()] == ["000.png", "005.png", "090.png"]
    assert content(tmp_path / "z.h5") == content(tmp_path / "whole.h5")
