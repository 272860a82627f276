"""Folders of images: names, what counts as done, and what killed processes leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from odeddim.storage import atomic as files
from odeddim.storage.images import open_images
from odeddim.storage.names import file_names
from odeddim.storage.outputs import Folder, open_output
from odeddim.storage.png import encoded, is_whole, to_bytes
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture", "--solver", "bdia", "--steps", 2)


def photos(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6), 40 * i + 10, np.uint8)).save(folder / name)


def pngs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


# Names.


def test_paths_of_sub_folders_survive(run: Command, here: Path) -> None:
    names = ["1.png", "cat/001.png", "cat/old/001.png", "dog/001.png", "dog/002.png"]
    photos(here / "photos", *names)
    assert run("encode", "photos", "-o", "z.h5", *MIXTURE)[0] == 0
    assert run("decode", "z.h5", "-o", "out")[0] == 0
    assert pngs(here / "out") == names
    for name in names:
        was, becomes = (np.asarray(Image.open(here / folder / name)) for folder in ("photos", "out"))
        assert np.abs(was.astype(int) - becomes).max() <= 1, name
    # Through HDF5 and on again.
    assert run("decode", "z.h5", "-o", "x.h5")[0] == 0
    assert run("encode", "x.h5", "-o", "y.h5", *MIXTURE)[0] == 0
    assert run("decode", "y.h5", "-o", "again")[0] == 0
    assert pngs(here / "again") == names
    # What is done is found in the folders, too.
    (here / "out" / "dog" / "001.png").unlink()
    code, out, _ = run("decode", "z.h5", "-o", "out")
    assert code == 0
    assert "(1 now, the rest was there already)" in out
    (here / "out" / "odeddim.json").unlink()
    code, _, err = run("decode", "z.h5", "-o", "out")
    assert code == 2
    assert "1.png is there already" in err
    assert run("decode", "z.h5", "-o", "out", "--overwrite")[0] == 0
    assert pngs(here / "out") == names


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (["cat/1.jpg", "dog/1.jpg"], ["cat/1.png", "dog/1.png"]),
        (["a.jpg", "a.png", "a.gif"], ["a.png", "a-1.png", "a-2.png"]),
        (["a.png", "a-1.png", "a.png"], ["a.png", "a-1.png", "a-2.png"]),
        (["Cat/1.png", "cat/1.png"], ["Cat/1.png", "cat/1-1.png"]),
        (["é.png", "e\u0301.png"], ["é.png", "e\u0301-1.png"]),
        (["/data/x/1.png", "../x/1.png", "./x//2.png"], ["data/x/1.png", "x/1.png", "x/2.png"]),
        (["x/../../3.png"], ["x/3.png"]),
        (["C:\\photos\\1.png"], ["C:/photos/1.png"]),
        (["..", "/", "", "...", "\0"], ["image.png", "image-1.png", "image-2.png", "image-3.png", "_.png"]),
        (["a\nb\x1b[31m.png"], ["a_b_[31m.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a-1.png", "a.png/b.png"]),
        (["odeddim.json/1.png", ".odeddim.lock/1.png"], ["odeddim.json_/1.png", ".odeddim.lock_/1.png"]),
    ],
)  # fmt: skip
def test_names(names: list[str], paths: list[str]) -> None:
    assert list(file_names(names)) == paths


@given(st.lists(st.text(alphabet=st.sampled_from("aAé./\\ \0\n:~-1\udcff\U0001f600"), max_size=12), max_size=12))
@example(["x" * 5000 + "/" + "\U0001f600" * 300 + ".png"] * 3)
def test_no_name_leaves_the_folder(names: list[str]) -> None:
    paths = list(file_names(names))
    assert len({path.casefold() for path in paths}) == len(paths) == len(names)
    above = {str(one).casefold() for path in paths for one in PurePosixPath(path).parents}
    for path in paths:
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))
        assert all(len(step.encode()) <= 255 for step in path.split("/"))
        assert path.casefold() not in above  # no file where a folder is to be


WINDOWS = {
    "aux.png": "aux_.png",
    "NUL": "NUL_.png",
    "com1.tar.gz": "com1_.tar.png",
    "LPT¹.png": "LPT¹_.png",
    "con .x.png": "con_ .x.png",
    "prn/conin$/1.png": "prn_/conin$_/1.png",
    "aux.old/1.png": "aux_.old/1.png",
    "cat. /1.png": "cat/1.png",
    "C:\\photos\\1.png": "C_/photos/1.png",
    'a<b>c"d|e?f*g.png': "a_b_c_d_e_f_g.png",
    "console/auxiliary.png": "console/auxiliary.png",
    f"{'x' * 199}. y/1.png": f"{'x' * 199}/1.png",
}


def test_names_that_windows_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(file_names(["aux.png", "a?/com1.png"])) == ["aux.png", "a?/com1.png"]
    monkeypatch.setattr("odeddim.storage.names._WINDOWS", True)
    assert list(file_names(list(WINDOWS))) == list(WINDOWS.values())
    assert list(file_names(["aux.png", "AUX_.png", "aux"])) == ["aux_.png", "AUX_-1.png", "aux_-2.png"]
    with open_output(tmp_path / "out", list(WINDOWS), {}) as out:
        for start, stop in out.batches(5):
            out.write(start, stop, torch.zeros(stop - start, 1, 4, 4))
    assert pngs(tmp_path / "out") == sorted(WINDOWS.values())


@given(st.lists(st.text(alphabet=st.sampled_from("aAuUxX./\\ :?\0"), max_size=8), max_size=12))
@example(["con", "CON.png", " /nul", "aux /.", "?" * 300])
def test_every_name_is_one_that_windows_can_have(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("odeddim.storage.names._WINDOWS", True)
        paths = list(file_names(names))
    assert len({path.casefold() for path in paths}) == len(names)
    for step in (step for path in paths for step in path.split("/")):
        assert step
        assert step == step.rstrip(" .")
        assert not set(step) & set('<>:"|?*\\\0')
        assert step.partition(".")[0].rstrip().casefold() not in ("con", "aux", "nul")


def test_hostile_names_in_a_file(run: Command, here: Path) -> None:
    names = ["../../escaped.png", "/tmp/odeddim-escaped.png", "a/../../b.png", "odeddim.json"]
    with h5py.File(here / "x.h5", "w") as file:
        file["images"], file["names"] = np.zeros((4, 6, 6), np.uint8), [name.encode() for name in names]
    assert run("encode", "x.h5", "-o", "z.h5", *MIXTURE)[0] == 0
    (here / "deep" / "deeper").mkdir(parents=True)
    assert run("decode", "z.h5", "-o", "deep/deeper/out")[0] == 0
    assert pngs(here) == [
        f"deep/deeper/out/{name}.png" for name in ("a/b", "escaped", "odeddim", "tmp/odeddim-escaped")
    ]  # fmt: skip
    assert not Path("/tmp/odeddim-escaped.png").exists()


def test_a_file_where_a_sub_folder_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "cat").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"the folder .*cat cannot be made \(File exists\)"):
        open_output(tmp_path, ["cat/1.png"], {})
    assert (tmp_path / "cat").read_bytes() == b"mine"


# What counts as done.


def test_a_batch_of_more_images_than_are_written_at_once(tmp_path: Path) -> None:
    images = torch.rand(37, 1, 4, 5, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    sizes = torch.arange(37, dtype=torch.float64) / 3
    with Folder(tmp_path / "out", [f"{i}.jpg" for i in range(37)], {}) as folder:
        assert [folder.claim(0, 36), folder.claim(36, 37)] == [True, True]
        folder.write(0, 36, images[:36], {"size": sizes[:36]})
        folder.write(36, 37, images[36:], {"size": sizes[36:]})
        assert folder.done == 37
        assert folder.figures("size") == [(f"{i}.png", i / 3) for i in range(37)]
    for i, image in enumerate(images):  # each under its own name, by its own values
        want = ((image[0].double() + 1) * 127.5).round().clamp(0, 255).numpy()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i}.png")), want)


def test_a_picture_that_is_not_whole_is_not_done(run: Command, here: Path) -> None:
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)[0] == 0
    assert run("decode", "z.h5", "-o", "out")[0] == 0
    path = here / "out" / "000001.png"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-30] ^= 1
    others = (here / "out" / "000002.png").read_bytes()
    for junk in (b"", b"junk", good[:-7], good[: len(good) // 2], bytes(flipped), good[:8] + b"\0" * 200, others):
        path.write_bytes(junk)
        code, _, err = run("decode", "z.h5", "-o", "out")
        assert code == 2
        assert "out/000001.png is damaged, or another file than this run has written there: move it away" in err
        assert path.read_bytes() == junk
        path.unlink()
        code, out, _ = run("decode", "z.h5", "-o", "out")
        assert (code, "(1 now, the rest was there already)" in out) == (0, True)
        assert path.read_bytes() == good
    path.write_bytes(b"junk")
    assert run("decode", "z.h5", "-o", "out", "--overwrite")[0] == 0
    assert path.read_bytes() == good


def test_whole_pictures(tmp_path: Path) -> None:
    """Every byte of one that its checksums cover."""
    good = encoded(torch.zeros(1, 5, 5), tmp_path / "x.png", {"odeddim": "odeddim-0123"})
    (tmp_path / "x.png").write_bytes(good)
    assert is_whole(tmp_path / "x.png", "odeddim-0123")
    assert not is_whole(tmp_path / "x.png", "odeddim-0124")
    assert not is_whole(tmp_path / "nowhere.png", "odeddim-0123")
    for at in range(len(good)):
        (tmp_path / "x.png").write_bytes(good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :])
        assert not is_whole(tmp_path / "x.png", "odeddim-0123"), at
        (tmp_path / "x.png").write_bytes(good[:at])
        assert not is_whole(tmp_path / "x.png", "odeddim-0123"), at


def test_an_image_that_was_edited_to_the_same_size(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from odeddim.latents.latent_file import LatentRun

    photos(here / "photos", *(f"{i}.bmp" for i in range(4)))
    write = LatentRun.write

    def stop(latents: LatentRun, start: int, *rest: object) -> None:
        if start:
            raise KeyboardInterrupt
        write(latents, start, *rest)  # type: ignore[arg-type]

    command = ("encode", "photos", "-n", 3, "-o", "z.h5", *MIXTURE, "--batch-size", 1)
    with monkeypatch.context() as patch:
        patch.setattr(LatentRun, "write", stop)
        assert run(*command)[0] == 130
    path = here / "photos" / "0.bmp"
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # neither its size nor its time says so
    code, _, err = run(*command)
    assert code == 2
    assert "z.h5 was begun with other settings (other images)" in err
    path.write_bytes(before)
    (here / "photos" / "3.bmp").write_bytes(before)  # which this run does not take
    assert run(*command)[0] == 0


def test_the_fingerprint_of_an_array_reads_all_of_it(tmp_path: Path) -> None:
    content = np.zeros((400, 32, 32), np.uint8)
    np.save(tmp_path / "x.npy", content)
    first = open_images(tmp_path / "x.npy").fingerprint()
    content[200, 16, 16] = 1  # far from both ends
    np.save(tmp_path / "x.npy", content)
    assert open_images(tmp_path / "x.npy").fingerprint() != first


def test_certificates_do_not_stop_a_run_that_decodes(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode and a sheet that were begun before `odeddim verify` are gone on with after it."""
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)[0] == 0
    line = ("interpolate", "z.h5", "--pair", 0, 1, "-n", 2, "--sheet", "line.png")
    assert run(*line)[0] == 0
    write = Folder.write

    def stop(out: Folder, start: int, *rest: object) -> None:
        if start:
            raise KeyboardInterrupt
        write(out, start, *rest)  # type: ignore[arg-type]

    command = ("decode", "z.h5", "-o", "out", "--batch-size", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", stop)
        assert run(*command)[0] == 130
    assert run("verify", "z.h5")[0] == 0
    code, out, err = run(*command)
    assert code == 0, err
    assert "(2 now, the rest was there already)" in out
    assert run(*line)[0] == 0
    assert run("verify", "z.h5", "--sheet", "worst.png")[0] == 0
    assert run("verify", "z.h5", "--sheet", "worst.png")[0] == 0
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)[0] == 0  # nothing left to do
    # Other latents are still other latents.
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE, "--overwrite", "--set", "gamma=0.9")[0] == 0
    code, _, err = run(*command)
    assert code == 2
    assert "out was begun with other settings (" in err
    assert "latents encoded in another way" in err
    assert "{" not in err


# Several processes.

BEGIN = """
import sys
from pathlib import Path
import torch
from odeddim.storage.outputs import Folder, open_output
from odeddim.types import InputError
folder, solver, when = sys.argv[1:]
look = Folder.spans
def slowly(out):
    Folder.spans = look
    early = look(out)
    print("looking", flush=True)
    sys.stdin.readline()
    return early if when == "after" else look(out)
Folder.spans = slowly
try:
    with open_output(Path(folder), ["a", "b", "c"], {"solver": solver}, overwrite=when == "anew") as out:
        if when == "anew":
            slowly(out)
        for start, stop in out.batches(1):
            out.write(start, stop, torch.ones(1, 1, 4, 4))
            print(start, flush=True)
except InputError as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_two_processes_begin_a_folder_at_the_same_instant(tmp_path: Path, when: str, solver: str) -> None:
    """This one begins, and writes an image, just before or just after the other looks what is there."""
    command = [sys.executable, "-c", BEGIN, tmp_path / "out", solver, when]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "looking\n"
        with open_output(tmp_path / "out", ["a", "b", "c"], {"solver": "euler"}) as out:
            batches = out.batches(1)
            assert next(batches) == (0, 1)
            out.write(0, 1, torch.zeros(1, 1, 4, 4))
            assert next(batches) == (1, 2)
            said = other.communicate("\n", timeout=60)[0]
            out.write(1, 2, torch.zeros(1, 1, 4, 4))
            for start, stop in batches:
                out.write(start, stop, torch.zeros(1, 1, 4, 4))
    if solver == "euler":
        assert said == "2\n"  # the image that this one had not begun
    else:
        assert "out was begun with other settings (solver: euler then, heun now)" in said
    gray = open_images(tmp_path / "out").read()[:, 0, 0, 0].round().tolist()
    assert gray == [0, 0, float(solver == "euler")]
    assert json.loads((tmp_path / "out" / "odeddim.json").read_text())["solver"] == "euler"
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png", "odeddim.json"]


def test_nobody_begins_anew_under_a_process_that_has_claimed_nothing_yet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN, tmp_path / "out", "heun", "anew"]
    with open_output(tmp_path / "out", ["a", "b", "c"], {"solver": "euler"}) as out:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            said = other.communicate("\n", timeout=60)[0]
        assert f"another process is writing to {tmp_path / 'out'}: stop it before you begin anew" in said
        for start, stop in out.batches(1):
            out.write(start, stop, torch.zeros(1, 1, 4, 4))
    assert json.loads((tmp_path / "out" / "odeddim.json").read_text())["solver"] == "euler"


# Killed processes.


def test_what_a_killed_process_has_left_is_deleted(tmp_path: Path, run: Command) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = [f".odeddim-{host}-{dead.pid}-3.tmp", ".odeddim-elsewhere-1-0.tmp"]
    kept = [f".odeddim-{host}-{os.getppid()}-0.tmp", ".odeddim-young-1-0.tmp", ".odeddim-notes.tmp", "x.tmp"]

    def litter(folder: Path) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        for name in (*left, *kept):
            (folder / name).write_bytes(b"half")
        os.utime(folder / left[1], (0, time.time() - 100_000))

    def there(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".tmp")

    litter(tmp_path)
    with files.replacing(tmp_path / "file") as place:
        place.write_bytes(b"whole")
    assert there(tmp_path) == sorted(kept)
    litter(tmp_path / "out" / "cat")
    with open_output(tmp_path / "out", ["cat/1.png"], {}) as out:
        assert there(tmp_path / "out" / "cat") == sorted(kept)
        litter(tmp_path / "out" / "cat")  # by another process that is killed while this one goes on
        out.write(0, 1, torch.zeros(1, 1, 4, 4))
    assert there(tmp_path / "out" / "cat") == sorted(kept)


SLOW = """
import os, sys, time
from odeddim.cli import main
replace = os.replace
def slowly(source, place):
    if str(place).endswith(".png"):
        os.write(1, b"writing\\n")
        time.sleep(3)
    replace(source, place)
os.replace = slowly
sys.argv = ["odeddim", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(run: Command, here: Path, number: signal.Signals) -> None:
    """While pictures are being written into a folder: they are finished, unless the signal is a kill."""
    photos(here / "photos", "cat/1.png", "dog/1.png")
    assert run("encode", "photos", "-o", "z.h5", *MIXTURE)[0] == 0
    command = ("decode", "z.h5", "-o", "out")
    process = subprocess.Popen([sys.executable, "-c", SLOW, *command], cwd=here, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    left = [path.name for path in here.rglob("*.tmp")]
    assert bool(left) == (number == signal.SIGKILL), left
    assert run(*command)[0] == 0
    found = (path.relative_to(here / "out").as_posix() for path in (here / "out").rglob("*") if path.is_file())
    assert sorted(found) == ["cat/1.png", "dog/1.png", "odeddim.json"]


# What is said.


def test_a_second_process_says_who_does_the_rest(run: Command, here: Path) -> None:
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)[0] == 0
    command = ("decode", "z.h5", "-o", "out")
    assert run(*command)[0] == 0
    (here / "out" / "000000.png").unlink()
    (here / "out" / "000002.png").unlink()
    code = "import sys; from pathlib import Path; from odeddim.storage.workers import Claims\n"
    code += "claims = Claims(Path(sys.argv[1])); assert claims.take(0, 3); print('taken', flush=True); sys.stdin.read()"
    lock = here / "out" / ".odeddim.lock"
    other = subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    try:
        code, out, err = run(*command)
    finally:
        other.communicate("")
    assert (code, err) == (0, "")
    assert out.startswith(
        "1 of 3 images in out so far, 0 by this process (another process is at work on the other 2, and goes on; "
        "if it is stopped, the same command makes them)"
    )
    assert run(*command)[1].startswith("3 images in out (2 now, the rest was there already)")


def picture(mode: str) -> Image.Image:
    """Left half opaque black, right half transparent black: laid on white, it is white there."""
    image = Image.new("RGBA", (6, 6), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 3, 6))
    if mode == "P":
        palette = Image.new("P", (6, 6), 1)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(0, (0, 0, 3, 6))
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_laid_on_white(tmp_path: Path, mode: str, channels: int) -> None:
    more = {"transparency": 1} if mode == "P" else {}
    picture(mode).save(tmp_path / "a.png", **more)
    opaque = Image.new("L", (6, 6), 77)
    opaque.convert("L" if mode == "LA" else "RGB").save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="1 of 2 images may be transparent in parts: they are laid on white"):
        source = open_images(tmp_path, channels=channels)
    half = torch.tensor([-1.0] * 3 + [1.0] * 3)
    assert torch.equal(source.read([0]), half.expand(1, channels, 6, 6))
    assert to_bytes(source.read([1])).unique().tolist() == [77]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_images_keep_every_value(tmp_path: Path, mode: str) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    stacked = np.stack([values] * (len(mode) - 1) + [np.full_like(values, 255)], axis=-1)
    Image.fromarray(stacked, mode).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="may be transparent"):
        source = open_images(tmp_path)
    assert torch.equal(source.read()[0, 0], torch.from_numpy(values / np.float32(127.5) - 1))


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_of_several_pictures_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    first, second = (Image.new("RGB", (6, 6), (value,) * 3) for value in (0, 255))
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second])
    second.save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="1 of 2 images hold several pictures: the first of each is taken"):
        source = open_images(tmp_path, channels=3)
    assert torch.equal(source.read([0]), torch.full((1, 3, 6, 6), -1.0))


def test_warnings_are_one_line_each(run: Command, here: Path) -> None:
    photos(here / "photos", "a.png")
    picture("LA").save(here / "photos" / "b.png")
    code, out, err = run("encode", "photos", "-n", 5, "-o", "z.h5", *MIXTURE)
    assert code == 0
    assert err == (
        "warning: 1 of 2 images may be transparent in parts: they are laid on white\n"
        "warning: --count 5: photos holds 2 images, and all of them are taken\n"
    )
    assert out.startswith("2 latents")
    code, out, err = run("encode", "-n", 300, "-o", "y.h5", *MIXTURE)
    assert "warning: --count 300: the package's sample holds 256 images, and all of them are taken" in err
    assert run("encode", "-n", 256, "-o", "x.h5", *MIXTURE)[2] == ""


def test_a_file_is_not_merged_with_itself(run: Command, here: Path) -> None:
    assert run("encode", "-n", 2, "-o", "z.h5", *MIXTURE)[0] == 0
    (here / "link.h5").symlink_to("z.h5")
    os.link(here / "z.h5", here / "hard.h5")
    for twice in ("z.h5", "link.h5", "hard.h5"):
        code, _, err = run("merge", "z.h5", twice, "-o", "both.h5")
        assert code == 2
        assert f"{twice} is given twice" in err
        assert not (here / "both.h5").exists()
