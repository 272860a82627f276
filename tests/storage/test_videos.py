"""Videos in files, read and written: what is in them as PyAV and Pillow have it, frames prepared as images are."""

from __future__ import annotations

import io
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import odeddim
from odeddim import InputError, Preparation
from odeddim.jobs import Pictures
from odeddim.storage import videos
from odeddim.storage.images import ImageSource
from odeddim.storage.outputs import Folder, open_output
from odeddim.storage.png import to_bytes
from odeddim.storage.sources import source_of

av = pytest.importorskip("av", reason="av is installed by the test extra")
FRAMES, HEIGHT, WIDTH = 5, 16, 24
Pixels = np.ndarray[Any, Any]


def pixels(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """(F, H, W, 3) bytes that change smoothly, which H.264 keeps about."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (frames, 2, 3, 3), dtype=np.uint8)
    return np.stack([np.asarray(PIL.Image.fromarray(each).resize((width, height))) for each in coarse])


def by_av(path: Path, video: Pixels, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def by_pillow(path: Path, video: Pixels) -> Path:
    first, *rest = map(PIL.Image.fromarray, video)
    first.save(path, save_all=True, append_images=rest, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def as_frames(folder: Path, video: Pixels) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(video, 8):  # 8, 9, 10, 11, 12: by their letters 10 comes first
        PIL.Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


def decoded(path: Path) -> torch.Tensor:
    """(C, F, H, W) in [-1, 1] of a video, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return as_tensor(frames)


def as_tensor(video: Pixels) -> torch.Tensor:
    return torch.from_numpy(video.astype(np.float32) / np.float32(127.5) - 1).permute(3, 0, 1, 2)


def opened(path: Path | str, **how: Any) -> ImageSource:
    return odeddim.open_images(path, prepare=Preparation(**{"frames": "video", **how}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "clips"
    as_frames(folder / "cat" / "walk", pixels(3))
    by_av(folder / "a.mp4", pixels(0))
    by_av(folder / "b.webm", pixels(1), "libvpx")
    by_pillow(folder / "cat" / "c.gif", pixels(2))
    by_pillow(folder / "d.webp", pixels(4))
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture
def clips(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "clips"))


def test_videos_of_every_kind(clips: Path) -> None:
    source = opened(clips)
    assert list(source.names) == ["a.mp4", "b.webm", "cat/c.gif", "cat/walk", "d.webp"]
    assert source.shape == (3, FRAMES, HEIGHT, WIDTH)
    found = source[:]
    assert torch.equal(found[0], decoded(clips / "a.mp4"))
    assert torch.equal(found[1], decoded(clips / "b.webm"))
    for row, seed in ((3, 3), (4, 4)):
        assert torch.equal(found[row], as_tensor(pixels(seed)))
    with PIL.Image.open(clips / "cat" / "c.gif") as image:  # of 256 colours
        shown = [np.asarray((image.seek(k), image.convert("RGB"))[1]) for k in range(FRAMES)]
    assert torch.equal(found[2], as_tensor(np.stack(shown)))
    assert float((found[0] - as_tensor(pixels(0))).abs().mean()) < 0.1
    assert torch.equal(source.read([4, 0, 4]), found[[4, 0, 4]])
    assert source.prepared == {"frames": "video"}


def test_one_of_them_alone(clips: Path) -> None:
    whole = opened(clips)
    for row, path in enumerate(("a.mp4", "b.webm", "cat/c.gif", "cat/walk", "d.webp")):
        alone = opened(clips / path)
        assert list(alone.names) == [Path(path).name]
        assert torch.equal(alone[:], whole[row : row + 1])
    listed = source_of([clips / "cat/walk", str(clips / "a.mp4")], prepare=Preparation(frames="video"))
    assert torch.equal(listed[:], whole.read([3, 0]))


def test_a_list_on_standard_input(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"{clips}/cat/walk\n{clips}/a.mp4\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert torch.equal(opened("-")[:], opened(clips).read([3, 0]))


@pytest.mark.parametrize("how", [{"resize": 8}, {"resize": (12, 8), "crop": "none"}, {"resize": (8, 8), "pad": True}])
def test_frames_are_prepared_as_images_are(clips: Path, how: dict[str, Any]) -> None:
    images = odeddim.open_images(clips / "cat" / "walk", prepare=Preparation(**how))
    order = [images.names.index(f"{number}.png") for number in range(8, 13)]
    video = opened(clips / "cat" / "walk", **how)
    assert torch.equal(video[:][0], images.read(order).movedim(0, 1))
    gray = odeddim.open_images(clips / "a.mp4", channels=1, prepare=Preparation(frames="video", **how))
    assert gray.grayed == "1 of 1 videos"
    assert gray.shape == (1, *video.shape[1:])


def test_the_first_frames(clips: Path) -> None:
    assert torch.equal(opened(clips, frames=2)[:], opened(clips)[:][:, :, :2])
    with pytest.raises(InputError, match=r"a\.mp4 has 5 frames, fewer than frames=6: leave it out"):
        opened(clips, frames=6)
    by_av(clips / "long.mp4", pixels(5, frames=9))
    with pytest.raises(InputError, match=r"long\.mp4 is 3×9×16×24 .*, but a\.mp4 is 3×5×16×24: frames=N takes"):
        opened(clips)
    assert len(opened(clips, frames=5)) == 6
    for wrong in (0, -1, True, "some"):
        with pytest.raises(InputError, match="frames"):
            Preparation(frames=wrong)


def test_videos_of_telephones_are_upright(clips: Path) -> None:
    """A quarter turn in the header of the track, as ffmpeg's -display_rotation writes it."""
    path = by_av(clips / "turned.mp4", pixels(7))
    content = path.read_bytes()
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    at = content.index(b"tkhd")
    assert straight in content[at : at + 100]
    plain = decoded(path)
    path.write_bytes(content[:at] + content[at:].replace(straight, turned, 1))
    found = opened(path)
    assert found.shape == (3, FRAMES, WIDTH, HEIGHT)
    assert torch.equal(found[:][0], plain.rot90(-1, (2, 3)))  # clockwise


def test_arrays_of_five_axes(tmp_path: Path) -> None:
    video = np.stack([pixels(seed) for seed in range(2)])  # (N, F, H, W, C)
    wanted = torch.stack([as_tensor(each) for each in video])
    np.save(tmp_path / "bytes.npy", video)
    np.savez(tmp_path / "floats.npz", clips=wanted.numpy(), labels=np.zeros(2))
    for given in (
        video,
        wanted,
        tmp_path / "bytes.npy",
        tmp_path / "floats.npz",
        list(wanted),
        list(video),
    ):
        source = source_of(given)
        assert source.shape == (3, FRAMES, HEIGHT, WIDTH)
        assert torch.allclose(source[:], wanted, atol=1e-6)
        cut = source_of(given, prepare=Preparation(frames=2, resize=8))
        assert cut.shape == (3, 2, 8, 8)
        assert cut[:].shape == (2, 3, 2, 8, 8)
    images = source_of(video[0], prepare=Preparation(resize=8))
    assert torch.allclose(cut[:][0], images[:2].movedim(0, 1), atol=0.02)  # bytes there, floats here
    with pytest.raises(InputError, match="videos of 5 frames, fewer than frames=6"):
        source_of(video, prepare=Preparation(frames=6))
    with pytest.raises(InputError, match=r"save it as \(N, C, F, H, W\) or \(N, F, H, W, C\)"):
        source_of(np.zeros((2, 3, 5, 8, 3), np.uint8))


def test_folders_that_are_no_videos_or_two(clips: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(pixels(0)[0]).save(clips / "cover.jpg")
    with pytest.raises(InputError, match=r"holds both images, which would be the frames of one video, and a\.mp4"):
        opened(clips)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no videos"):
        opened(tmp_path / "empty")


def test_files_that_cannot_be_read(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (clips / "a.mp4").read_bytes()
    for content in (b"", b"no video", whole[: len(whole) // 2]):
        (clips / "a.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mp4 cannot be read as a video .*skip_bad=True"):
            opened(clips)
        found = opened(clips, skip_bad=True)
        assert len(found) == 4
        assert [name for name, _ in found.skipped] == ["a.mp4"]
    (clips / "a.mp4").write_bytes(whole)
    source = opened(clips)
    shutil.rmtree(clips / "cat" / "walk")
    with pytest.raises(InputError, match=r"walk cannot be read"):
        source.read([3])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"a\.mp4 needs the package av: pip install 'odeddim\[video\]'"):
        opened(clips)


def test_fingerprints_are_of_contents(clips: Path, tmp_path: Path) -> None:
    before = opened(clips).fingerprint()
    copy = Path(shutil.copytree(clips, tmp_path / "copy"))
    assert opened(copy).fingerprint() == before
    PIL.Image.fromarray(pixels(9)[0]).save(copy / "cat" / "walk" / "12.png")
    assert opened(copy).fingerprint() != before
    assert opened(copy).fingerprint(3) == opened(clips).fingerprint(3)


def test_the_order_of_frames() -> None:
    names = ["10.png", "2.png", "a10.png", "a9b2.png", "a9b11.png", "002.png"]
    assert sorted(names, key=videos._in_order) == ["002.png", "2.png", "10.png", "a9b2.png", "a9b11.png", "a10.png"]


# Written.

NAMES = ["cat/a.mp4", "walk"]
MADE = torch.stack([as_tensor(pixels(seed)) for seed in range(2)])
FILES = {
    "mp4": ["cat/a.mp4", "walk.mp4"],
    "webp": ["cat/a.webp", "walk.webp"],
    "png": [f"{name}/{number:04d}.png" for name in ("cat/a", "walk") for number in range(FRAMES)],
}


def written(to: Path, format: str | None, *, overwrite: bool = False) -> list[tuple[int, int]]:
    """Write what is not there yet; what that was."""
    done = []
    pictures = Pictures(to, format)
    with open_output(pictures, NAMES, {"a": 1}, shape=MADE.shape[1:], overwrite=overwrite) as out:
        assert isinstance(out, Folder)
        for start, stop in out.batches(1):
            out.write(start, stop, MADE[start:stop], {"margin": torch.tensor([float(start)], dtype=torch.float64)})
            done.append((start, stop))
        assert [figure for _, figure in out.figures("margin")] == [0.0, 1.0]
    return done


@pytest.mark.parametrize("format", FILES)
def test_a_folder_of_videos(tmp_path: Path, format: str) -> None:
    to = tmp_path / "out"
    assert written(to, None if format == "mp4" else format) == [(0, 1), (1, 2)]
    there = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    assert there == sorted([*FILES[format], "odeddim.json"])
    again = opened(to)
    assert again.shape == MADE.shape[1:]
    if format == "mp4":
        assert float((again[:] - MADE).abs().mean()) < 0.1
        with av.open(str(to / "walk.mp4")) as container:
            assert container.streams.video[0].average_rate == 16
    else:
        assert torch.equal(to_bytes(again[:]), to_bytes(MADE))
    contents = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    assert written(to, format) == []  # all of it is there
    # What is lost is made again, with the same bytes; what is damaged, or another's, is not taken for done.
    last = to / FILES[format][-1]
    last.unlink()
    assert written(to, format) == [(1, 2)]
    assert {path: path.read_bytes() for path in contents} == contents
    damaged = to / FILES[format][0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(InputError, match="is damaged, or another file"):
        written(to, format)
    assert written(to, format, overwrite=True) == [(0, 1), (1, 2)]
    assert {path: path.read_bytes() for path in contents} == contents
    other = "png" if format != "png" else "webp"
    with pytest.raises(InputError, match="format"):
        written(to, other)


def test_frames_of_others_are_not_replaced(tmp_path: Path) -> None:
    """Nor are frames left that would stand behind those of a shorter video."""
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "0001.png").write_bytes(b"mine")
    (tmp_path / "walk" / "0099.png").write_bytes(b"mine too")
    with pytest.raises(InputError, match=r"walk/0001\.png is there already"):
        written(tmp_path, "png")
    assert (tmp_path / "walk" / "0001.png").read_bytes() == b"mine"
    written(tmp_path, "png", overwrite=True)
    with open_output(Pictures(tmp_path, "png"), NAMES, {}, shape=(3, 2, HEIGHT, WIDTH), overwrite=True) as out:
        out.write(0, 2, MADE[:, :, :2])
    assert sorted(path.name for path in (tmp_path / "cat" / "a").iterdir()) == ["0000.png", "0001.png"]
    assert sorted(path.name for path in (tmp_path / "walk").iterdir()) == ["0000.png", "0001.png", "0099.png"]


def test_one_file_of_videos(tmp_path: Path) -> None:
    for name in ("out.h5", "out.npz"):
        with open_output(tmp_path / name, NAMES, {}, shape=MADE.shape[1:]) as out:
            out.write(0, 2, MADE)
        assert torch.equal(odeddim.open_images(tmp_path / name)[:], MADE)
        assert list(odeddim.open_images(tmp_path / name).names) == NAMES


def test_places_for_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"s\.png would show images, and these are videos"):
        open_output(tmp_path / "s.png", NAMES, {}, shape=MADE.shape[1:])
    with pytest.raises(InputError, match="format of videos 'jpeg'"):
        open_output(Pictures(tmp_path / "o", "jpeg"), NAMES, {}, shape=MADE.shape[1:])
    with pytest.raises(InputError, match="format of images 'mp4'"):
        open_output(Pictures(tmp_path / "o", "mp4"), NAMES, {}, shape=(3, 8, 8))
    with pytest.raises(InputError, match="fps=0"):
        Pictures(tmp_path / "o", fps=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"an MP4 needs the package av.*format=png for folders of frames"):
        open_output(tmp_path / "o", NAMES, {}, shape=MADE.shape[1:])
    assert not (tmp_path / "o").exists()
