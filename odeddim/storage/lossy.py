"""Images written as JPEG or WebP files, each with notes that say which run it belongs to and a checksum of its own.

Neither format has checksums, so the notes hold one of the whole file, in which its own digits count as zeros. Notes are
JSON in the EXIF description; those of videos (`odeddim.storage.clips`) lie where their format has room for words.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.storage.png import picture

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0, "optimize": True},
    "webp": {"format": "WEBP", "quality": 95, "method": 4},
}
"""What Pillow is told: hardly anybody sees that such an image is not exact."""

_DESCRIPTION = 0x010E  # of EXIF
_SEAL, _OPEN = b'"crc32": "', b"00000000"
UNSEALED: Mapping[str, str] = {"crc32": _OPEN.decode()}
"""What notes end with before the checksum of the file is in them."""


def encoded(image: Tensor, path: Path, notes: Mapping[str, str], *, format: str) -> bytes:
    """An image as the content of a JPEG or a WebP; its values are not kept exactly.

    Args:
        image: (C, H, W) in [-1, 1], with C = 1 or 3.
        path: The file that it goes to, for the message.
        notes: What is known of the image, in ASCII; `notes_of` reads it.
        format: "jpeg" or "webp".

    Raises:
        InputError: The image cannot be written as a picture.
    """
    import PIL.Image

    drawn = picture(image, path)
    exif = PIL.Image.Exif()
    exif[_DESCRIPTION] = json.dumps({**notes, **UNSEALED})
    written = io.BytesIO()
    drawn.save(written, exif=exif.tobytes(), **OPTIONS[format])
    return sealed(written.getvalue())


def sealed(content: bytes) -> bytes:
    """A file whose notes end with UNSEALED, with its checksum in them."""
    at = content.index(_SEAL) + len(_SEAL)
    return content[:at] + b"%08x" % zlib.crc32(content) + content[at + len(_OPEN) :]


def is_whole(path: Path, mark: str) -> bool:
    """Whether a file has a mark among its notes and fits its checksum."""
    try:
        content = bytearray(path.read_bytes())
    except OSError:
        return False
    at = content.find(_SEAL) + len(_SEAL)
    if at < len(_SEAL) or mark.encode() not in content:
        return False
    seal = bytes(content[at : at + len(_OPEN)])
    content[at : at + len(_OPEN)] = _OPEN
    return seal == b"%08x" % zlib.crc32(content)


def notes_of(path: Path) -> dict[str, str]:
    """The notes in a file that is sealed, JSON without inner objects; none if the file is missing or has none."""
    try:
        content = path.read_bytes()
        at = content.index(_SEAL)
        notes = json.loads(content[content.rindex(b"{", 0, at) : content.index(b"}", at) + 1])
    except (OSError, ValueError):
        return {}
    return {str(key): note for key, note in notes.items() if isinstance(note, str)} if isinstance(notes, dict) else {}
