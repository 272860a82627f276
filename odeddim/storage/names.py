"""Names of images: kept in little memory, and turned into paths of files that every system can have."""

from __future__ import annotations

import array
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from odeddim.storage.atomic import plain_text

NOTE, LOCK = "odeddim.json", ".odeddim.lock"
"""The run's own files in a folder of images: its settings, and who works on what."""

_WINDOWS = os.name == "nt"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_ON_WINDOWS = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(r"^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(?= *(\.|$))", re.IGNORECASE)
"""What Windows takes for a device, with any suffix."""
_LONGEST_STEP = 200  # bytes of a file's or a folder's name; disks allow 255


class Names(Sequence[str]):
    """Strings that take little memory; a slice is a list of them.

    Args:
        count: How many there are.
        name: Makes the name of each number.
    """

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count = count
        self._name = name

    @classmethod
    def numbers(cls, count: int) -> Names:
        """000000, 000001, ..."""
        return cls(count, lambda i: f"{i:06d}")

    @classmethod
    def packed(cls, names: Iterable[str]) -> Names:
        """Any strings, also file names that are not UTF-8. They take their bytes, and 8 more each."""
        content, ends = bytearray(), array.array("q", [0])
        for name in names:
            content += name.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        return cls(len(ends) - 1, lambda i: content[ends[i] : ends[i + 1]].decode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(self._count))

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._name(i) for i in range(self._count)[place]]
        return self._name(range(self._count)[place])


def file_names(names: Sequence[str], suffix: str = ".png") -> Iterator[str]:
    """The path below a folder of each image's file: cat/1.jpg becomes cat/1.png, and /data/1.png becomes data/1.png.

    No path leaves the folder, whatever the name. A path that another image has gets a number: cat/1-1.png. Two paths
    are the same here if some disks take them for the same, such as Cat.png and cat.png.
    """
    all_wanted = Names.packed(map(_wanted, names))
    folders = set()
    for wanted in all_wanted:
        above = wanted.split("/")[:-1]
        folders |= {_key("/".join(above[:depth])) for depth in range(1, len(above) + 1)}
    taken: dict[str, int] = {}  # how many images have wanted a path
    for wanted in all_wanted:
        path, key = wanted, _key(wanted)
        number = taken.get(key, 0)
        while _key(path) in taken or _key(f"{path}{suffix}") in folders:
            number += 1
            path = f"{wanted}-{number}"
        taken[key] = number
        taken.setdefault(_key(path), 0)
        yield f"{path}{suffix}"


def _wanted(name: str) -> str:
    """The path from the output's folder to an image, without a suffix; it does not lead upwards."""
    steps = [_plain(step) for step in name.replace("\\", "/").split("/")]
    *above, last = [step for step in steps if step.strip(" .")] or ["image"]
    dot = last.rfind(".")
    stem = last[:dot] if 0 < dot < len(last) - 1 else last
    return "/".join([*map(_folder, above), _possible(stem)])


def _folder(step: str) -> str:
    """A folder's name that Windows keeps as it is, and that is not the name of the run's own files."""
    possible = _possible(step)
    if _WINDOWS:
        possible = possible.rstrip(" .") or "_"
    return f"{possible}_" if possible.casefold() in (NOTE, LOCK) else possible


def _plain(step: str) -> str:
    """A file's or a folder's name without characters that the system or a terminal takes for something else."""
    step = _CONTROL.sub("_", plain_text(step))
    return _NOT_ON_WINDOWS.sub("_", step).rstrip(" .") if _WINDOWS else step


def _possible(step: str) -> str:
    """A name that is not too long, and that Windows does not take for a device."""
    step = step.encode()[:_LONGEST_STEP].decode(errors="ignore")
    return _DEVICE.sub(r"\1_", step) if _WINDOWS else step


def _key(path: str) -> str:
    """The same for paths that some disks take for the same."""
    return unicodedata.normalize("NFC", path.casefold())
