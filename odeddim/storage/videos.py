"""Videos as one source: files that PyAV or Pillow opens, and folders whose images are the frames of one video.

Each frame is prepared as an image is (`odeddim.storage.preparation`), one after the other, and a video is read when it
is asked for. PyAV is the extra `video`; GIF and WebP need Pillow only. Sound is left out, and so are the times of
frames: a video is its frames in their order.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odeddim.storage.errors import ADVICE, read_errors
from odeddim.storage.image_files import SUFFIXES, opened_image
from odeddim.storage.names import Names
from odeddim.storage.opened_files import as_bytes, content_hash
from odeddim.storage.pictures import has_more, may_be_transparent, shape_of
from odeddim.storage.preparation import Preparation
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

BY_AV = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
"""The files that PyAV opens."""
ALONE = (*BY_AV, ".gif")
"""The files of a folder that are videos, as animated WebPs are; other images are frames of the folder's own video."""
FRAMES = tuple(suffix for suffix in SUFFIXES if suffix not in ALONE)


HERE = "."
"""The name of the video whose frames lie in the folder itself."""


def videos_below(folder: Path) -> Iterator[str]:
    """The videos in a folder and the folders in it: their paths below it, with slashes, in order.

    A video is a file, or a folder with images in it, which are its frames. What is hidden is left alone.

    Raises:
        InputError: One of the folders cannot be read, or holds both frames and videos.
    """
    yield from _videos_in(folder, "")


def _videos_in(folder: Path, above: str) -> Iterator[str]:
    try:
        with os.scandir(folder / above) as entries:
            shown = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise InputError(f"the folder {folder / above} cannot be read ({error.strerror}): move it away") from error
    films = {each.name for each in shown if _has(each, ALONE) or (_has(each, (".webp",)) and _moves(Path(each)))}
    frames = any(_has(each, FRAMES) and each.name not in films for each in shown)
    for each in shown:
        if each.name not in films and not each.is_dir(follow_symlinks=False):
            continue
        inside = [f"{above}{each.name}"] if each.is_file() else _videos_in(folder, f"{above}{each.name}/")
        for name in inside:
            if frames:
                raise InputError(
                    f"the folder {folder / above} holds both images, which would be the frames of one video, and "
                    f"{each.name}: move one of them away"
                )
            yield name
    if frames:
        yield above.rstrip("/") or HERE


def _has(entry: os.DirEntry[str], suffixes: Sequence[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file()


def _moves(path: Path) -> bool:
    """Whether an image file has several pictures; False of one that cannot be read, which is told later."""
    try:
        with opened_image(path) as image:
            return has_more(image)
    except InputError:
        return False


class OpenedVideos:
    """Videos of which rows are read when they are asked for.

    All of them are looked at at once, so that one of another shape does not stop a long run later.

    Args:
        folder: The folder of the videos.
        names: Their paths below it, one or more.
        channels: 1 for gray, 3 for colour; None for the first video's own.
        prepare: What is done to each frame, and how many frames of each video are taken.

    Attributes:
        shape: (C, F, H, W) of every video.
        names: The name of each video.
        skipped: The videos that were left out, each with the reason.
        grayed: How many of them are stored in colour and made gray, as of `ImageSource`.

    Raises:
        InputError: A video cannot be read, or has another shape than those before it.
    """

    def __init__(self, folder: Path, names: Sequence[str], channels: int | None, prepare: Preparation) -> None:
        self._folder, self._channels, self._prepare = folder, channels, prepare
        self.skipped: list[tuple[str, str]] = []
        kept, first, transparent, grayed = [], None, 0, 0
        for name in names:
            try:
                shape, may_be, colour = self._look(folder / name)
            except InputError as error:
                if not prepare.skip_bad:
                    hint = ", or leave out all such files with skip_bad=True" if str(error).endswith(ADVICE) else ""
                    raise InputError(f"{error}{hint}") from error
                self.skipped.append((name, str(error).removeprefix(f"{folder / name} ").removesuffix(ADVICE)))
                continue
            first = first or (name, shape)
            if shape != first[1]:
                raise InputError(self._other(name, shape, *first))
            kept.append(name)
            transparent, grayed = transparent + may_be, grayed + colour
        if first is None:
            raise InputError(f"none of the {len(names)} videos in {folder} can be read: {' '.join(self.skipped[0])}")
        self.names: Sequence[str] = names if len(kept) == len(names) else Names.packed(kept)
        self.shape = first[1]
        self._first = first
        self.grayed = f"{grayed} of {len(kept)} videos" if grayed else ""
        if transparent:
            ground = prepare.background
            warnings.warn(
                f"{transparent} of {len(kept)} videos may be transparent in parts: they are laid on {ground}",
                stacklevel=5,
            )

    def _look(self, path: Path) -> tuple[tuple[int, int, int, int], bool, bool]:
        """(C, F, H, W) of a video once it is prepared; whether it may be transparent in parts, and is made gray."""
        count = self._prepare.most_frames
        with read_errors(path, "a video"), contextlib.closing(frames_of(path)) as frames:
            first = next(frames, None)
            if first is None:
                raise ValueError("no frames")
            channels, *sides = shape_of(first, self._channels)
            transparent, grayed = may_be_transparent(first), channels == 1 != shape_of(first, None)[0]
            there = 1 + sum(1 for _ in frames) if self._prepare.skip_bad else count_of(path)
        if count is not None and there < count:
            raise InputError(
                f"{path} has {there} frames, fewer than frames={count}: leave it out, or give fewer frames"
            )
        height, width = self._prepare.size or sides
        return (channels, count or there, height, width), transparent, grayed

    def _other(self, name: str, shape: Sequence[int], first: str, wants: Sequence[int]) -> str:
        has, is_first = ("×".join(map(str, sizes)) for sizes in (shape, wants))
        return (
            f"{self._folder / name} is {has} (channels×frames×height×width), but {first} is {is_first}: frames=N takes "
            "the first N frames of each, and resize=... makes them one size"
        )

    def read(self, rows: Sequence[int]) -> Tensor:
        """Videos in any order, (n, C, F, H, W) float32 in [-1, 1]."""
        return torch.stack([self._one(self.names[row]) for row in rows])

    def _one(self, name: str) -> Tensor:
        path, (channels, count, height, width) = self._folder / name, self.shape
        made = torch.empty(count, channels, height, width)
        at = 0
        with read_errors(path, "a video"), contextlib.closing(frames_of(path)) as frames:
            for image in itertools.islice(frames, count):
                if image.mode == "F":
                    raise ValueError("frames of floats, whose range is not known: give an array")
                has = shape_of(image, channels)
                if self._prepare.size is None and has[1:] != (height, width):
                    raise InputError(self._other(name, (channels, count, *has[1:]), *self._first))
                made[at] = self._prepare.apply(image, (channels, height, width))
                at += 1
        if at < count:
            raise InputError(f"{path} has {at} frames that can be read, and not {count}{ADVICE}")
        return made.movedim(0, 1)

    def marks(self, count: int) -> Iterator[bytes]:
        """What tells the first `count` videos from others: their names and the contents of their files."""
        for name in self.names[:count]:
            path = self._folder / name
            with read_errors(path, "a video"):
                files = _frame_files(path) if path.is_dir() else [path]
                content = b"".join(as_bytes(file.name) + content_hash(file) for file in files)
            yield as_bytes(name) + b"\0" + content


def count_of(path: Path) -> int:
    """The number of frames of a video, by its headers where they say it."""
    if path.is_dir():
        return len(_frame_files(path))
    if path.suffix.lower() not in BY_AV:
        with opened_image(path) as image:
            return int(getattr(image, "n_frames", 1))
    with _opened_by_av(path) as container:
        stream = container.streams.video[0]
        # Without a number in the header, the packets are counted, which decodes nothing.
        return int(stream.frames) or sum(1 for packet in container.demux(stream) if packet.size)


def frames_of(path: Path) -> Generator[Image, None, None]:
    """The frames of a video as images of Pillow, one after the other and upright."""
    if path.is_dir():
        for file in _frame_files(path):
            with opened_image(file) as image:
                yield image
        return
    if path.suffix.lower() not in BY_AV:
        with opened_image(path) as image:
            for k in range(int(getattr(image, "n_frames", 1))):
                image.seek(k)
                yield image
        return
    with _opened_by_av(path) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            turn = getattr(frame, "rotation", 0)  # as telephones note it; PyAV has it from version 14 on
            yield image.rotate(turn, expand=True) if turn else image


@contextlib.contextmanager
def _opened_by_av(path: Path) -> Iterator[Any]:
    """A video opened by PyAV, which has read its header. It opens no other file than this."""
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            f"{path} needs the package av: pip install 'odeddim[video]', or give its frames as images in a folder"
        ) from error
    with open(path, "rb") as file, av.open(file, mode="r") as container:
        if not container.streams.video:
            raise ValueError("no video in it")
        yield container


def _frame_files(folder: Path) -> list[Path]:
    """The images of a folder in the order of the numbers in their names: 2.png before 10.png."""
    names = [
        name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in FRAMES and not name.startswith(".")
    ]
    return [folder / name for name in sorted(names, key=_in_order)]


def _in_order(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"\d+|\D+", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
