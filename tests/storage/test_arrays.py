"""Arrays in files: memory stays bounded whatever a file holds or claims, and no file makes us read another."""

from __future__ import annotations

import functools
import gzip
import io
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import h5py
import numpy as np
import pytest

from odeddim.storage.array_formats import _npy_header, open_array
from odeddim.storage.images import open_images
from odeddim.storage.names import Names
from odeddim.storage.stored_rows import Stream
from odeddim.types import InputError

SOME = np.random.default_rng(0).integers(0, 256, (7, 6, 4), np.uint8)
MB = 1 << 20


def opened(path: Path) -> Any:
    found = open_array(path)
    assert found is not None
    return found


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy had reserved at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def npy(images: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None) -> bytes:
    """An npy file that says it had this shape."""
    file = io.BytesIO()
    said = {"descr": images.dtype.str, "fortran_order": False, "shape": shape or images.shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + images.tobytes()


def zipped(path: Path, member: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", member)
    return path


def save_npy(path: Path, images: np.ndarray[Any, Any]) -> None:
    path.write_bytes(npy(images))


def save_npz(path: Path, images: np.ndarray[Any, Any]) -> None:
    np.savez(path, images=images)


def save_compressed(path: Path, images: np.ndarray[Any, Any]) -> None:
    np.savez_compressed(path, images=images)


def save_idx(path: Path, images: np.ndarray[Any, Any]) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes + images.tobytes(), 1))


def save_hdf5(path: Path, images: np.ndarray[Any, Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(min(64, len(images)), *images.shape[1:]), compression="gzip")


SAVE = {"x.npy": save_npy, "x.npz": save_npz, "compressed.npz": save_compressed, "x.gz": save_idx, "x.h5": save_hdf5}


# Names.


def test_names_are_the_strings_that_they_were() -> None:
    strings = ["a/b.png", "", "ä€𝄞", os.fsdecode(b"\xff\xfe.png"), "two\nlines", "a/b.png"]
    names = Names.packed(iter(strings))
    assert list(names) == strings
    assert len(names) == 6
    assert names[1:4] == strings[1:4]
    assert names[::-2] == strings[::-2]
    assert names[-1] == "a/b.png"
    assert isinstance(names[:2], list)
    with pytest.raises(IndexError):
        names[6]
    assert list(Names.numbers(3)) == ["000000", "000001", "000002"]
    assert not Names.packed([])


def test_names_take_their_bytes_and_little_more() -> None:
    kept = []
    assert peak(lambda: kept.append(Names.packed(f"image-{i:07d}.png" for i in range(50_000)))) < 2.5 * MB
    assert kept[0][49_999] == "image-0049999.png"


# Bounded memory.


@pytest.mark.parametrize("name", SAVE)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name, np.zeros((8192, 64, 64), np.uint8))  # 32 MB

    def in_order() -> None:
        rows = opened(tmp_path / name).rows
        for start in range(0, 8192, 64):
            assert rows(range(start, start + 64)).shape == (64, 64, 64)

    def anyhow() -> None:
        rows = opened(tmp_path / name).rows
        for start in range(0, 8192, 1024):
            assert rows([8191, start, 5]).shape == (3, 64, 64)

    assert peak(in_order) < 5 * MB
    assert peak(anyhow) < 5 * MB


def test_floats_are_checked_in_blocks_of_bounded_size(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((128, 3, 128, 256), np.float64))  # 100 MB
    assert peak(lambda: open_images(tmp_path / "x.npz")) < 60 * MB


def test_a_stream_is_unpacked_once_in_order_and_once_more_out_of_order(tmp_path: Path) -> None:
    content = npy(SOME)
    begun = []

    def unpack() -> IO[bytes]:
        begun.append(1)
        return io.BytesIO(content)

    stream = Stream(tmp_path, _npy_header(tmp_path, "a test", content), unpack)
    for start in range(7):
        assert np.array_equal(stream.rows(range(start, start + 1)), SOME[start : start + 1])
    assert len(begun) == 1
    assert np.array_equal(stream.rows(range(0, 2)), SOME[:2])  # again from the first one on
    assert np.array_equal(stream.rows([4, 5]), SOME[4:6])  # some are passed over
    assert len(begun) == 2
    for wanted in (range(2, 4), [3, 1], [6, 6, 0], [0, 1], range(6, 0, -2)):
        assert np.array_equal(stream.rows(wanted), SOME[list(wanted)])
    assert len(begun) == 3


def test_what_does_not_fit_the_disk_is_told_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_compressed(tmp_path / "x.npz", SOME)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    rows = opened(tmp_path / "x.npz").rows
    assert np.array_equal(rows(range(3)), SOME[:3])
    with pytest.raises(InputError, match=r"x\.npz is compressed and read out of order.*set TMPDIR"):
        rows([2, 1])


# Headers that lie.

HUGE = (10**12, 28, 28)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [HUGE, (8, 6, 4), (6, 6, 4)])
def test_a_header_is_measured_against_the_file(tmp_path: Path, shape: tuple[int, ...], compression: int) -> None:
    says = "longer than the 6×6×4 values" if shape[0] < 7 else "cut off: 168 of"
    zipped(tmp_path / "x", npy(SOME, shape), compression)
    with pytest.raises(InputError, match=says):
        open_array(tmp_path / "x")
    (tmp_path / "x").write_bytes(npy(SOME, shape))
    with pytest.raises(InputError, match=says):
        open_array(tmp_path / "x")


def test_a_directory_that_lies_too_costs_no_memory(tmp_path: Path) -> None:
    """The zip's own list of sizes says, as the header does, that there are 3.8 GB."""
    shape = (10**6, 64, 60)
    member = npy(SOME, shape)
    claimed = len(member) - SOME.size + 10**6 * 64 * 60
    content = (
        zipped(tmp_path / "x", member)
        .read_bytes()
        .replace(len(member).to_bytes(4, "little"), claimed.to_bytes(4, "little"))
    )
    (tmp_path / "x").write_bytes(content)
    found = opened(tmp_path / "x")
    assert found.shape == shape  # only the content can tell

    def read() -> None:
        with pytest.raises(InputError, match=r"x (is cut off: 168 of|cannot be read)"):
            found.rows(range(10**6))

    assert peak(read) < 4 * MB


def test_a_stream_that_ends_too_soon_costs_no_memory(tmp_path: Path) -> None:
    content = npy(SOME, (10**6, 64, 60))
    (tmp_path / "x").write_bytes(gzip.compress(content))
    stream = Stream(
        tmp_path / "x", _npy_header(tmp_path, "a test", content), functools.partial(gzip.open, tmp_path / "x")
    )

    def read(wanted: range) -> None:
        with pytest.raises(InputError, match="x is cut off: 168 of 3840000000 bytes"):
            stream.rows(wanted)

    assert peak(lambda: read(range(10**6))) < 4 * MB
    assert peak(lambda: read(range(10**5))) < 4 * MB
    assert peak(lambda: read(range(10**5, 10**6))) < 4 * MB


def test_a_header_without_end_costs_no_memory(tmp_path: Path) -> None:
    endless = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * (64 * MB)
    zipped(tmp_path / "x", endless)

    def read() -> None:
        with pytest.raises(InputError, match="cannot be read as an npz file"):
            open_array(tmp_path / "x")

    assert peak(read) < 4 * MB


def test_other_arrays_of_an_npz_are_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=SOME, labels=np.zeros(32 * MB, np.uint8))
    assert peak(lambda: opened(tmp_path / "x.npz").rows(range(7))) < 4 * MB


def test_images_of_any_size_that_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odeddim.storage.array_formats.MOST_BYTES", 23)
    for name, save in SAVE.items():
        save(tmp_path / name, SOME)
        with pytest.raises(InputError, match="more than odeddim reads"):
            open_array(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_that_changes_or_goes_while_it_is_read(tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name, SOME)
    rows = opened(tmp_path / name).rows
    os.truncate(tmp_path / name, 200)
    with pytest.raises(InputError, match=f"{name} changed its size"):
        rows(range(2))
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        rows(range(2))


def test_a_compressed_file_is_checked_to_its_end(tmp_path: Path) -> None:
    """The checksum of a zip stands at its end, and comes to bear when the last row is read."""
    noise = np.random.default_rng(1).integers(0, 256, (30, 64, 64), np.uint8)
    save_compressed(tmp_path / "x.npz", noise)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    place = content.index(noise[29, 60].tobytes())  # noise is kept as it is
    content[place] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    rows = opened(tmp_path / "x.npz").rows
    assert rows(range(20)).shape == (20, 64, 64)
    with pytest.raises(InputError, match="Bad CRC"):
        rows(range(20, 30))


# HDF5: nothing but the file and its own parts is read, and only what has been written.


def whole(place: Path) -> Path:
    """A good file, which others try to show as their own."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(place, "w") as file:
        file["images"] = SOME
    return place


def virtual(place: Path, *sources: tuple[str, int], rows: int = 7, dataset: str = "images") -> None:
    layout, at = h5py.VirtualLayout((rows, 6, 4), np.uint8), 0
    for name, count in sources:
        layout[at : at + count] = h5py.VirtualSource(name, dataset, (count, 6, 4), np.uint8)
        at += count
    with h5py.File(place, "w") as file:
        file.create_virtual_dataset("images", layout)


def in_parts(place: Path) -> list[Path]:
    """SOME as an index over three parts."""
    folder = Path(f"{place}.parts")
    folder.mkdir()
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        parts.append(folder / f"{start}.h5")
        with h5py.File(parts[-1], "w") as file:
            file["images"] = SOME[start:stop]
            file["names"] = np.array([f"{i}".rjust(i + 1, "x") for i in range(start, stop)], "S")
    virtual(place, *((f"{folder.name}/{part.name}", count) for part, count in zip(parts, (3, 1, 3), strict=True)))
    return parts


def soft(file: h5py.File, other: Path) -> None:
    file["real"] = SOME
    file["images"] = h5py.SoftLink("/real")


def external(file: h5py.File, other: Path) -> None:
    file["images"] = h5py.ExternalLink(str(other), "images")


def names_elsewhere(file: h5py.File, other: Path) -> None:
    file["images"] = SOME
    file["names"] = h5py.ExternalLink(str(other), "images")


def stored_elsewhere(file: h5py.File, other: Path) -> None:
    file.create_dataset("images", (7, 6, 4), "u1", external=[(str(other), 0, 168)])


def never_written(file: h5py.File, other: Path) -> None:
    file.create_dataset("images", (7, 6, 4), "u1")


def chunks_never_written(file: h5py.File, other: Path) -> None:
    file.create_dataset("images", (10**12, 6, 4), "u1", chunks=(64, 6, 4), compression="gzip")[:64] = 1


def huge_chunks(file: h5py.File, other: Path) -> None:
    file.create_dataset("images", (7, 2**14, 2**14), "u1", chunks=(7, 2**14, 2**14), compression="gzip")


def long_names(file: h5py.File, other: Path) -> None:
    file["images"] = SOME
    file.create_dataset("names", 7, "S1000000", chunks=(1,))


REFUSED = {
    soft: "`images` is only a link",
    external: "`images` is only a link",
    names_elsewhere: "`names` is only a link",
    stored_elsewhere: "lie in another file",
    never_written: "0 of 168 bytes have been written",
    chunks_never_written: "1 of 15625000000 chunks have been written",
    huge_chunks: "make them smaller",
    long_names: "names of 1000000 bytes",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: str(make.__name__))
def test_hdf5_that_is_refused(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        make(file, whole(tmp_path / "other.h5"))
    with pytest.raises(InputError, match=REFUSED[make]) as caught:
        open_array(tmp_path / "x.h5")
    assert str(tmp_path / "x.h5") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["other.h5", "x.h5.parts/../other.h5", "{}/other.h5", "x.h5.parts/link.h5"])
def test_parts_lie_beside_the_file_and_nowhere_else(tmp_path: Path, source: str) -> None:
    whole(tmp_path / "other.h5")
    (tmp_path / "x.h5.parts").mkdir()
    (tmp_path / "x.h5.parts" / "link.h5").symlink_to(tmp_path / "other.h5")
    virtual(tmp_path / "x.h5", (source.format(tmp_path), 7))
    with pytest.raises(InputError, match=r"not beside it in x\.h5\.parts"):
        open_array(tmp_path / "x.h5")


def test_parts_are_read_as_one(tmp_path: Path) -> None:
    in_parts(tmp_path / "x.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "x.h5")
    for place in (tmp_path / "x.h5", tmp_path / "link.h5"):
        rows = opened(place).rows
        for wanted in (range(7), range(2, 5), [6, 0, 3, 3, 2], [5]):
            assert np.array_equal(rows(wanted), SOME[list(wanted)])


def test_names_of_parts_may_have_any_width(tmp_path: Path) -> None:
    parts = in_parts(tmp_path / "x.h5")
    layout, at = h5py.VirtualLayout((7,), "S3"), 0
    for part, count in zip(parts, (3, 1, 3), strict=True):
        layout[at : at + count] = h5py.VirtualSource(f"x.h5.parts/{part.name}", "names", (count,), "S7")
        at += count
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.create_virtual_dataset("names", layout)
    assert list(opened(tmp_path / "x.h5").names) == ["0", "x1", "xx2", "xxx3", "xxxx4", "xxxxx5", "xxxxxx6"]


def test_a_part_that_is_missing_never_reads_as_zeros(tmp_path: Path) -> None:
    parts = in_parts(tmp_path / "x.h5")
    rows = opened(tmp_path / "x.h5").rows
    parts[1].unlink()
    assert np.array_equal(rows(range(3)), SOME[:3])
    with pytest.raises(InputError, match=r"parts/3\.h5 cannot be read as a part"):
        rows(range(2, 5))
    with pytest.raises(InputError, match=r"its part .*3\.h5 is missing"):
        open_array(tmp_path / "x.h5")
    parts[2].unlink()
    virtual(tmp_path / "x.h5", ("x.h5.parts/0.h5", 3))
    with pytest.raises(InputError, match="3 of 7 rows have been written"):
        open_array(tmp_path / "x.h5")
    virtual(tmp_path / "x.h5", ("x.h5.parts/0.h5", 2), rows=2)
    with pytest.raises(InputError, match="not the part of"):
        opened(tmp_path / "x.h5").rows(range(2))


def test_parts_must_be_whole_rows(tmp_path: Path) -> None:
    whole(tmp_path / "x.h5.parts" / "a.h5")
    source = h5py.VirtualSource("x.h5.parts/a.h5", "images", (7, 6, 4), np.uint8)
    for pieces in ([np.s_[:, :3]], [np.s_[:, 3:]], [np.s_[2:]], [np.s_[::2]], [np.s_[:5], np.s_[::6]]):
        layout = h5py.VirtualLayout((7, 6, 4), np.uint8)
        for rows in pieces:
            layout[rows] = source[rows]
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_virtual_dataset("images", layout)
        with pytest.raises(InputError, match="not whole rows"):
            opened(tmp_path / "x.h5").rows(range(7))


@pytest.mark.parametrize("trick", ["link", "stored elsewhere", "virtual", "group"])
def test_a_part_cannot_point_further(tmp_path: Path, trick: str) -> None:
    other = whole(tmp_path / "other.h5")
    part = tmp_path / "x.h5.parts" / "a.h5"
    part.parent.mkdir()
    dataset = "images"
    if trick == "virtual":
        virtual(part, (str(other), 7))
    else:
        with h5py.File(part, "w") as file:
            if trick == "link":
                external(file, other)
            elif trick == "group":
                file["group"] = h5py.ExternalLink(str(other), "/")
                dataset = "group/images"
            else:
                stored_elsewhere(file, other)
    virtual(tmp_path / "x.h5", ("x.h5.parts/a.h5", 7), dataset=dataset)
    with pytest.raises(InputError, match=r"only a link|lie in another file|not the part"):
        opened(tmp_path / "x.h5").rows(range(7))


@pytest.fixture
def few_files() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_parts_than_files_may_be_open(tmp_path: Path, few_files: None) -> None:
    """HDF5 itself would give zeros for those that it cannot open."""
    folder = tmp_path / "x.h5.parts"
    folder.mkdir()
    for i in range(120):
        with h5py.File(folder / f"{i:03d}", "w") as file:
            file["images"] = np.full((1, 6, 4), i + 1, np.uint8)
    virtual(tmp_path / "x.h5", *((f"x.h5.parts/{i:03d}", 1) for i in range(120)), rows=120)
    assert opened(tmp_path / "x.h5").rows(range(120))[:, 0, 0].tolist() == list(range(1, 121))
