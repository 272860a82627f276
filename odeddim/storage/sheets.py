"""Sheets: images side by side on a light page, enlarged, with headings above the columns and captions under the images.

A pixel of an image becomes a square of `scale` × `scale` pixels of the sheet, so no value is mixed with another. The
text is set in the font that Pillow brings with it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from torch import Tensor

from odeddim.storage.atomic import plain_text, printable, replacing
from odeddim.storage.image_files import SUFFIXES
from odeddim.storage.png import picture, png_notes
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Lines = Callable[[int, Mapping[str, float]], Sequence[str]]
"""lines(i, figures): the text under image i, of which these figures are known."""

SIDE = 112  # pixels that the shorter side of an image has at least on a sheet, by default
_LABELLED = 64  # pixels of an image from which there is room for text
_WIDEST = 8192  # pixels of a sheet's side, by default
_MOST_PIXELS = 1 << 29
_PAPER, _INK, _MUTED = 255, 26, 102  # of `odeddim.bench.drawing.LIGHT`
_SMALLEST, _LARGEST = 11, 24  # pixels of text


@dataclass(frozen=True)
class Captions:
    """What a sheet says of its images.

    Attributes:
        under: The text under each image; None for none.
        lines: The most lines of this text.
        heads: Headings of the columns, from the left; where there are more columns, they begin again.
        panes: How many images each cell of the sheet has, side by side: (C, H, panes·W).
        columns: How many cells a row has; without it the sheet is about as wide as high.
    """

    under: Lines | None = None
    lines: int = 1
    heads: Sequence[str] = ()
    panes: int = 1
    columns: int | None = None


def check_images(shape: Sequence[int], where: str | Path) -> None:
    """Raise an InputError if things of a shape (C, F, H, W), which are videos, are to be drawn somewhere."""
    if len(shape) == 4:
        raise InputError(f"{where} would show images, and these are videos: give a folder, a file.h5 or a file.npz")


@dataclass(frozen=True)
class Layout:
    """Where everything is on a sheet, in pixels.

    Attributes:
        count: How many cells there are.
        columns: How many cells a row has.
        panes: How many images a cell has.
        pane: (height, width) of an image, enlarged.
        scale: How many times an image is enlarged.
        font: The size of text; 0 for a sheet without text.
        head: The height of the headings.
        foot: The height of the text under each image.
    """

    count: int
    columns: int
    panes: int
    pane: tuple[int, int]
    scale: int
    font: int
    head: int
    foot: int

    @classmethod
    def of(
        cls, count: int, shape: Sequence[int], captions: Captions, scale: int | None = None, labels: bool | None = None
    ) -> Layout:
        """The layout of cells of a shape (C, H, W).

        Args:
            count: How many cells there are.
            shape: (C, H, panes·W) of a cell.
            captions: What is said of the images.
            scale: How many times images are enlarged; None for the least with which their shorter side has 112
                pixels, or less where the sheet would have more than 8192 a side.
            labels: Whether there is text; None for text if images are at least 64 pixels wide on the sheet.

        Raises:
            InputError: There are no images, the sheet has too many pixels, or what is to be drawn are videos.
        """
        check_images(shape, "a sheet")
        if count == 0:
            raise InputError("there are no images for a sheet: give at least one")
        if scale is not None and (not isinstance(scale, int) or scale < 1):
            raise InputError(f"scale={scale}: give a whole number, 1 or more")
        height, width = shape[1], shape[2] // captions.panes
        columns = captions.columns or math.ceil(math.sqrt(count / captions.panes))

        def enlarged(scale: int) -> Layout:
            wide = width * scale
            font = min(max(wide // 8, _SMALLEST), _LARGEST) if (wide >= _LABELLED if labels is None else labels) else 0
            line, gap = math.ceil(1.3 * font), font // 3
            head = line + gap if captions.heads else 0
            foot = captions.lines * line + 2 * gap if captions.under else 0
            return cls(count, columns, captions.panes, (height * scale, wide), scale, font, head, foot)

        if scale is None:
            scale = math.ceil(SIDE / min(height, width))
            while scale > 1 and max(enlarged(scale).size) > _WIDEST:
                scale -= 1
        found = enlarged(scale)
        across, down = found.size
        if across * down > _MOST_PIXELS:
            raise InputError(
                f"a sheet of {across:,} × {down:,} pixels is too large: give a lower scale=..., or a folder in its "
                "place"
            )
        return found

    @property
    def gutter(self) -> int:
        """The space between rows, and around all cells; half of it is between the images of a cell."""
        return max(4, self.pane[1] // 28 * 2)

    @property
    def apart(self) -> int:
        """The space between columns."""
        return self.gutter if self.panes == 1 else 3 * self.gutter

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) of a cell with its text, without the space around it."""
        height, width = self.pane
        return height + self.foot, self.panes * width + (self.panes - 1) * (self.gutter // 2)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the sheet."""
        height, width = self.cell
        rows = -(-self.count // self.columns)
        return (
            self.columns * (width + self.apart) - self.apart + 2 * self.gutter,
            self.head + rows * (height + self.gutter) + self.gutter,
        )

    def place(self, cell: int, pane: int = 0) -> tuple[int, int]:
        """(left, top) of an image of a cell."""
        height, width = self.cell
        row, column = divmod(cell, self.columns)
        left = self.gutter + column * (width + self.apart) + pane * (self.pane[1] + self.gutter // 2)
        return left, self.head + self.gutter + row * (height + self.gutter)


def save_sheet(
    cells: Iterable[tuple[Tensor, Mapping[str, float]]],
    path: Path,
    layout: Layout,
    captions: Captions,
    notes: Mapping[str, str] | None = None,
    temporary: Path | None = None,
) -> None:
    """Write images on a sheet, a PNG. Besides the picture itself only one cell is held in memory.

    Args:
        cells: Each cell, (C, H, panes·W) in [-1, 1] with C = 1 or 3, and what is known of it.
        path: The file.
        layout: Where everything is.
        captions: What is said of the images.
        notes: As for `odeddim.storage.png.encoded`.
        temporary: Where the file lies until it is whole; see `odeddim.storage.atomic.replacing`.

    Raises:
        InputError: An image cannot be drawn, or the disk does not take the sheet.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    sheet = draw = font = None
    for i, (cell, known) in enumerate(cells):
        for pane, image in enumerate(cell.chunk(layout.panes, dim=2)):
            tile = picture(image, path)
            if sheet is None:
                sheet = PIL.Image.new(tile.mode, layout.size, _grey(tile.mode, _PAPER))
                draw = PIL.ImageDraw.Draw(sheet)
                if layout.font:
                    font = PIL.ImageFont.load_default(layout.font)
                    _write_heads(draw, layout, captions, font)
            height, width = layout.pane
            sheet.paste(tile.resize((width, height), PIL.Image.Resampling.NEAREST), layout.place(i, pane))
        if draw is not None and font is not None and captions.under is not None:
            left, top = layout.place(i)
            for row, line in enumerate(captions.under(i, known)[: captions.lines]):
                at = (left, top + layout.pane[0] + layout.font // 3 + row * math.ceil(1.3 * layout.font))
                _write(draw, line, at, layout.cell[1], font, _MUTED if row else _INK)
    assert sheet is not None
    with replacing(path, temporary) as place:
        sheet.save(place, format="PNG", pnginfo=png_notes(notes))


def title_of(name: str) -> str:
    """The name of an image as a caption: without the suffix that says that it is one."""
    path = PurePath(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in SUFFIXES else name


def titles(names: Sequence[str]) -> Captions:
    """The names of images as captions."""
    return Captions(lambda i, _: (title_of(names[i]),))


def shortened(text: str, fits: Callable[[str], bool]) -> str:
    """A text that fits: if it is too long, without letters in its middle, where it gets "…"."""
    text = _plain(text)
    if fits(text):
        return text
    low, high = 0, len(text)  # letters that remain
    while high - low > 1:
        kept = (low + high) // 2
        low, high = (kept, high) if fits(_without_middle(text, kept)) else (low, kept)
    return _without_middle(text, low) if low else ""


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"


def _plain(text: str) -> str:
    """A text in letters of the font, which has those of ASCII: é becomes e, and what it lacks a question mark."""
    apart = unicodedata.normalize("NFKD", printable(plain_text(text)))
    letters = (c for c in apart if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c == "…" else "?" for c in letters)


def _write_heads(draw: ImageDraw, layout: Layout, captions: Captions, font: FreeTypeFont | ImageFont) -> None:
    for number in range(layout.columns * layout.panes if captions.heads else 0):
        left, _ = layout.place(*divmod(number, layout.panes))
        head = captions.heads[number % len(captions.heads)]
        _write(draw, head, (left, layout.gutter), layout.pane[1], font, _INK)


def _write(
    draw: ImageDraw, text: str, at: tuple[int, int], width: int, font: FreeTypeFont | ImageFont, grey: int
) -> None:
    """Write a line in the middle of a width."""
    line = shortened(text, lambda words: font.getlength(words) <= width)
    left = at[0] + round((width - font.getlength(line)) / 2)
    draw.text((left, at[1]), line, fill=_grey(draw.mode, grey), font=font)


def _grey(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)
