"""`odeddim score` and `odeddim.jobs.score`: the same figures everywhere, and runs that go on."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import odeddim
from odeddim.checks.scores import Reference
from odeddim.jobs import Calibration
from odeddim.jobs.score import _Rows
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture", "--steps", 3)


def folder(path: Path, count: int, seed: int) -> torch.Tensor:
    """Images of noise in a folder, and as a tensor (B, 1, 6, 6) in [-1, 1]."""
    path.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return torch.from_numpy(pixels).float()[:, None] / 127.5 - 1


@pytest.fixture
def good(here: Path) -> torch.Tensor:
    return folder(here / "good", 40, 0)


@pytest.fixture
def some(here: Path) -> torch.Tensor:
    return folder(here / "some", 9, 1)


def listed(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a file of scores, whatever its format."""
    path = Path(path)
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            assert next(file).startswith("# odeddim-")
            rows = list(csv.DictReader(file))
        return [{key: value if key == "file" else float(value) for key, value in row.items()} for row in rows]
    if path.suffix == ".json":
        return [dict(line) for line in json.loads(path.read_text())["images"]]
    with h5py.File(path) as file:
        known = {name: file[name][:].tolist() for name in ("score", "strange")}
        known |= {name: values[:].tolist() for name, values in file["statistics"].items()}
        names = [name.decode() for name in file["names"][:].tolist()]
    return [{"file": name, **{key: known[key][i] for key in known}} for i, name in enumerate(names)]


def test_python_and_the_command_line_agree(run: Command, good: torch.Tensor, some: torch.Tensor) -> None:
    reference = odeddim.calibrate(good, model="exact-mixture", steps=3, false_positives=0.1)
    wanted = odeddim.score(some, model="exact-mixture", reference=reference, round_trip=True)
    keep = ("--calibrate", "good", "--false-positives", 0.1, "--reference", "reference.json")
    for output in ("scores.csv", "scores.json", "scores.h5"):
        code, out, err = run("score", "some", *MIXTURE, *keep, "--round-trip", "-o", output)
        assert code == 0, err
        assert f"of 9 images are strange in {output}: above {reference.threshold:.4g}, the threshold for 10%" in out
        lines = listed(output)
        assert [line["file"] for line in lines] == [f"{i:03d}.png" for i in range(9)]
        assert [line["score"] for line in lines] == wanted.score.tolist()
        assert [bool(line["strange"]) for line in lines] == wanted.strange.tolist()
        for name, values in wanted.statistics.items():
            assert [line[name] for line in lines] == values.tolist()
    assert torch.equal(Reference.load("reference.json").profile, reference.profile)
    with h5py.File("scores.h5") as file:
        assert np.array_equal(file["profile"][:], wanted.profile.numpy())
    found = odeddim.jobs.score("some", model="exact-mixture", reference="reference.json", round_trip=True)
    assert torch.equal(found.score, wanted.score)
    assert found.order.tolist() == sorted(range(9), key=lambda i: -wanted.score[i])


def test_what_is_printed(run: Command, good: torch.Tensor, some: torch.Tensor) -> None:
    assert run("score", "some", *MIXTURE, "--calibrate", "good", "--reference", "r.json", "--worst", 3)[0] == 0
    found = odeddim.jobs.score("some", model="exact-mixture", reference="r.json")
    code, out, err = run("score", "some", "--model", "exact-mixture", "--reference", "r.json", "--worst", 3)
    assert code == 0, err
    shown = re.findall(r"(\d{3}\.png)\s+(\S+)\s+(yes|no)", out)
    assert [name for name, _, _ in shown] == [found.names[i] for i in found.order[:3].tolist()]
    assert [score for _, score, _ in shown] == [f"{float(found.score[i]):.4g}" for i in found.order[:3].tolist()]
    code, out, err = run("score", "some", "--model", "exact-mixture", "--reference", "r.json", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert [line["score"] for line in said["images"]] == found.score.tolist()
    assert said["threshold"] == found.reference.threshold


@pytest.mark.parametrize("name", ["scores.csv", "scores.json", "scores.h5"])
def test_a_run_that_was_stopped_goes_on(
    run: Command, good: torch.Tensor, some: torch.Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    how = ("score", "some", *MIXTURE, "--calibrate", "good", "--reference", "r.json", "-o", name, "--batch-size", 8)
    whole = odeddim.jobs.score(
        "some", f"whole-{name}", model="exact-mixture", steps=3, reference=Calibration("good")
    )  # fmt: skip
    write, written = _Rows.write, list[int]()

    def stopping(after: int) -> None:
        def once(rows: _Rows, start: int, *given: Any) -> None:
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(start)
            write(rows, start, *given)

        monkeypatch.setattr(_Rows, "write", once)

    stopping(3)  # in the reference, whose images are 40
    assert run(*how)[0] == 130
    assert not Path("r.json").exists()
    stopping(6)  # in the scores
    assert run(*how)[0] == 130
    assert written == [0, 8, 16, 24, 32, 0]
    stopping(-1)
    assert run(*how)[0] == 0
    assert written == [0, 8, 16, 24, 32, 0, 8]
    assert listed(name) == listed(f"whole-{name}")
    assert run(*how)[0] == 0
    assert len(written) == 7  # nothing is computed again
    assert [line["score"] for line in listed(name)] == whole.score.tolist()


def test_other_settings_are_another_run(run: Command, good: torch.Tensor, some: torch.Tensor) -> None:
    keep = ("--calibrate", "good", "--reference", "r.json")
    assert run("score", "some", *MIXTURE, *keep, "-o", "s.csv")[0] == 0
    before = Path("s.csv").read_bytes(), Path("r.json").read_bytes()
    for other in (("--round-trip",), ("--solver", "ab2"), ("--false-positives", 0.2)):
        code, _, err = run("score", "some", *MIXTURE, *keep, "-o", "s.csv", *other)
        assert code == 2
        assert "--overwrite" in err
        assert (Path("s.csv").read_bytes(), Path("r.json").read_bytes()) == before
    assert run("score", "some", *MIXTURE, *keep, "-o", "s.csv", "--round-trip", "--overwrite")[0] == 0
    assert "round_trip" in listed("s.csv")[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reference", "nothing.json"), "nothing.json cannot be read"),
        (("--reference", "some/000.png"), "some/000.png is no reference"),
        (("--false-positives", 0.1), "give --calibrate IMAGES too"),
        (("--calibrate", "some"), "at least 19 images, or a larger --false-positives"),
        (("--calibrate", "good", "-o", "scores.txt"), "NAME.csv or NAME.json"),
        (("--calibrate", "good", "--reference", "r.txt"), "NAME.json"),
        (("--calibrate", "nowhere"), "nowhere cannot be read"),
        (("--calibrate", "good", "--solver", "rk4"), "one evaluation a step"),
        (("--calibrate", "good", "--solver", "belm", "--round-trip"), "--round-trip says nothing"),
        ((), "give --reference"),
    ],
)
def test_what_cannot_be_used(
    run: Command, good: torch.Tensor, some: torch.Tensor, here: Path, arguments: tuple[object, ...], words: str
) -> None:
    before = sorted(here.rglob("*"))
    code, _, err = run("score", "some", *MIXTURE, *arguments)
    assert code == 2, err
    assert words in err
    assert len(err.splitlines()[-1]) > 20
    assert sorted(here.rglob("*")) == before


def test_a_file_that_has_no_scores_is_told_before_the_reference_is_made(run: Command, good: torch.Tensor) -> None:
    assert run("encode", "good", "-o", "z.h5", *MIXTURE)[0] == 0
    keep = ("--calibrate", "good", "--reference", "r.json")
    for name, words in (("z.h5", "has not written it"), ("r.json", "r.json is to be the file of the reference")):
        code, _, err = run("score", "good", *MIXTURE, *keep, "-o", name)
        assert code == 2
        assert words in err
    assert not list(Path().glob("*r.json*"))
    assert run("score", "good", *MIXTURE, *keep)[0] == 0
    code, _, err = run("score", "good", *MIXTURE, "--reference", "r.json", "-o", "r.json", "--overwrite")
    assert (code, "r.json is being read" in err) == (2, True)


def test_inspect_knows_the_files(run: Command, good: torch.Tensor, some: torch.Tensor) -> None:
    for name in ("s.csv", "s.json", "s.h5"):
        assert run("score", "some", *MIXTURE, "--calibrate", "good", "--reference", "r.json", "-o", name)[0] == 0
    kinds = [odeddim.jobs.inspect(name)["kind"] for name in ("s.csv", "s.json", "s.h5", "r.json")]
    assert kinds == ["a table that odeddim wrote", "a file of scores", "a file of scores", "a reference for scores"]


def test_processes_do_not_share_a_calibration(good: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="by one process first"):
        odeddim.jobs.score("good", model="exact-mixture", reference=Calibration("good", keep="r.json"))
