"""What decode and sample can write besides PNGs and HDF5: JPEG and WebP in folders, NPZ, animations."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import odeddim
from odeddim.jobs import Animation, Drawing, Pictures
from odeddim.storage import lossy
from odeddim.storage.images import open_images
from odeddim.storage.outputs import open_animation, open_output
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture", "--solver", "bdia", "--steps", 2)
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="an MP4 needs the package av")


def pictures(count: int, *shape: int) -> torch.Tensor:
    """Smooth ones, which a lossy format hardly changes."""
    ways = torch.linspace(-1, 1, shape[1] * shape[2]).reshape(shape[1:])
    return torch.stack([(ways * (i + 1) / count).expand(shape) for i in range(count)])


def written(to: Pictures, images: torch.Tensor, names: list[str], **how: object) -> None:
    with open_output(to, names, {}, **how) as out:  # type: ignore[arg-type]
        for start, stop in out.batches(2):
            out.write(start, stop, images[start:stop], {"error": torch.arange(start, stop) / 8})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("format", "suffix"), [("jpeg", "jpg"), ("webp", "webp")])
def test_lossy_folders(tmp_path: Path, format: str, suffix: str, channels: int) -> None:
    """They hold the images nearly, keep folders and figures, and go on; every damage to a file is seen."""
    images, names, to = pictures(3, channels, 16, 16), ["a.png", "cat/1.jpg", "dog/1.png"], tmp_path / "out"
    written(Pictures(to, format), images, names)
    files = [f"a.{suffix}", f"cat/1.{suffix}", f"dog/1.{suffix}"]
    assert sorted(p.relative_to(to).as_posix() for p in to.rglob(f"*.{suffix}")) == files
    assert torch.allclose(open_images(to, channels=channels).read(), images, rtol=0, atol=0.05)
    with open_output(Pictures(to, format), names, {}) as out:
        assert out.done == 3
        assert out.figures("error") == [(name, i / 8) for i, name in enumerate(files)]
    path = to / files[1]
    good = path.read_bytes()
    mark = lossy.notes_of(path)["odeddim"]
    for at in range(0, len(good), 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :])
        assert not lossy.is_whole(path, mark), at
    for junk in (b"", good[:-7], (to / files[0]).read_bytes()):
        path.write_bytes(junk)
        with pytest.raises(InputError, match="is damaged, or another file"):
            open_output(Pictures(to, format), names, {})
    path.unlink()
    written(Pictures(to, format), images, names)
    assert path.read_bytes() == good
    with pytest.raises(InputError, match=f"was begun with other settings .format: {format} then, none now"):
        open_output(to, names, {})


def test_an_npz_is_what_the_hdf5_is(run: Command, here: Path) -> None:
    """The same values and names, whatever their range; read again like it; the same bytes each time."""
    assert run("encode", "-n", 5, "-o", "z.h5", *MIXTURE)[0] == 0
    for name in ("x.npz", "y.npz", "x.h5"):
        assert run("decode", "z.h5", "-o", name)[0] == 0
    assert (here / "x.npz").read_bytes() == (here / "y.npz").read_bytes()
    expected = open_images(here / "x.h5")
    with np.load(here / "x.npz") as file:
        assert sorted(file) == ["images", "names", "odeddim", "provenance", "range"]
        assert np.array_equal(file["images"], expected.read().numpy())
        assert file["images"].dtype == np.float32
        assert file["names"].tolist() == [*expected.names]
    assert run("decode", "z.h5", "-o", "x.npz")[0] == 0  # its own
    code, _, err = run("decode", "z.h5", "-o", "x.npz", "--steps", 3)
    assert (code, "x.npz is there already" in err) == (2, True)


def test_an_npz_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Values beyond [-1, 1], or none below 0, are not taken for another range; and names come back."""
    names = ["cat/é.png", "猫/1.png", ""]
    for low, high in ((0.0, 0.5), (-1.2, 1.2)):
        images = torch.linspace(low, high, 3 * 3 * 16).reshape(3, 3, 4, 4)
        written(Pictures(tmp_path / "x.npz"), images, names, overwrite=True)
        source = open_images(tmp_path / "x.npz")
        assert torch.equal(source.read(), images)
        assert [*source.names] == names
    with open_output(tmp_path / "x.npz", names, {}) as out:
        assert out.figures("error") == [(name, i / 8) for i, name in enumerate(names)]


def animated(to: Animation, images: torch.Tensor, **how: bool) -> list[np.ndarray]:  # type: ignore[type-arg]
    with open_animation(to, ["x"] * len(images), {}, **how) as out:
        for start, stop in out.batches(3):
            out.write(start, stop, images[start:stop])
    if to.path.suffix == ".mp4":
        import av

        with av.open(str(to.path)) as container:
            assert container.streams.video[0].average_rate == to.fps
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with PIL.Image.open(to.path) as image:
        assert image.info["loop"] == 0
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            assert image.info["duration"] == 1000 / to.fps
        return frames


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["gif", "webp", pytest.param("mp4", marks=needs_av)])
def test_animations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, channels: int) -> None:
    """Every image, in order, and back without repeating the ends; the same bytes each time."""
    monkeypatch.setattr("odeddim.storage.parts.CHUNK", 2)  # which cuts the parts, too
    images = pictures(5, channels, 7, 9)
    bare = [to_bytes(image).expand(3, -1, -1).movedim(0, -1).numpy().repeat(3, 0).repeat(3, 1) for image in images]
    for back, order in ((False, [0, 1, 2, 3, 4]), (True, [0, 1, 2, 3, 4, 3, 2, 1])):
        to = Animation(tmp_path / f"{back}.{suffix}", fps=20, scale=3)
        frames = animated(to, images, back=back)
        assert len(frames) == len(order)
        for frame, i in zip(frames, order, strict=True):
            away = np.abs(frame[:21, :27].astype(int) - bare[i])
            assert away.mean() <= (3 if suffix == "mp4" else 0), (back, i)
        first = to.path.read_bytes()
        assert first == (animated(to, images, back=back), to.path.read_bytes())[1]  # its own is made again
        with pytest.raises(InputError, match="this command with these settings has not written it"):
            open_animation(Animation(to.path, fps=10, scale=3), ["x"] * 5, {}, back=back)
    assert sorted(os.listdir(tmp_path)) == [f"False.{suffix}", f"True.{suffix}"]


def test_by_default_a_frame_can_be_seen(tmp_path: Path) -> None:
    assert animated(Animation(tmp_path / "x.gif"), pictures(2, 1, 28, 30))[0].shape == (280, 300, 3)


def test_interpolations_move(run: Command, here: Path) -> None:
    """With a sheet of the same images, which are decoded once; a line goes back, a loop does not."""
    assert run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)[0] == 0
    line = ("interpolate", "z.h5", "--pair", 0, 1, "-n", 4, "--animate", "line.webp")
    code, out, err = run(*line, "--sheet", "line.png", "--scale", 2)
    assert (code, out, err) == (0, "4 images in line.png\n4 images in line.webp\n", "")
    with PIL.Image.open("line.webp") as image, PIL.Image.open("line.png") as sheet:
        assert (image.n_frames, image.size) == (6, (56, 56))
        for i in range(4):
            image.seek(i)
            tile = sheet.crop((4 + 60 * i, 4, 60 + 60 * i, 60))
            assert np.array_equal(np.asarray(image.convert("L")), np.asarray(tile)), i
    assert run("interpolate", "z.h5", "--loop", "0,1,2", "-n", 4, "--animate", "loop.gif")[0] == 0
    with PIL.Image.open("loop.gif") as image:
        assert image.n_frames == 12
    (here / "mine.gif").write_bytes(b"mine")
    for arguments, words in (
        (("--pair", 0, 1, "--animate", "mine.gif"), "mine.gif is there already"),
        (("--pair", 0, 1, "--animate", "x.avi"), "NAME.gif or NAME.webp or NAME.mp4"),
        (("--corners", 0, 1, 2, 0, "--animate", "x.gif"), "a grid has no order in time"),
        (("--pair", 0, 1, "-o", "p.h5", "--scale", 2), "give --sheet"),
        (("--pair", 0, 1, "-n", 20_000, "--animate", "x.gif"), "too many for one animation"),
    ):
        code, _, err = run("interpolate", "z.h5", *arguments)
        assert (code, words in err) == (2, True), err
    assert (here / "mine.gif").read_bytes() == b"mine"
    assert sorted(os.listdir(here)) == ["line.png", "line.webp", "loop.gif", "mine.gif", "z.h5"]


def test_an_mp4_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odeddim.jobs.encode(None, tmp_path / "z.h5", model="exact-samples", count=2, solver="euler", steps=2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"an MP4 needs the package av: `pip install 'odeddim\[video\]'`, or name"):
        odeddim.jobs.interpolate(tmp_path / "z.h5", (0, 1), to=Drawing(animation=Animation(tmp_path / "x.mp4")))
    with pytest.raises(InputError, match="fps=99: give 1 to 50"):
        Animation(tmp_path / "x.gif", fps=99)
