"""Sheets: bare pixels wherever they are put, and text that fits and hides nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiles

from odeddim.storage.image_runs import Images
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.png import to_bytes
from odeddim.storage.sheets import Captions, Layout, save_sheet, shortened, title_of, titles
from odeddim.types import InputError


def noise(count: int, *shape: int) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def drawn(path: Path, images: torch.Tensor, captions: Captions, **how: object) -> tuple[Layout, np.ndarray]:  # type: ignore[type-arg]
    layout = Layout.of(len(images), images.shape[1:], captions, **how)  # type: ignore[arg-type]
    save_sheet(((image, {}) for image in images), path, layout, captions)
    return layout, np.asarray(PIL.Image.open(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("scale", "panes"), [(1, 1), (3, 1), (5, 2)])
def test_every_pixel_is_where_it_belongs(tmp_path: Path, channels: int, scale: int, panes: int) -> None:
    """And, with all images cut out, nothing but text is left: gray on white."""
    images = noise(5, channels, 9, 14 * panes)
    captions = Captions(lambda i, _: (f"image {i}", "more"), lines=2, heads=("left", "right"), panes=panes, columns=2)
    layout, sheet = drawn(tmp_path / "s.png", images, captions, scale=scale, labels=True)
    assert sheet.shape[:2] == layout.size[::-1]
    rest = sheet.copy()
    for i, image in enumerate(images):
        for pane, one in enumerate(image.chunk(panes, dim=2)):
            left, top = layout.place(i, pane)
            tile = np.s_[top : top + 9 * scale, left : left + 14 * scale]
            bare = to_bytes(one).movedim(0, -1).squeeze(-1).numpy()
            assert np.array_equal(sheet[tile], bare.repeat(scale, 0).repeat(scale, 1)), i
            rest[tile] = 255
    assert (rest < 100).any()
    assert rest.min() >= 26
    assert channels == 1 or (rest == rest[..., :1]).all()
    # The sixth place is empty, and so is the margin.
    left, top = layout.place(5)
    assert (rest[top:, left:] == 255).all()
    assert (rest[:, :4] == 255).all()


@pytest.mark.parametrize(
    ("size", "scale", "labels"), [(28, 4, True), (32, 4, True), (64, 2, True), (100, 2, True), (512, 1, True)]
)
def test_by_default_images_can_be_seen(size: int, scale: int, labels: bool) -> None:
    layout = Layout.of(6, (1, size, size), Captions(lambda i, _: ("x",)))
    assert (layout.scale, layout.font > 0) == (scale, labels)
    assert min(layout.pane) >= 112


def test_bare_pixels_and_large_sheets(tmp_path: Path) -> None:
    layout = Layout.of(6, (1, 28, 28), titles(["x"] * 6), scale=1)
    assert (layout.font, layout.foot, layout.head) == (0, 0, 0)  # no text fits on 28 pixels
    assert Layout.of(6, (1, 28, 28), titles(["x"] * 6), scale=1, labels=True).font > 0
    wide = Layout.of(4000, (3, 28, 28), Captions())
    assert max(wide.size) <= 8192 < max(Layout.of(4000, (3, 28, 28), Captions(), scale=wide.scale + 1).size)
    with pytest.raises(InputError, match=r"a sheet of [\d,]+ × [\d,]+ pixels is too large: give a lower scale=..."):
        Layout.of(4000, (3, 28, 28), Captions(), scale=100)
    with pytest.raises(InputError, match="there are no images"):
        Layout.of(0, (3, 28, 28), Captions())
    with open_output(Pictures(tmp_path / "s.png", scale=200), ["x"] * 4000, {}) as out:
        assert next(out.batches(2)) == (0, 2)
        with pytest.raises(InputError, match="is too large"):  # before anything is computed that would be lost
            out.write(0, 2, torch.zeros(2, 1, 28, 28))
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=40), st.integers(1, 30))
def test_text_fits_and_is_plain(text: str, width: int) -> None:
    line = shortened(text, lambda words: len(words) <= width)
    assert len(line) <= width
    assert all(" " <= c <= "~" or c == "…" for c in line)


def test_text_keeps_both_ends() -> None:
    fits = lambda words: len(words) <= 9  # noqa: E731
    assert shortened("photos/cat/0001", fits) == "phot…0001"
    assert shortened("café.png", fits) == "cafe.png"
    assert shortened("猫.png", fits) == "?.png"
    assert shortened("a\x1b[2J\nb", lambda words: True) == r"a\x1b[2J\nb"
    assert shortened("wide", lambda words: not words) == ""
    assert title_of("cat/1.JPG") == "cat/1"
    assert title_of("v1.2") == "v1.2"
    assert title_of(".png") == ".png"


def test_a_sheet_goes_on_and_says_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop; the figures written with the images reach the captions, and the parts are gone."""
    told: list[tuple[int, Mapping[str, float]]] = []

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        told.append((i, dict(known)))
        return [str(i)]

    images, to = noise(7, 1, 6, 4), Pictures(tmp_path / "s.png", scale=1, labels=True)
    monkeypatch.setattr("odeddim.storage.parts.CHUNK", 2)
    for stop in (True, False):
        with open_output(to, list("abcdefg"), {}, captions=Captions(under)) as out:
            for start, end in out.batches(3):
                out.write(start, end, images[start:end], {"error": torch.arange(start, end) / 2})
                if stop:
                    break
    assert told == [(i, {"error": i / 2}) for i in range(7)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]
    with pytest.raises(InputError, match="this command with these settings has not written it"):
        open_output(Pictures(to.path, scale=2, labels=True), list("abcdefg"), {})
    with open_output(to, list("abcdefg"), {}):  # its own may be drawn again
        pass


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """400 images of float32 take 105 MB; they are drawn without ever being together."""
    names = [str(i) for i in range(400)]
    with open_output(Pictures(tmp_path / "s.png", scale=1, labels=False), names, {}) as out:
        for start, stop in out.batches(20):
            out.write(start, stop, torch.zeros(stop - start, 1, 256, 256))
        tracemalloc.start()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(out, Images)
    assert most < 40e6
    assert len(tiles(tmp_path / "s.png", 256, 256, 20, margin=18)) == 20


def test_what_no_sheet_takes(tmp_path: Path) -> None:
    for wrong, words in (
        ({"scale": 0}, "scale=0: give a whole number"),
        ({"format": "jpeg"}, "format=jpeg is for files of a folder"),
        ({"format": "gif"}, "unknown format 'gif'"),
    ):
        with pytest.raises(InputError, match=words):
            Pictures(tmp_path / "s.png", **wrong)  # type: ignore[arg-type]
    for more in ({"scale": 2}, {"labels": False}):
        with pytest.raises(InputError, match=r"=\.\.\. is for a sheet\.png"):
            Pictures(tmp_path / "out", **more)  # type: ignore[arg-type]

    def cells() -> Iterator[tuple[torch.Tensor, Mapping[str, float]]]:
        yield torch.zeros(2, 4, 4), {}

    with pytest.raises(InputError, match="1 or 3 channels"):
        save_sheet(cells(), tmp_path / "s.png", Layout.of(1, (2, 4, 4), Captions()), Captions())
