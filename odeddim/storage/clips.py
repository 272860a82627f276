"""Videos written as files: MP4 (H.264, by PyAV), animated WebP without loss, or a folder of PNGs, a frame each.

Each says which run it belongs to, and has a checksum: notes in JSON within the file, as `odeddim.storage.lossy` has
them, or the notes and checksums of the PNGs. A folder of PNGs is whole once its last frame is there, which is written
last; that frame stands for the video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from odeddim.storage import animations, lossy, png
from odeddim.storage.atomic import replace_by, replacing, temporary_beside
from odeddim.storage.png import picture

FPS = 16
"""Frames a second by default: Wan's."""

SUFFIXES = {"mp4": ".mp4", "webp": ".webp"}
"""The formats of videos in one file."""


def save_clip(video: Tensor, path: Path, notes: Mapping[str, str], *, format: str, fps: int) -> None:
    """Write a video as one file. An MP4 does not keep the pixels exactly.

    Args:
        video: (C, F, H, W) in [-1, 1], with C = 1 or 3.
        path: The file.
        notes: What is known of the video, in ASCII; `odeddim.storage.lossy.notes_of` reads it.
        format: One of `SUFFIXES`.
        fps: Frames a second.

    Raises:
        InputError: The video cannot be written, or the disk does not take it.
    """
    frames = (picture(frame, path) for frame in video.unbind(1))
    with replacing(path, temporary_beside(path)) as place:
        animations.WRITERS[SUFFIXES[format]](place, frames, fps, json.dumps({**notes, **lossy.UNSEALED}))
        place.write_bytes(lossy.sealed(place.read_bytes()))


def last_of(count: int) -> str:
    """The name of the last frame of a video of so many frames, in its folder."""
    return _name(count - 1)


def save_frames(video: Tensor, path: Path, notes: Mapping[str, str]) -> None:
    """Write a video as a folder of PNGs; arguments as of `save_clip`, with the path of the last frame."""
    for number, frame in enumerate(video.unbind(1)):
        place = path.with_name(_name(number))
        replace_by(place, png.encoded(frame, place, notes))


def frames_at(path: Path) -> list[Path]:
    """The frames that are there of a video whose last frame has this path, and later ones of an earlier run."""
    last, there = int(path.stem), path.parent.glob("[0-9]*.png")
    numbered = (frame for frame in there if frame.stem.isdecimal())
    return [frame for frame in numbered if int(frame.stem) <= last or png.MARK in png.notes_of(frame)]


def are_whole(path: Path, mark: str) -> bool:
    """Whether all frames up to the last one, whose path is given, have a mark and fit their checksums."""
    return all(png.is_whole(path.with_name(_name(number)), mark) for number in range(int(path.stem) + 1))


def _name(number: int) -> str:
    return f"{number:04d}.png"
