"""Rows in parts: what is done, who does what, and what is refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odeddim.storage import resumable as parts
from odeddim.storage.hdf5 import opened, text
from odeddim.storage.resumable import Run, finish
from odeddim.storage.row_files import (
    check_same,
    checksums,
    joined,
    look_at,
    make_real,
    read_rows,
    settings_of,
    text_column,
    width_of,
)
from odeddim.storage.workers import Claims, cut, gaps
from odeddim.types import InputError

SETTINGS = {"solver": "ab3", "steps": 5, "details": {"images": {"path": "photos", "sha256": "ab"}}}


def rows(start: int, stop: int) -> dict[str, Any]:
    """Rows that say which they are."""
    return {
        "values": np.arange(start * 6, stop * 6, dtype=np.float32).reshape(-1, 2, 3),
        "names": text_column([f"name {i}" for i in range(start, stop)], 9),
    }


def run(path: Path, total: int = 10, **more: Any) -> Run:
    return Run(path, total, more.pop("settings", SETTINGS), **more)


def check(path: Path, expected: list[tuple[int, int]]) -> None:
    """A file holds these rows, in this order."""
    with opened(path, "") as file:
        names = list(look_at(file, path))
        read = read_rows(file, names, 0, len(file["crc32"]), path)
    want = [rows(*span) for span in expected]
    assert np.array_equal(read["values"], np.concatenate([part["values"] for part in want]))
    assert read["names"].tolist() == np.concatenate([part["names"] for part in want]).tolist()


@given(st.lists(st.integers(0, 60), min_size=0, max_size=12, unique=True), st.integers(1, 9))
def test_what_is_missing_is_cut_into_batches(cuts: list[int], size: int) -> None:
    spans = list(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
    done = {i for start, stop in spans for i in range(start, stop)}
    batches = list(cut(gaps(spans, 60), size))
    covered = [i for start, stop in batches for i in range(start, stop)]
    assert covered == sorted(set(range(60)) - done)
    assert all(0 < stop - start <= size for start, stop in batches)
    # However the rows done lie, a batch never reaches over a multiple of its size: batches of one size meet.
    assert all((stop - 1) // size == start // size for start, stop in batches)


def test_resumable_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_IDLE", 0.0)  # show each part at once
    path = tmp_path / "z.h5"
    with run(path) as work:
        seen = []
        for start, stop in work.batches(4):
            work.commit(start, stop, rows(start, stop))
            seen.append((start, stop))
            check(path, seen)  # readable at any time
            assert work.done == stop
    assert seen == [(0, 4), (4, 8), (8, 10)]
    check(path, seen)
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]
    with h5py.File(path) as file:
        assert not file["values"].is_virtual
        assert settings_of(file, path) == {**SETTINGS, "total": 10}
    before = path.read_bytes()
    with run(path) as work:
        assert work.done == 10
        assert list(work.batches(4)) == []
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]


def stop_after(path: Path, count: int, size: int = 4, **more: Any) -> None:
    """A run that is interrupted after so many batches."""

    def interrupted() -> None:
        with run(path, **more) as work:
            for k, (start, stop) in enumerate(work.batches(size)):
                if k == count:
                    raise KeyboardInterrupt
                work.commit(start, stop, rows(start, stop))

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_an_interrupted_run_goes_on_with_another_batch_size(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    stop_after(path, 1)
    check(path, [(0, 4)])
    stop_after(path, 1, size=3)
    check(path, [(0, 4), (4, 6)])
    with run(path) as work:
        assert work.done == 6
        batches = list(work.batches(100))
        assert batches == [(6, 10)]
        work.commit(6, 10, rows(6, 10))
    check(path, [(0, 4), (4, 6), (6, 10)])


def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    stop_after(tmp_path / "z.h5", 0)
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    stop_after(path, 1)
    other = {**SETTINGS, "steps": 6, "grid": "log"}
    with pytest.raises(
        InputError, match=r"z\.h5 was begun with other settings \(grid: none then, log now, steps: 5 then, 6"
    ):
        run(path, settings=other)
    with pytest.raises(InputError, match="number of images: 10 then, 11 now"):
        run(path, total=11)
    check(path, [(0, 4)])
    moved = {**SETTINGS, "details": {"images": {"path": "elsewhere", "sha256": "ab"}}}
    stop_after(path, 1, settings=moved)  # the same images under another name
    check(path, [(0, 4), (4, 8)])
    with run(path, settings=other, overwrite=True) as work:
        assert work.done == 0
        assert not path.exists()  # an index of what is gone
        for start, stop in work.batches(5):
            work.commit(start, stop, rows(start, stop))
    check(path, [(0, 10)])
    stop_after(path, 0, settings=other, overwrite=True)
    check(path, [(0, 10)])  # one file stays until the new run has something to show
    with pytest.raises(InputError, match=r"is there already and was made with other settings .*overwrite=True"):
        run(path)
    check(path, [(0, 10)])
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    for content in (b"text", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"z\.h5"):
            run(path)
        assert path.read_bytes() == content
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="odeddim did not write it"):
        run(path)
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]


def test_a_folder_that_has_lost_its_note(tmp_path: Path) -> None:
    """Parts of nobody knows what must not become part of this run."""
    path = tmp_path / "z.h5"
    stop_after(path, 1)
    (tmp_path / "z.h5.parts" / "run.json").unlink()
    path.unlink()
    with pytest.raises(InputError, match=r"run\.json is missing"):
        run(path)
    for broken in ("", "{", "[]"):
        (tmp_path / "z.h5.parts" / "run.json").write_text(broken)
        with pytest.raises(InputError, match="damaged"):
            run(path)
    with run(path, overwrite=True) as work:
        assert work.done == 0


def test_an_index_without_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    stop_after(path, 1)
    (tmp_path / "z.h5.parts").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="shows parts that are gone"):
        run(path)
    with opened(path, "") as file, pytest.raises(InputError, match="declares"):
        look_at(file, path)


def test_a_damaged_part_is_found(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    stop_after(path, 2)
    part = tmp_path / "z.h5.parts" / "000000004-000000008.h5"
    good = part.read_bytes()
    with h5py.File(part, "r+") as file:
        file["values"][2] = 7
    for broken in (part.read_bytes(), good[: len(good) // 2], b""):
        part.write_bytes(broken)
        # Told when the run begins again, and not when all the rest has been computed.
        with pytest.raises(InputError, match=r"000000004-000000008\.h5 is damaged .*delete that file, .*rows 4 to 7"):
            run(path)
    part.write_bytes((tmp_path / "z.h5.parts" / "000000000-000000004.h5").read_bytes())
    with pytest.raises(InputError, match=r"000000004-000000008\.h5 is damaged \(is of another run or other rows"):
        run(path)
    part.unlink()  # as advised
    stop_after(path, 1)
    check(path, [(0, 4), (4, 8)])

    def rest() -> None:
        with run(path) as work:
            (batch,) = work.batches(4)
            with h5py.File(part, "r+") as file:  # while it runs
                file["values"][2] = 7
            work.commit(*batch, rows(*batch))

    with pytest.raises(InputError, match=r"row 2 was changed.*damaged deleted"):
        rest()
    part.write_bytes(good)
    assert finish(path) == 10
    check(path, [(0, 10)])


def test_a_damaged_part_is_found_where_parts_are_made_one(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"

    def sixteen() -> None:
        with run(path, total=40) as work:
            for start, stop in work.batches(1):
                work.commit(start, stop, rows(start, stop))
                if start == 9:
                    part = tmp_path / "z.h5.parts" / "000000003-000000004.h5"
                    part.write_bytes(part.read_bytes()[:-9])

    with pytest.raises(InputError, match=r"000000003-000000004\.h5 is damaged .*rows 3 to 3 again"):
        sixteen()
    assert len(list((tmp_path / "z.h5.parts").glob("*.h5"))) == 16  # and none of the others is lost


def test_what_was_put_in_the_place_of_a_run_that_stopped(tmp_path: Path) -> None:
    """It is another's, unless the run was begun to replace whatever is there."""
    path = tmp_path / "z.h5"
    stop_after(path, 1)
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"z\.h5 is not a readable HDF5 file.*overwrite=True"):
        run(path)
    assert path.read_bytes() == b"mine"
    stop_after(path, 1, overwrite=True)
    path.write_bytes(b"mine")
    with run(path) as work:  # goes on without the option
        for start, stop in work.batches(4):
            work.commit(start, stop, rows(start, stop))
    check(path, [(0, 10)])
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]


def test_an_unfinished_file_is_not_made_one(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    stop_after(path, 2)
    with pytest.raises(InputError, match="unfinished, 8 of 10 rows are there"):
        finish(path)
    check(path, [(0, 8)])
    with run(path) as work:
        for start, stop in work.batches(4):
            work.commit(start, stop, rows(start, stop))
    with pytest.raises(InputError, match="one file already"):
        finish(path)


def test_claims_of_another_process(tmp_path: Path) -> None:
    """They keep this one off their rows as long as that process lives."""
    path = tmp_path / "z.h5"
    stop_after(path, 1)  # rows 0 to 3
    lock = tmp_path / "z.h5.parts" / "lock"
    code = (
        "import sys; from pathlib import Path; from odeddim.storage.workers import Claims\n"
        f"claims = Claims(Path({str(lock)!r})); assert claims.take(5, 7); print('taken', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    with run(path) as work:
        batches: Iterator[tuple[int, int]] = work.batches(2)
        assert next(batches) == (8, 10)
        other.kill()
        other.communicate()
        work.commit(8, 10, rows(8, 10))
        assert next(batches) == (4, 6)  # it died without having done them
        assert next(batches) == (6, 8)
        assert list(batches) == []  # what is handed out is not handed out again
        for start in (4, 6):
            work.commit(start, start + 2, rows(start, start + 2))
    check(path, [(0, 10)])


def test_nobody_begins_anew_under_a_process_that_has_claimed_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    code = (
        "import sys; from pathlib import Path; from odeddim.storage.resumable import Run\n"
        "Run(Path(sys.argv[1]), 10, {'solver': 'other'}, overwrite=True).__exit__(None)"
    )
    with run(path) as work:
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert f"InputError: another process is making {path}: stop it before you begin anew" in other.stderr
        for start, stop in work.batches(5):
            work.commit(start, stop, rows(start, stop))
    check(path, [(0, 10)])


def test_a_run_that_has_done_nothing_leaves_the_folder_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    code = (
        "import sys; from pathlib import Path; from odeddim.storage.resumable import Run\n"
        f"with Run(Path(sys.argv[1]), 10, {SETTINGS!r}): pass"
    )
    with run(path) as work:  # has begun, and claimed nothing yet
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert other.returncode == 0, other.stderr
        for start, stop in work.batches(5):
            work.commit(start, stop, rows(start, stop))
    check(path, [(0, 10)])


def test_claims(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "lock")
    assert claims.take(0, 5)
    assert claims.take(2**62, 2**62 + 1)
    claims.leave(0, 5)
    claims.close()


def test_many_parts_and_few_open_files(tmp_path: Path) -> None:
    """HDF5 keeps a part open as long as the data set that shows it; past the limit it would read nothing, silently."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_resumable as t\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "path = Path(sys.argv[1])\n"
        "with t.run(path, total=300) as work:\n"
        "    for start, stop in work.batches(1): work.commit(start, stop, t.rows(start, stop))\n"
    )
    path = tmp_path / "z.h5"
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(Path(__file__).parent)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    check(path, [(0, 300)])


def test_files_are_joined(tmp_path: Path) -> None:
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    details = [{"images": {"sha256": name}} for name in ("one", "two")]
    for path, its in zip(paths, details, strict=True):
        with run(path, total=3, settings={**SETTINGS, "details": its}) as work:
            work.commit(
                0, 3, {**rows(0, 3), "names": text_column(["a", "b", "ü" * len(path.name) * (len(its) + 1)], 99)}
            )
    settings = []
    for path in paths:
        with opened(path, "") as file:
            settings.append(settings_of(file, path))
    together = joined(paths, settings, 6)
    assert together["total"] == 6
    assert together["details"] == {"merged": [str(path) for path in paths]}
    make_real(paths, tmp_path / "c.h5", together)
    with opened(tmp_path / "c.h5", "") as file:
        read = read_rows(file, look_at(file, tmp_path / "c.h5"), 0, 6, tmp_path / "c.h5")
    assert np.array_equal(read["values"], np.concatenate([rows(0, 3)["values"]] * 2))
    with pytest.raises(InputError, match=r"b\.h5 cannot follow .*a\.h5, which was made with other settings \(steps: 5"):
        joined(paths, [settings[0], {**settings[1], "steps": 9}], 6)
    with h5py.File(paths[1], "r+") as file:
        file.attrs["format"] = text("something else")
    with pytest.raises(InputError, match="another kind"):
        make_real(paths, tmp_path / "d.h5", together)
    assert not (tmp_path / "d.h5").exists()


def test_checksums_do_not_depend_on_the_width_of_text() -> None:
    narrow, wide = ({"names": text_column(["a", "bc"], width), "x": np.zeros((2, 1))} for width in (2, 30))
    assert np.array_equal(checksums(narrow), checksums(wide))
    assert not np.array_equal(checksums(narrow), checksums({**narrow, "x": np.array([[0.0], [1.0]])}))
    assert not np.array_equal(checksums(narrow), checksums({**narrow, "names": text_column(["a", "bd"], 2)}))
    assert width_of(["a", "ä", "abc", "日本"]) == 6


def test_settings_that_moved_are_the_same() -> None:
    """Where a checksum says what something is, its path and name may change; without one they say it."""
    check_same({"model": "a", "sha256": "1"}, {"model": "b", "sha256": "1"}, "z")
    check_same({"versions": {"python": "3.10"}}, {"versions": {"python": "3.11"}}, "z")
    with pytest.raises(InputError, match="model: a then, b now"):
        check_same({"model": "a", "sha256": ""}, {"model": "b", "sha256": ""}, "z")
    with pytest.raises(InputError, match=r"\(model: a then, b now\)"):
        check_same({"model": "a", "sha256": "1"}, {"model": "b", "sha256": "2"}, "z")
    with pytest.raises(InputError, match=r"\(other weights or settings of the model\)"):
        check_same({"model": "a", "sha256": "1"}, {"model": "a", "sha256": "2"}, "z")
    many = {str(i): i for i in range(9)}
    with pytest.raises(InputError, match="and 4 more"):
        check_same(many, {}, "z")
    assert json.loads(json.dumps(many)) == many


def test_a_run_whose_parts_are_being_deleted_is_not_made_whole_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has made it whole, and is deleting the parts, when this one gets its turn."""
    path = tmp_path / "z.h5"

    @contextlib.contextmanager
    def late(claims: Claims, byte: int) -> Iterator[None]:
        (tmp_path / "z.h5.parts" / "000000000-000000005.h5").unlink()
        yield

    with run(path) as one:
        one.commit(0, 5, rows(0, 5))
        one.commit(5, 10, rows(5, 10))
        monkeypatch.setattr(Claims, "waiting_for", late)
    with opened(path, "") as file:
        assert parts.is_index(file)  # what it was before: not a whole file of half the rows


def test_killed_while_deleting_the_parts_of_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    with run(path) as one:
        one.commit(0, 5, rows(0, 5))
        kept = (tmp_path / "z.h5.parts" / "000000000-000000005.h5").read_bytes()
        one.commit(5, 10, rows(5, 10))
    (tmp_path / "z.h5.parts").mkdir()
    (tmp_path / "z.h5.parts" / "000000000-000000005.h5").write_bytes(kept)
    with run(path) as again:
        assert again.done == 10
        assert list(again.batches(3)) == []
    check(path, [(0, 10)])
    assert [item.name for item in tmp_path.iterdir()] == ["z.h5"]
    (tmp_path / "y.h5.parts").write_bytes(b"")
    with pytest.raises(InputError, match=r"y\.h5\.parts is a file"):
        run(tmp_path / "y.h5")
