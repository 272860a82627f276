"""Where images go, by the name of the output: a folder of image files, one PNG with all of them (a sheet), an HDF5 or
NPZ file, an animation.

Each of them may be interrupted, and the same command goes on. All but a folder are made of parts (see
`odeddim.storage.resumable`). A folder holds the images that are done, and `odeddim.json` in it records the run.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from odeddim.storage import clips, lossy, png
from odeddim.storage.animations import MOST_FPS, Animation, check_encoder
from odeddim.storage.atomic import mark_of, replace_by, sweep, sync_folder
from odeddim.storage.clips import FPS
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.image_runs import Frames, Images, Npz, Sheet
from odeddim.storage.names import LOCK, NOTE, Names, file_names
from odeddim.storage.png import MARK, to_bytes
from odeddim.storage.row_files import check_same, comparable, run_of
from odeddim.storage.sheets import Captions, check_images, titles
from odeddim.storage.workers import GO_ON, MEMBER, Claims, OfFirst, SharedRun, Together, begin_together, end_together
from odeddim.types import InputError, pick

AT_ONCE = 16
"""So many files of a folder are written at once."""
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""The formats of image files, and the suffixes of their names."""
OF_VIDEOS = ("mp4", "webp", "png")
"""The formats of videos in a folder, the usual one first: files, or a folder of PNGs for each."""


class Save(Protocol):
    """What writes an image or a video as a file."""

    def __call__(self, image: Tensor, path: Path, notes: Mapping[str, str], /) -> None:
        """Write it, with what is known of it; whoever calls it syncs the folder."""


def _encoded_by(encoded: Callable[[Tensor, Path, Mapping[str, str]], bytes]) -> Save:
    """What writes the content that an encoder makes."""

    def save(image: Tensor, path: Path, notes: Mapping[str, str]) -> None:
        replace_by(path, encoded(image, path, notes))

    return save


class FileKind(NamedTuple):
    """A kind of file that images or videos become.

    Attributes:
        name: The name of its format.
        suffix: What follows the stem of an image's name.
        save: What writes a file.
        is_whole: Whether a file has a mark and fits its checksums.
        notes_of: The notes in a file.
        parts: The files that are there of a video, given the path of the one that stands for it; None of one file.
        said: What the settings of a run say of it.
    """

    name: str
    suffix: str
    save: Save
    is_whole: Callable[[Path, str], bool]
    notes_of: Callable[[Path], Mapping[str, str]]
    parts: Callable[[Path], list[Path]] | None = None
    said: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Pictures:
    """Where images go, and how they are drawn or written there.

    Attributes:
        path: NAME.png is a sheet of all images, NAME.h5 and NAME.npz are files of arrays, and a name without a suffix
            is a folder of image files.
        format: The format of files in a folder. Of images: "png", the default, "jpeg" or "webp"; only PNGs keep every
            value of 8 bits. Of videos: "mp4", the default, "webp", or "png" for a folder of PNGs each; WebPs of videos
            and PNGs keep every value of 8 bits.
        scale: How many times a sheet enlarges each image; None for the least with which the shorter side of an image
            has 112 pixels.
        labels: Whether a sheet has text; None for text if images are at least 64 pixels wide on it.
        fps: Frames a second of videos that are files.

    Raises:
        InputError: A value is not one of these.

    Example:
        >>> import odeddim, pathlib
        >>> print(odeddim.jobs.Pictures(pathlib.Path("sheet.png"), scale=8))
        sheet.png
    """

    path: Path
    format: str | None = None
    scale: int | None = None
    labels: bool | None = None
    fps: int = FPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.format is not None:
            pick(self.format, (*FORMATS, *OF_VIDEOS[:1]), "format")
        if not isinstance(self.fps, (int, float)) or not 1 <= self.fps <= MOST_FPS:
            raise InputError(f"fps={self.fps}: give 1 to {MOST_FPS} frames a second")
        if self.scale is not None and self.scale < 1:
            raise InputError(f"scale={self.scale}: give a whole number, 1 or more")
        if self.format not in (None, "png") and not self.is_folder:
            raise InputError(f"format={self.format} is for files of a folder, and {self.path} is none: leave it out")
        for name in ("scale", "labels"):
            if getattr(self, name) is not None and not self.is_sheet:
                raise InputError(f"{name}=... is for a sheet.png, and {self.path} is none: leave it out")

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def of(cls, place: str | Path | Pictures) -> Pictures:
        """Pictures as they are drawn by default, if nothing is said but their path."""
        return place if isinstance(place, Pictures) else cls(Path(place))

    def kind(self, shape: Sequence[int]) -> FileKind:
        """The kind of file that each image or video of a folder becomes.

        Args:
            shape: (C, H, W) of an image, or (C, F, H, W) of a video.

        Raises:
            InputError: It is none of the formats of images, or of videos; or its encoder is missing.
        """
        if len(shape) != 4:
            name = pick(self.format or "png", FORMATS, "format of images")
            if name == "png":
                return FileKind(name, ".png", _encoded_by(png.encoded), png.is_whole, png.notes_of)
            save = _encoded_by(partial(lossy.encoded, format=name))
            return FileKind(name, FORMATS[name], save, lossy.is_whole, lossy.notes_of, said={"format": name})
        name = pick(self.format or OF_VIDEOS[0], OF_VIDEOS, "format of videos")
        said = {"format": name, **({} if name == "png" else {"fps": self.fps})}
        if name == "png":
            last = f"/{clips.last_of(shape[1])}"
            return FileKind(name, last, clips.save_frames, clips.are_whole, png.notes_of, clips.frames_at, said)
        if name == "mp4":
            check_encoder(self.path, "give format=webp for files without loss, or format=png for folders of frames")
        save = partial(clips.save_clip, format=name, fps=self.fps)
        return FileKind(name, clips.SUFFIXES[name], save, lossy.is_whole, lossy.notes_of, said=said)

    @property
    def is_folder(self) -> bool:
        """Whether the path is that of a folder, there or not."""
        return os.path.isdir(self.path) or not self.path.suffix

    @property
    def is_sheet(self) -> bool:
        """Whether the path is that of a sheet."""
        return not self.is_folder and self.path.suffix.lower() == ".png"


class Folder(SharedRun):
    """A run whose images become files in a folder and the folders in it, each named after the image it comes from.

    Args:
        folder: The folder, which is made if it is missing.
        names: The names of all images.
        settings: What the run is, as JSON can hold it.
        overwrite: Begin anew, and replace files of these names.
        kind: The kind of its files.
        of_first: The settings that a run of only the first images has. With it, the run continues such a one.

    Raises:
        InputError: Without `overwrite`: the folder has other files of these names, it holds another run, or an image
            that the run has written is damaged.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        kind: FileKind | None = None,
        of_first: OfFirst | None = None,
    ) -> None:
        self.folder = folder
        self._kind = kind = kind or Pictures(folder).kind(())
        self._suffix = kind.suffix
        self._threads = ThreadPoolExecutor(AT_ONCE, "files")  # a file waits for the disk, and several wait together
        self._held: list[tuple[int, int, list[Future[None]]]] = []
        self._names, self._files = names, Names.packed(file_names(names, self._suffix))
        self._places = sorted({folder, *(folder / above for name in self._files if (above := os.path.dirname(name)))})
        _make(folder)
        begin_together(self._begin_anew if overwrite else self._refuse_others)
        for place in self._places:
            _make(place)
        of_these = of_first and (lambda count: {**of_first(count), **kind.said})
        super().__init__(folder, len(names), {**settings, **kind.said}, folder / NOTE, folder / LOCK, of_these)

    def _refuse_others(self) -> None:
        """Refuse files of these names that no run has written here.

        The files are listed before the note is looked for: a process that begins the run at the same time writes the
        note before its first image.
        """
        there = next(self._there(), None)
        if there is not None and not (self.folder / NOTE).exists():
            raise InputError(f"{there} is there already: give another folder, or overwrite=True to replace it")

    def _there(self) -> Iterator[Path]:
        """The files of these names that are there."""
        for start, stop in [(0, len(self._files))] if self._kind.parts else self.spans():
            for path in (self.folder / name for name in self._files[start:stop]):
                yield from self._kind.parts(path) if self._kind.parts else [path]

    def _begin_anew(self) -> None:
        with closing(Claims(self.folder / LOCK)) as claims:
            if not claims.take_all():
                raise InputError(f"another process is writing to {self.folder}: stop it before you begin anew")
            for path in self._there():
                path.unlink()
            (self.folder / NOTE).unlink(missing_ok=True)

    def _settle(self, where: Path) -> None:
        if self._first:
            self._refuse_others()  # once more, while no other process begins
        if self._of_first is not None:  # what marks an image does not depend on the number of images
            self.mark = mark_of(run_of(comparable(1, self._of_first(1))))
            if self._first and self._note.exists():
                self._grow(self._noted(), self._of_first)
        super()._settle(where)

    def _grow(self, began: Mapping[str, Any], of_first: OfFirst) -> None:
        """Record the number of images, where a run of fewer has begun or finished the folder."""
        before = began.get("total")
        if not isinstance(before, int) or not 0 < before < self.total:
            return
        check_same(began, comparable(before, of_first(before)), f"{self.folder} was begun")
        if list(file_names(Names.packed(self._names[:before]), self._suffix)) != self._files[:before]:
            raise InputError(
                f"{self.folder} holds {before} images, some of which would have other names among {self.total}: give "
                "another folder"
            )
        if not self._claims.take(MEMBER, MEMBER + 1):
            raise InputError(f"another process is writing {before} images to {self.folder}: wait until it has ended")
        self._record()

    def _check(self) -> None:
        """Refuse images that count as done, but were damaged or written by another program."""
        for place in self._places:
            sweep(place)
        for start, stop in self.spans():
            for i in range(start, stop):
                path = self.folder / self._files[i]
                if not self._kind.is_whole(path, self._mark_of(i)) and path.exists():
                    path = path.parent if self._kind.parts else path
                    raise InputError(
                        f"{path} is damaged, or another file than this run has written there: move it away, and the "
                        "same command makes it again; or give overwrite=True to begin anew"
                    )

    def _mark_of(self, i: int) -> str:
        return f"{self.mark}-{i:09d}"

    def spans(self) -> list[tuple[int, int]]:
        """The images that are done, as rising spans (start, stop)."""
        there: set[str] = set()
        for place in self._places:
            above = "" if place == self.folder else f"{place.relative_to(self.folder).as_posix()}/"
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                there.update(above + name for name in os.listdir(place))
        found: list[tuple[int, int]] = []
        for i, name in enumerate(self._files):
            if name in there:
                start = found.pop()[0] if found and found[-1][1] == i else i
                found.append((start, i + 1))
        return found

    def is_done(self, start: int, stop: int) -> bool:
        """Whether all of the images start, ..., stop-1 are done."""
        return all((self.folder / name).exists() for name in self._files[start:stop])

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write a batch of images, each with what is known of it.

        Args:
            start: The first image.
            stop: The image after the last.
            images: (B, C, H, W) in [-1, 1], or videos (B, C, F, H, W).
            figures: Figures of each image, (B,), by name.

        Raises:
            InputError: The disk does not take an image; the images written before stay.
        """
        pixels, rows = to_bytes(images), range(stop - start)

        def save(some: range) -> None:
            for i in some:
                path = self.folder / self._files[start + i]
                known = {key: repr(float(values[i])) for key, values in (figures or {}).items()}
                self._kind.save(pixels[i], path, {MARK: self._mark_of(start + i), **known})

        with self.together():
            some = (rows[first::AT_ONCE] for first in rows[:AT_ONCE])  # a thread's share, in one task
            self._held.append((start, stop, [self._threads.submit(save, its) for its in some]))

    def _write_held(self) -> None:
        held, self._held = self._held, []
        try:
            for _, _, saved in held:
                for future in saved:
                    future.result()
        except InputError as error:
            raise InputError(f"{error}; the images written before stay, and {GO_ON}") from error
        finally:
            saving = [future for _, _, saved in held for future in saved]
            for future in saving:
                future.cancel()
            wait(saving)
            files = [file for start, stop, _ in held for file in self._files[start:stop]]
            for above in {os.path.dirname(file) for file in files}:
                sync_folder(self.folder / above)
        for start, stop, _ in held:
            self.leave(start, stop)

    def figures(self, name: str) -> list[tuple[str, float]]:
        """The file and the figure of each image that is done and has a figure of this name."""
        notes = ((file, self._kind.notes_of(self.folder / file).get(name)) for file in self._files)
        return [(file, float(note)) for file, note in notes if note is not None and _is_number(note)]

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        try:
            if self._by_rank and kind is None:
                end_together(self._until_all_are_done)
            if self.done == self.total and self._first:
                for place in self._places:
                    sweep(place)  # for another process may have been killed since this one began
                (self.folder / LOCK).unlink(missing_ok=True)
        finally:
            self._threads.shutdown()
            super().__exit__(kind, *more)


class Several(Together):
    """Outputs of the same images, each of which is computed once for all of them.

    Args:
        runs: The outputs; they are entered already.
    """

    def __init__(self, runs: Sequence[Folder | Images]) -> None:
        super().__init__(runs)
        self._runs = runs

    def write(self, start: int, stop: int, images: Tensor) -> None:
        """Write a batch of images to the outputs that lack them; arguments as for `Folder.write`."""
        for run in self._runs:
            if run.holds(start, stop):
                run.write(start, stop, images)


def open_output(
    to: str | Path | Pictures,
    names: Sequence[str],
    settings: Mapping[str, Any],
    *,
    shape: Sequence[int] = (),
    overwrite: bool = False,
    captions: Captions | None = None,
    of_first: OfFirst | None = None,
) -> Folder | Images:
    """The output of a name: NAME.png is a sheet, NAME.h5 and NAME.npz are files, a name without a suffix is a folder.

    Args:
        to: The name, or how images are drawn or written there too.
        names: The names of all images.
        settings: How the images are made, as JSON can hold it; every output but a sheet records it.
        shape: (C, H, W) of each image, or (C, F, H, W) of each video; not needed for images.
        overwrite: Begin anew, and replace what is there.
        captions: What a sheet says of the images; None for their names.
        of_first: The settings that a run of only the first images has: an HDF5 file or a folder of these is continued.

    Raises:
        InputError: The name has another suffix, or another file or run is there.
    """
    to = Pictures.of(to)
    if to.is_folder:
        return Folder(to.path, names, settings, overwrite=overwrite, kind=to.kind(shape), of_first=of_first)
    if to.is_sheet:
        check_images(shape, to.path)
        said = {"scale": to.scale, "labels": to.labels}
        sheet = Sheet(captions or titles(names), to.scale, to.labels)
        return Images(to.path, names, {**settings, "sheet": said}, sheet, overwrite=overwrite)
    if to.path.suffix.lower() == ".npz":
        return Images(to.path, names, settings, Npz(), overwrite=overwrite)
    if to.path.suffix.lower() in SUFFIXES:
        return Images(to.path, names, settings, overwrite=overwrite, of_first=of_first)
    raise InputError(
        f"{to.path}: give a folder, a sheet.png, a file.h5 or a file.npz to write to, not {to.path.suffix!r}"
    )


def open_animation(
    to: Animation, names: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool = False, back: bool = False
) -> Images:
    """An animation of images, a frame each.

    Args:
        to: The animation.
        names: The names of all images.
        settings: How the images are made, as JSON can hold it.
        overwrite: Begin anew, and replace what is there.
        back: Whether it shows all images in reverse order too, so that it can repeat without a jump.

    Raises:
        InputError: There are too many images, or another file or run is there.
    """
    said = {"fps": to.fps, "scale": to.scale, "back": back}
    return Images(to.path, names, {**settings, "animation": said}, Frames(to, back), overwrite=overwrite)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}): give another folder") from error
