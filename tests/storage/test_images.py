"""Images: every format gives the same tensors, wrong files one sentence naming them; writing is exact and atomic."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from odeddim.storage.atomic import replace_by
from odeddim.storage.images import ImageSource, check_shape, open_images
from odeddim.storage.outputs import open_output
from odeddim.storage.png import encoded, to_bytes
from odeddim.types import InputError

GRAY = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)  # (N, H, W)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 6, 4, 3), np.uint8)  # (N, H, W, C)


def idx(images: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, images.ndim]) + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.tobytes()


def npy(images: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, images)
    return file.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def hdf5(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return buffer.getvalue()


def png(image: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def folder_of(folder: Path, images: np.ndarray[Any, Any]) -> Path:
    for i, image in enumerate(images):
        place = folder / ("deep" if i % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(png(image))
    return folder


def npz_stored(**arrays: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FORMATS: dict[str, Callable[[np.ndarray[Any, Any]], bytes]] = {
    "npy": npy,
    "npy, by columns": lambda a: npy(np.asfortranarray(a)),
    "npz, stored": lambda a: npz_stored(labels=np.arange(5), images=a),
    "npz, by columns": lambda a: npz(images=np.asfortranarray(a)),
    "npz, stored by columns": lambda a: npz_stored(images=np.asfortranarray(a)),
    "npz": lambda a: npz(images=a, labels=np.arange(5)),
    "npz, the only one": lambda a: npz(x=a, labels=np.arange(5)),
    "HDF5": lambda a: hdf5(images=a, other=a),
    "HDF5, in a group": lambda a: hdf5(**{"group/x": a, "labels": np.arange(5)}),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("layout", ["NHW", "NCHW of 1", "NHWC of 1", "NHWC", "NCHW"])
def test_arrays(tmp_path: Path, make: Callable[[np.ndarray[Any, Any]], bytes], layout: str) -> None:
    stored, want = {
        "NHW": (GRAY, GRAY[:, None]),
        "NCHW of 1": (GRAY[:, None], GRAY[:, None]),
        "NHWC of 1": (GRAY[..., None], GRAY[:, None]),
        "NHWC": (COLOUR, np.moveaxis(COLOUR, -1, 1)),
        "NCHW": (np.moveaxis(COLOUR, -1, 1), np.moveaxis(COLOUR, -1, 1)),
    }[layout]
    (tmp_path / "data").write_bytes(make(stored))
    source = open_images(tmp_path / "data")
    expected = torch.from_numpy(want.astype(np.float64) / 127.5 - 1)
    assert (len(source), source.shape) == (5, want.shape[1:])
    assert source.read().dtype == torch.float32
    assert torch.allclose(source.read().double(), expected, atol=1e-7)
    assert torch.equal(to_bytes(source.read()), torch.from_numpy(np.ascontiguousarray(want)))
    assert torch.equal(source[1:3], source.read()[1:3])
    assert torch.equal(source[3:9], source.read()[3:])
    assert source[5:9].shape == (0, *source.shape)
    assert torch.equal(source.read([4, 0, 0, 2]), source.read()[[4, 0, 0, 2]])
    assert torch.equal(source.read([-1, 1]), source.read()[[-1, 1]])
    with pytest.raises(IndexError):
        source.read([0, 5])


@pytest.mark.parametrize("pack", [idx, lambda a: gzip.compress(idx(a))], ids=["plain", "gzip"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_idx(tmp_path: Path, pack: Callable[[np.ndarray[Any, Any]], bytes], count: int) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(pack(GRAY[:count]))
    source = open_images(tmp_path / "images-idx3-ubyte")
    assert source.shape == (1, 6, 4)
    assert np.array_equal(to_bytes(source.read())[:, 0].numpy(), GRAY[:count])


def test_a_folder_is_sorted_and_deep(tmp_path: Path) -> None:
    folder_of(tmp_path, COLOUR)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_images(tmp_path)
    assert list(source.names) == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    want = np.moveaxis(COLOUR[[0, 2, 4, 1, 3]], -1, 1)
    assert np.array_equal(to_bytes(source.read()).numpy(), want)
    assert np.array_equal(to_bytes(source.read([3, 0])).numpy(), want[[3, 0]])
    (tmp_path / "0.png").unlink()  # they are read when asked for, and not before
    assert len(source[1:]) == 4
    with pytest.raises(InputError, match=r"0\.png"):
        source[:1]


def tree(folder: Path) -> Path:
    """Files whose order is easily got wrong, and what else lies about in folders."""
    names = ["b.png", "a.png", "a/z.PNG", "a/.hidden.jpg", "a-b.png", "a.b/x.png", "a/b/c/d.png", "a/b.png", "B.png"]
    for name in [*names, "ä.png", "empty/no image.txt", "folder.png/0.png", ".png", "a.png.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(GRAY[0]))
    (folder / "link.png").symlink_to("b.png")
    (folder / "broken.png").symlink_to("nowhere")
    (folder / "linked").symlink_to("a")
    (folder / "round.png").symlink_to(folder)
    return folder


def test_the_order_is_that_of_the_whole_paths(tmp_path: Path) -> None:
    tree(tmp_path)
    want = sorted(
        file.relative_to(tmp_path).as_posix()
        for file in tmp_path.rglob("*")
        if file.suffix.lower() == ".png" or file.suffix == ".jpg"
        if file.is_file() and not file.name.startswith(".")
    )
    assert list(open_images(tmp_path).names) == want
    assert want.index("a-b.png") < want.index("a.png") < want.index("a/b.png") < want.index("a/b/c/d.png")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    try:
        (tmp_path / name).write_bytes(png(GRAY[0]))
    except (OSError, UnicodeError):
        pytest.skip("this file system wants names to be text")
    source = open_images(tmp_path)
    assert list(source.names) == [name]
    assert source.read().shape == (1, 1, 6, 4)
    assert len(source.fingerprint()) == 64


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, GRAY)
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"deep cannot be read \(Permission denied\)"):
        open_images(tmp_path)


# A list of files on standard input.


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


LISTS = {
    "lines": b"deep/1.png\n4.png\n0.png\n4.png\n",
    "no end": b"deep/1.png\n4.png\n0.png\n4.png",
    "blank lines": b"\n \ndeep/1.png\n\n4.png\n0.png\n4.png\n\n",
    "Windows": b"deep/1.png\r\n4.png\r\n0.png\r\n4.png\r\n",
    "zero bytes": b"deep/1.png\x004.png\x000.png\x004.png\0",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("path", ["-", Path("-")])
def test_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, path: str | Path) -> None:
    folder_of(tmp_path, COLOUR)
    monkeypatch.chdir(tmp_path)
    stdin(monkeypatch, content)
    source = open_images(path)
    assert source.names[:] == ["deep/1.png", "4.png", "0.png", "4.png"]
    assert np.array_equal(to_bytes(source.read()).numpy(), np.moveaxis(COLOUR[[1, 4, 0, 4]], -1, 1))


def test_a_long_list_of_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lines lie across the blocks that are read.
    monkeypatch.setattr("odeddim.storage.image_files._LONGEST_PATH", 50 + len(str(tmp_path)))
    (tmp_path / "two\nlines.png").write_bytes(png(GRAY[0]))
    folder_of(tmp_path, GRAY)
    files = [str(tmp_path / name) for name in ["0.png", "deep/1.png", "2.png"] * 40]
    stdin(monkeypatch, "\n".join(files).encode())
    assert list(open_images("-").names) == files
    files.append(str(tmp_path / "two\nlines.png"))
    stdin(monkeypatch, "\0".join(files).encode())
    assert list(open_images("-").names) == files


def test_lists_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(content: bytes, says: str) -> None:
        stdin(monkeypatch, content)
        with pytest.raises(InputError, match=says) as caught:
            open_images("-")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    folder_of(tmp_path, GRAY)
    (tmp_path / "odd.png").write_bytes(png(COLOUR[0]))
    monkeypatch.chdir(tmp_path)
    refused(b"", "is empty")
    refused(b"\n  \n", "is empty")
    refused(b"0.png\n\nnowhere.png\n", "line 3 .*names no file: 'nowhere.png'")
    refused(b"0.png\ndeep\n", "line 2 .*names no file: 'deep'")
    refused(b"0.png\n" + b"x" * 10**6, "line 2 .*names no file: 'xxx")
    refused(b"0.png\nodd.png\n2.png\n", r"odd\.png is 3×6×4 .* but 0\.png is 1×6×4")


# Whether it is the same source.


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npy", "npz", "h5", "png", "folder", "list"])
def test_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def fingerprint(images: np.ndarray[Any, Any], **options: Any) -> str:
        place = tmp_path / ("list" if kind == "list" else "x")
        if kind in ("folder", "list"):
            folder_of(place, images)
        else:
            place.write_bytes({**GOOD, "png": png(images[0]), **packed(images)}[kind])
        for folder, _, files in os.walk(tmp_path):
            for file in files:  # copied elsewhere, files have other times
                os.utime(Path(folder) / file, (1, 1))
        if kind == "list":
            monkeypatch.chdir(place)
            stdin(monkeypatch, b"0.png\ndeep/1.png\n")
        found = open_images("-" if kind == "list" else place, **options).fingerprint()
        assert len(bytes.fromhex(found)) == 32
        return found

    first = fingerprint(GRAY)
    assert fingerprint(GRAY) == first
    assert fingerprint(GRAY, channels=3) != first
    assert fingerprint(np.roll(GRAY, 1)[:, :5]) != first
    if kind in ("idx", "npy", "npz"):  # of compressed content, and of files, the size may stay
        assert fingerprint(np.roll(GRAY, 1)) != first
    assert fingerprint(GRAY) == first


def packed(images: np.ndarray[Any, Any]) -> dict[str, bytes]:
    return {
        "idx": idx(images),
        "idx.gz": gzip.compress(idx(images), mtime=0),
        "npy": npy(images),
        "npz": npz(images=images),
        "h5": hdf5(images=images),
    }


def test_the_fingerprint_of_a_folder_knows_names_and_sizes(tmp_path: Path) -> None:
    folder_of(tmp_path, GRAY)
    source = open_images(tmp_path)
    first = source.fingerprint()
    (tmp_path / "0.png").rename(tmp_path / "1.png")
    assert open_images(tmp_path).fingerprint() != first
    with pytest.raises(InputError, match=r"0\.png cannot be read"):
        source.fingerprint()
    (tmp_path / "1.png").rename(tmp_path / "0.png")
    assert open_images(tmp_path).fingerprint() == first
    with open(tmp_path / "0.png", "ab") as file:
        file.write(b"x")
    assert source.fingerprint() != first


def test_the_fingerprint_of_a_source_of_ones_own(tmp_path: Path) -> None:
    def made(names: list[str]) -> str:
        return ImageSource((1, 2, 2), names, lambda rows: torch.zeros(len(rows), 1, 2, 2)).fingerprint()

    assert made(["a", "b"]) == made(["a", "b"])
    assert len({made(["a", "b"]), made(["b", "a"]), made(["ab", ""]), made(["a"])}) == 4


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(GRAY[0]))
    source = open_images(tmp_path / "cat.png")
    assert (list(source.names), source.shape) == (["cat.png"], (1, 6, 4))
    assert np.array_equal(to_bytes(source.read())[0, 0].numpy(), GRAY[0])


def test_channels_are_converted_alike(tmp_path: Path) -> None:
    folder_of(tmp_path / "files", COLOUR[:1])
    (tmp_path / "array.npy").write_bytes(npy(COLOUR[:1]))
    files, array = (open_images(tmp_path / name, channels=1) for name in ("files", "array.npy"))
    assert files.shape == array.shape == (1, 6, 4)
    assert torch.allclose(files.read(), array.read(), atol=1.01 / 127.5)  # Pillow rounds to 8 bits
    (tmp_path / "gray.npy").write_bytes(npy(GRAY))
    colour = open_images(tmp_path / "gray.npy", channels=3)
    assert colour.shape == (3, 6, 4)
    assert np.array_equal(to_bytes(colour.read()), np.repeat(GRAY[:, None], 3, axis=1))
    with pytest.raises(InputError, match="1 or 3 channels"):
        open_images(tmp_path / "gray.npy", channels=2)


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = np.zeros((16, 8, 3), np.uint8)
    image[:8] = 255
    (tmp_path / "photo.jpg").write_bytes(png(image, "JPEG", quality=100, exif=exif))
    source = open_images(tmp_path / "photo.jpg")
    assert source.shape == (3, 8, 16)
    assert float(source.read()[0, :, :, 10:].min()) > 0.9  # what was above is now on the right
    assert float(source.read()[0, :, :, :6].max()) < -0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_keep_their_range_or_are_stretched(tmp_path: Path, dtype: type) -> None:
    minus_one_to_one = np.array([-1, -0.5, 0, 1], dtype).reshape(1, 1, 2, 2)
    zero_to_one = np.array([0, 0.25, 0.5, 1], dtype).reshape(1, 1, 2, 2)
    for stored, want in ((minus_one_to_one, [-1, -0.5, 0, 1]), (zero_to_one, [-1, -0.5, 0, 1])):
        (tmp_path / "x.npy").write_bytes(npy(stored))
        x = open_images(tmp_path / "x.npy").read()
        assert x.dtype == torch.float32
        assert x.flatten().tolist() == want


def test_the_range_that_odeddim_declares_holds(tmp_path: Path) -> None:
    images = torch.tensor([0.0, 0.5, 1.25, 0.75]).reshape(1, 1, 2, 2).expand(3, 1, 2, 2)  # decoded images overshoot
    with open_output(tmp_path / "x.h5", ["a", "b", "c"], {}) as out:
        out.write(0, 3, images)
    source = open_images(tmp_path / "x.h5")
    assert torch.equal(source.read(), images)
    assert list(source.names) == ["a", "b", "c"]


ONE = np.zeros((2, 1, 4, 4))
WRONG = {
    "beyond": (npy(ONE + 1.5), r"floats from 1\.5 to 1\.5"),
    "0..255 as floats": (npy(np.arange(32.0).reshape(2, 1, 4, 4)), "floats from 0 to 31"),
    "NaN": (npy(np.stack([ONE[0], ONE[0] * np.nan])), "image 1 of .* holds NaN"),
    "infinite": (npy(np.stack([ONE[0], ONE[0] + np.inf])), "image 1 of .* holds NaN or infinite"),
    "integers": (npy(ONE.astype(np.int64)), "holds int64 values"),
    "pickle": (npy(np.array([{"a": 1}] * 3)), "cannot be read as a numpy array"),
    "pickle in npz": (npz(images=np.array([{"a": 1}] * 3)), "cannot be read as an npz file"),
    "two axes": (npy(GRAY[0]), r"shape \(6, 4\)"),
    "one colour image or gray ones": (npy(COLOUR[0]), "one colour image or 6 gray ones"),
    "either": (npy(np.zeros((2, 3, 4, 3), np.uint8)), "either axis could be the channels"),
    "neither": (npy(np.zeros((2, 4, 4, 2), np.uint8)), "neither axis has 1 or 3 channels"),
    "no images": (npy(np.zeros((0, 1, 4, 4), np.uint8)), "holds no images"),
    "no pixels": (npy(np.zeros((2, 1, 0, 4), np.uint8)), "holds no images"),
    "two candidates": (npz(a=GRAY, b=GRAY), r"it has: a, b"),
    "nothing": (npz(), "it has: nothing"),
    "labels": (idx(np.arange(5, dtype=np.uint8)), r"1 axes.* not of labels"),
    "IDX floats": (b"\0\0\x0d\x03" + bytes(12), "type 0x0d"),
    "IDX longer": (idx(GRAY) + b"x", "longer than the 5×6×4 values"),
    "IDX of exabytes": (b"\0\0\x08\x03" + b"\xff" * 12, "cut off: 0 of"),
    "IDX empty": (idx(GRAY[:0]), "holds no images"),
    "names": (hdf5(images=GRAY, names=["a"]), "5 images and 1 names"),
    "no file at all": (b"", "cannot be read as an image"),
    "text": (b"hello", "cannot be read as an image"),
    "32 bits": (png(GRAY[0].astype(np.int32), "TIFF"), "whole numbers of 32 bits: save it with 16"),
}


@pytest.mark.parametrize(("content", "says"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_in_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        open_images(tmp_path / "given").read()
    assert str(tmp_path / "given") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_is_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odeddim.storage.images._BLOCK", 2 * 4 * 4 * 8)
    (tmp_path / "x.npy").write_bytes(npy(np.where(np.arange(7) == 5, np.nan, 0.0)[:, None, None, None] + ONE[:1]))
    with pytest.raises(InputError, match="image 5 of"):
        open_images(tmp_path / "x.npy")


def test_npz_beside_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(npz(images=GRAY, notes=np.array([{"a": 1}])))
    assert len(open_images(tmp_path / "x.npz")) == 5


def test_latents_are_not_images(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["xbar"] = ONE
        file.attrs["format"] = "odeddim latents"
    with pytest.raises(InputError, match="holds latents, not images"):
        open_images(tmp_path / "z.h5")


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*No such file"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        open_images(tmp_path)


def test_the_odd_one_out_is_named_when_the_folder_is_opened(tmp_path: Path) -> None:
    folder_of(tmp_path, COLOUR)
    (tmp_path / "deep" / "2.png").write_bytes(png(np.zeros((7, 4, 3), np.uint8)))
    with pytest.raises(InputError, match=r"deep/2\.png is 3×7×4 .* but 0\.png is 3×6×4"):
        open_images(tmp_path)
    (tmp_path / "deep" / "2.png").write_bytes(png(GRAY[0]))
    with pytest.raises(InputError, match=r"deep/2\.png is 1×6×4 .* but 0\.png is 3×6×4"):
        open_images(tmp_path)
    assert len(open_images(tmp_path, channels=3)) == 6


def test_files_that_change_while_they_are_used(tmp_path: Path) -> None:
    folder_of(tmp_path, COLOUR)
    source = open_images(tmp_path)
    whole = (tmp_path / "0.png").read_bytes()
    for content, says in (
        (png(COLOUR[0, :5]), r"0\.png is 3×5×4 .* but 0\.png is 3×6×4"),
        (png(GRAY[0]), r"0\.png is 1×6×4"),
        (whole[:-40], r"0\.png cannot be read as an image \(.*truncated"),
        (whole[:20], r"0\.png cannot be read as an image"),
    ):
        (tmp_path / "0.png").write_bytes(content)
        assert source[1:3].shape == (2, 3, 6, 4)
        with pytest.raises(InputError, match=says) as caught:
            source[:2]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_kinds_of_image_files(tmp_path: Path, kind: str) -> None:
    for suffix in (kind.lower(), "png"):  # what a file is, its first bytes say
        (tmp_path / f"x.{suffix}").write_bytes(png(COLOUR[0], kind))
        assert open_images(tmp_path / f"x.{suffix}").shape == (3, 6, 4)


def test_no_file_can_start_another_program(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(COLOUR[0], "EPS"))  # Pillow would give it to Ghostscript
    with pytest.raises(InputError, match="cannot be read as an image"):
        open_images(tmp_path)


def test_check_shape() -> None:
    check_shape(open_images(), (1, 28, 28), "here")
    with pytest.raises(InputError, match=r"images of here are 1×28×28 .* takes 3×32×32"):
        check_shape(open_images(), (3, 32, 32), "here")


def test_the_sample_is_the_first_of_the_test_set() -> None:
    source = open_images()
    assert (len(source), source.shape) == (256, (1, 28, 28))
    x = source.read()
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert 0.2 < float((x + 1).mean()) / 2 < 0.35  # Fashion-MNIST's mean is 0.286


GOOD = {
    "idx": idx(GRAY),
    "idx.gz": gzip.compress(idx(GRAY)),
    "npy": npy(GRAY),
    "npz": npz(images=GRAY),
    "h5": hdf5(images=GRAY),
    "png": png(GRAY[0]),
    "jpg": png(COLOUR[0], "JPEG"),
}


def read_or_refuse(path: Path) -> Tensor | None:
    """The images, or None if they were refused by name; any other error is the test's failure."""
    try:
        return open_images(path).read()
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


# Always the same damage: one in a million can crash the HDF5 library itself, and that would be found by bad luck only.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", GOOD)
@settings(derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Cut anywhere, or with bytes overwritten (mostly in the header): never another error than ours."""
    content = bytearray(GOOD[kind])
    path = tmp_path / f"x.{kind}"
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
        if kind in ("idx", "idx.gz"):
            path.write_bytes(content)
            with pytest.raises(InputError):
                open_images(path)
            return
    else:
        where = st.one_of(st.integers(0, min(40, len(content) - 1)), st.integers(0, len(content) - 1))
        for place in data.draw(st.lists(where, min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    x = read_or_refuse(path)
    assert x is None or (x.ndim == 4 and float(x.abs().max()) <= 1)


@given(st.binary(max_size=64))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_after_an_idx_magic(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    for whole in (b"\0\0\x08\x03" + content, gzip.compress(b"\0\0\x08\x03" + content), b"\x1f\x8b" + content):
        path.write_bytes(whole)
        x = read_or_refuse(path)
        assert x is None or x.numel() == len(content) - 12  # three sizes, and then exactly as many bytes


# Writing.


def test_every_byte_survives(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    (tmp_path / "in.npy").write_bytes(npy(every.reshape(1, 1, 16, 16)))
    images = open_images(tmp_path / "in.npy").read()
    (tmp_path / "a.png").write_bytes(encoded(images[0], tmp_path / "a.png"))
    assert np.array_equal(np.array(PIL.Image.open(tmp_path / "a.png")), every[0])


def test_rounding() -> None:
    x = torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.0, 3.0])
    assert to_bytes(x).tolist() == [0, 0, 0, 1, 255, 255, 255]
    with pytest.raises(InputError, match="NaN"):
        to_bytes(torch.tensor([0.0, float("nan")]))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_by(tmp_path / "x.png", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"x\.png cannot be written \(No space left"):
        replace_by(tmp_path / "x.png", b"after")
    assert (tmp_path / "x.png").read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_a_disk_that_takes_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:3])

    monkeypatch.setattr("builtins.open", lambda path, mode, **_: Slow(path, mode))
    replace_by(tmp_path / "x.png", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "x.png").read_bytes() == b"0123456789"


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "y.png").write_bytes(b"before")
    (tmp_path / "x.png").symlink_to("below/y.png")
    replace_by(tmp_path / "x.png", b"after")
    assert (tmp_path / "x.png").is_symlink()
    assert (tmp_path / "below" / "y.png").read_bytes() == b"after"


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(InputError, match=r"x\.png is a folder"):
        replace_by(tmp_path / "x.png", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_what_no_png_can_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        encoded(torch.zeros(2, 4, 4), tmp_path / "x.png")
