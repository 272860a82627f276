"""Photographs of any size, depth and kind: what becomes of them, beside Pillow itself and arithmetic by hand."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.storage.images import ImageSource, open_images
from odeddim.storage.preparation import Preparation
from odeddim.types import InputError

SIZES = [(64, 48), (48, 64), (40, 40), (16, 16), (90, 7)]  # width, height
LANCZOS = PIL.Image.Resampling.LANCZOS


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def plane(values: np.ndarray[Any, Any]) -> PIL.Image.Image:
    return PIL.Image.fromarray(values)


def opened(path: Path, channels: int | None = None, **how: Any) -> ImageSource:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_images(path, channels=channels, prepare=Preparation(**how))


def tensor_of(image: PIL.Image.Image) -> Tensor:
    """Pixels of 8 bits by the documented rule u/127.5 - 1, (C, H, W)."""
    values = torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(127.5) - np.float32(1))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def cropped(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """Pillow's own resize of the largest part in the middle that has the proportions."""
    wide = min(image.width, image.height * width / height)
    high = min(image.height, image.width * height / width)
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    return image.resize((width, height), LANCZOS, box=(left, top, left + wide, top + high))


def padded(image: PIL.Image.Image, width: int, height: int, colour: str) -> PIL.Image.Image:
    share = min(width / image.width, height / image.height)
    w, h = max(1, round(image.width * share)), max(1, round(image.height * share))
    whole = PIL.Image.new("RGB", (width, height), colour)
    whole.paste(image.resize((w, h), LANCZOS), (round((width - w) / 2), round((height - h) / 2)))
    return whole


@pytest.mark.parametrize("size", [16, (16, 16), (12, 20)])
def test_photographs_of_five_sizes_beside_pillow(tmp_path: Path, size: Any) -> None:
    originals = [noise(w, h, seed) for seed, (w, h) in enumerate(SIZES)]
    for i, image in enumerate(originals):
        image.save(tmp_path / f"{i}.png")
    high, wide = (size, size) if isinstance(size, int) else size
    for how, want in (
        ({}, [cropped(image, wide, high) for image in originals]),
        ({"crop": "center"}, [cropped(image, wide, high) for image in originals]),
        ({"crop": "none"}, [image.resize((wide, high), LANCZOS) for image in originals]),
        ({"pad": True}, [padded(image, wide, high, "white") for image in originals]),
        ({"pad": True, "background": "#102030"}, [padded(image, wide, high, "#102030") for image in originals]),
    ):
        source = opened(tmp_path, resize=size, **how)
        assert source.shape == (3, high, wide)
        assert torch.equal(source.read(), torch.stack([tensor_of(image) for image in want])), how
    gray = opened(tmp_path, 1, resize=size)
    assert torch.equal(gray.read([1])[0], tensor_of(cropped(originals[1].convert("L"), wide, high)))


def test_the_crop_is_that_of_scaling_the_shorter_side_and_cutting_the_longer(tmp_path: Path) -> None:
    """As torchvision's Resize(16) and CenterCrop(16) have it."""
    smooth = noise(9, 6).resize((96, 64), PIL.Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    left = (24 - 16) // 2
    want = tensor_of(smooth.resize((24, 16), LANCZOS).crop((left, 0, left + 16, 16)))
    assert torch.equal(opened(tmp_path, resize=16).read()[0], want)


@pytest.mark.parametrize("how", [{}, {"crop": "none"}, {"pad": True, "background": "#c86432"}])
def test_one_colour_stays_that_colour(tmp_path: Path, how: Any) -> None:
    for i, size in enumerate(SIZES):
        PIL.Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"{i}.png")
    x = opened(tmp_path, resize=24, **how).read()
    assert torch.equal(x, (torch.tensor([200.0, 100.0, 50.0]) / 127.5 - 1)[None, :, None, None].expand_as(x))


def test_the_crop_keeps_the_middle(tmp_path: Path) -> None:
    values = np.zeros((5, 9), np.uint8)
    values[2, 4] = 255
    plane(values).save(tmp_path / "a.png")
    x = opened(tmp_path, resize=5).read()[0, 0]
    assert torch.equal((x == 1).nonzero(), torch.tensor([[2, 2]]))
    assert int((x == -1).sum()) == 24


def test_nothing_is_done_unasked(tmp_path: Path) -> None:
    noise(20, 10).save(tmp_path / "a.png")
    assert torch.equal(opened(tmp_path).read(), open_images(tmp_path).read())
    assert opened(tmp_path).prepared == {}
    assert opened(tmp_path, skip_bad=True).prepared == {}
    assert opened(tmp_path).fingerprint() == open_images(tmp_path).fingerprint()
    assert torch.equal(opened(tmp_path, resize=(10, 20)).read(), open_images(tmp_path).read())


def test_exif_turns_before_the_crop(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    noise(40, 24).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with PIL.Image.open(tmp_path / "a.jpg") as stored:
        turned = stored.transpose(PIL.Image.Transpose.ROTATE_270)
    assert turned.size == (24, 40)
    assert torch.equal(opened(tmp_path, resize=(20, 8)).read()[0], tensor_of(cropped(turned, 8, 20)))


@pytest.mark.parametrize("background", ["white", "black", "#ff8000"])
def test_alpha_is_laid_on_the_background_before_the_resize(tmp_path: Path, background: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (12, 12, 4), dtype=np.uint8)
    PIL.Image.fromarray(colours).save(tmp_path / "a.png")
    ground = np.array(PIL.Image.new("RGB", (1, 1), background).getpixel((0, 0)), float)
    share = colours[..., 3:] / 255
    want = share * colours[..., :3] + (1 - share) * ground
    x = opened(tmp_path, background=background).read()[0]
    assert np.abs((x.permute(1, 2, 0).numpy() + 1) * 127.5 - want).max() <= 1.01
    small = opened(tmp_path, background=background, resize=6).read()[0]
    whole = PIL.Image.fromarray(((x + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert torch.equal(small, tensor_of(whole.resize((6, 6), LANCZOS)))


# More than 8 bits.


def test_16_bits_are_kept(tmp_path: Path) -> None:
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    for name in ("a.png", "b.tif"):
        plane(ramp).save(tmp_path / name)
    want = torch.from_numpy(ramp.astype(np.float64) / 65535 * 2 - 1).float()
    x = opened(tmp_path).read()
    assert x.shape == (2, 1, 64, 64)
    assert float((x - want).abs().max()) < 1e-6
    assert x[0].unique().numel() == 4096
    small = opened(tmp_path, 3, resize=(32, 48)).read()
    assert small.shape == (2, 3, 32, 48)
    beside = np.asarray(plane(ramp.astype(np.float32)).resize((48, 32), LANCZOS, box=(0, 64 / 6, 64, 64 - 64 / 6)))
    assert float((small - torch.from_numpy(beside / 32767.5 - 1)).abs().max()) < 1e-5
    assert small[0, 0].unique().numel() > 256


def test_floats_of_one_folder_have_one_range(tmp_path: Path) -> None:
    low, high = np.linspace(-1, 0, 48, dtype=np.float32), np.linspace(0, 1, 48, dtype=np.float32)
    plane(high.reshape(6, 8)).save(tmp_path / "a.tif")
    noise(8, 6).save(tmp_path / "c.png")
    assert torch.allclose(opened(tmp_path, 1).read([0]).flatten(), torch.from_numpy(high * 2 - 1))
    plane(low.reshape(6, 8)).save(tmp_path / "b.tif")  # from here on all of them lie in [-1, 1]
    assert torch.equal(opened(tmp_path, 1).read([0, 1]).flatten(), torch.from_numpy(np.concatenate([high, low])))


def test_the_resampler_does_not_leave_the_range(tmp_path: Path) -> None:
    edge = np.repeat(np.array([[-1, 1]], np.float32), 16, axis=1).repeat(8, axis=0)
    plane(edge).save(tmp_path / "a.tif")
    x = opened(tmp_path, resize=(9, 21), crop="none").read()
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert np.abs(np.asarray(plane(edge).resize((21, 9), LANCZOS))).max() > 1.01  # as it would


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((2, 2), np.nan), "NaN or infinite"),
        (np.array([[0.0, 7.0]]), r"floats from 0 to 7: scale them to \[-1, 1"),
    ],
)
def test_floats_that_no_image_has(tmp_path: Path, values: np.ndarray[Any, Any], says: str) -> None:
    plane(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif cannot be read as an image \({says}"):
        opened(tmp_path)


def test_what_pillow_cuts_off_is_told(tmp_path: Path) -> None:
    """Pillow reads 8 of the 16 bits of colour; the file is written by hand, for it cannot write one either."""
    import struct
    import zlib

    def piece(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([n, 255] * 6) for n in (0, 128))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    content = piece(b"IHDR", head) + piece(b"IDAT", zlib.compress(rows)) + piece(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.warns(UserWarning, match="1 of 1 images have 16 bits per channel in colour: only 8 of them are read"):
        assert open_images(tmp_path).shape == (3, 2, 2)


# Animations.


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_each_frame_is_an_image(tmp_path: Path, kind: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 6), (value,) * 3) for value in (0, 102, 204)]
    more = {"lossless": True} if kind == "webp" else {}
    (tmp_path / "deep").mkdir()
    frames[0].save(tmp_path / "deep" / f"a.{kind}", save_all=True, append_images=frames[1:], **more)
    PIL.Image.new("RGB", (8, 6), "white").save(tmp_path / "b.png")
    source = opened(tmp_path, 3, frames="all")
    assert source.names[:] == ["b.png", *(f"deep/a#000{k}.{kind}" for k in range(3))]
    gray = [255, 0, 102, 204]
    for rows in (range(4), [3, 1, 2, 2, 0, 3]):
        x = (source.read(rows) + 1) * 127.5
        assert x.amax((1, 2, 3)).round().tolist() == [gray[row] for row in rows]
        assert torch.equal(x.amax((1, 2, 3)), x.amin((1, 2, 3)))
    assert len({*source.names}) == 4
    assert source.fingerprint(2) != source.fingerprint(3)
    assert len(opened(tmp_path, 3)) == 2


def test_frames_without_colour_become_what_the_others_are(tmp_path: Path) -> None:
    frames = [PIL.Image.new("L", (8, 6), 50), PIL.Image.new("RGB", (8, 6), "red")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    x = opened(tmp_path, frames="all").read()
    assert torch.allclose(x[:, :, 0, 0], torch.tensor([[50 / 127.5 - 1] * 3, [1, -1, -1]]))


# Bad files.


def whole_and_bad(folder: Path) -> None:
    for i, (width, height) in enumerate(SIZES):
        noise(width, height, i).save(folder / f"{i}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-4000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "none.png").write_bytes(b"no image")
    plane(np.full((4, 4), np.inf, np.float32)).save(folder / "wild.tif")


def test_bad_files_are_skipped_and_listed(tmp_path: Path) -> None:
    whole_and_bad(tmp_path)
    source = opened(tmp_path, resize=8, skip_bad=True)
    assert source.names[:] == [f"{i}.png" for i in range(5)]
    assert source.read().shape == (5, 3, 8, 8)
    assert source.prepared["skipped"] == 4
    reasons = dict(source.skipped)
    assert list(reasons) == ["cut.png", "empty.jpg", "none.png", "wild.tif"]
    assert "truncated" in reasons["cut.png"]
    assert "NaN or infinite" in reasons["wild.tif"]
    assert all(str(tmp_path) + "/" not in reason.split("(")[0] for reason in reasons.values())
    whole = opened(tmp_path / "0.png", resize=8).read()
    assert torch.equal(source.read([0]), whole)
    with pytest.raises(InputError, match=r"empty\.jpg cannot be read .*skip_bad=True"):
        opened(tmp_path, resize=8)


def test_nothing_but_bad_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 2 files in .* can be read: a\.png cannot be read"):
        opened(tmp_path, skip_bad=True)


def test_a_list_with_a_name_of_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nowhere.png\na.png\n")))
    source = open_images("-", prepare=Preparation(skip_bad=True))
    assert (source.names[:], [name for name, _ in source.skipped]) == (["a.png"], ["nowhere.png"])


def test_what_is_hidden_is_left_alone(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".thumbnails").mkdir()
    noise(4, 4).save(tmp_path / ".thumbnails" / "a.png")
    assert open_images(tmp_path).names[:] == ["a.png"]


# Sources that are no folder, and what is said.


def test_arrays_are_resized_channel_by_channel(tmp_path: Path) -> None:
    values = np.sign(np.random.default_rng(2).uniform(-1, 1, (2, 3, 4, 4))).astype(np.float32).repeat(4, 3).repeat(3, 2)
    np.save(tmp_path / "x.npy", values)
    source = opened(tmp_path / "x.npy", resize=(6, 8))
    assert source.shape == (3, 6, 8)
    want = [[np.asarray(plane(each).resize((8, 6), LANCZOS)) for each in image] for image in values]
    assert np.abs(want).max() > 1.01  # the filter overshoots
    assert np.array_equal(source.read().numpy(), np.array(want).clip(-1, 1))
    np.save(tmp_path / "bytes.npy", np.full((2, 9, 5, 3), (10, 20, 30), np.uint8))
    filled = opened(tmp_path / "bytes.npy", resize=9, pad=True, background="#0a141e").read()
    assert float((filled - (torch.tensor([10.0, 20, 30]) / 127.5 - 1)[None, :, None, None]).abs().max()) < 1e-6


def test_gray_and_colour_together(tmp_path: Path) -> None:
    plane(np.full((9, 6), 90, np.uint8)).save(tmp_path / "a.png")
    noise(6, 9).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png is 3×9×6 .* but a\.png is 1×9×6: resize=\.\.\. makes them one shape"):
        open_images(tmp_path)
    x = opened(tmp_path, resize=(9, 6)).read()
    assert x.shape == (2, 3, 9, 6)
    assert float((x[0] - (90 / 127.5 - 1)).abs().max()) < 1e-7


def test_a_very_long_image_is_padded(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (900, 1), "red").save(tmp_path / "a.png")
    x = opened(tmp_path, resize=8, pad=True).read()[0]
    assert x[:, 3:5].amin((1, 2)).tolist() == [1, -1, -1]
    assert float(x[:, 0].min()) == 1


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"resize": 0}, "resize=0: give one whole number"),
        ({"resize": (3, 4, 5)}, "two of them"),
        ({"resize": "large"}, "or 'model'"),
        ({"crop": "middle"}, "center"),
        ({"pad": True, "crop": "center"}, "give one of the two"),
        ({"background": "whitish"}, "is no colour"),
        ({"background": "#ff000080"}, "is transparent itself"),
        ({"frames": "some"}, "all"),
    ],
)
def test_what_no_preparation_is(said: Any, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        Preparation(**said)


def test_the_size_of_a_model(tmp_path: Path) -> None:
    noise(20, 30).save(tmp_path / "a.png")
    for asked in (Preparation(resize="model"), Preparation(crop="center"), Preparation(pad=True)):
        assert asked.resize == "model"
        assert asked.for_model((1, 28, 24)).size == (28, 24)
        with pytest.raises(InputError, match="any size: say which one with resize=SIZE"):
            asked.for_model(None)
        with pytest.raises(InputError, match=r"no model is known here .* resize=SIZE"):
            open_images(tmp_path, prepare=asked)


@pytest.mark.parametrize(
    "said",
    [{}, {"resize": 8}, {"resize": (8, 9), "crop": "none"}, {"resize": 8, "pad": True}, {"frames": "all"},
     {"background": "red", "resize": 4}],
)  # fmt: skip
def test_what_is_recorded_makes_the_same(said: Any) -> None:
    made = odeddim.Preparation(**said)
    again = Preparation.of(made.to_dict()) or Preparation()
    assert again.to_dict() == made.to_dict()
    assert (again.size, again.pad, again.frames) == (made.size, made.pad, made.frames)
    assert Preparation.of({"skipped": 3}) == Preparation(skip_bad=True)
    with pytest.raises(InputError, match="prepared as this version cannot"):
        Preparation.of({"resize": [8, 8], "resampling": "nearest"})


def test_any_image_of_pillow_can_be_prepared() -> None:
    image = noise(30, 20)
    prepare = Preparation(resize=10)
    assert torch.equal(prepare.apply(image, (3, 10, 10)), tensor_of(cropped(image, 10, 10)))
    assert torch.equal(prepare.apply(image, (1, 10, 10)), tensor_of(cropped(image.convert("L"), 10, 10)))
    assert torch.equal(Preparation().apply(image, (3, 20, 30)), tensor_of(image))
