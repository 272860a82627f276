"""`odeddim bridge`: what it writes, resumes and refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import command, tiles

from odeddim.bridges import between


def run(*arguments: str) -> str:
    return command("bridge", *arguments)


SHORT = ("--to", "exact-gaussian", "--steps", "4")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("-n", "5", "-o", str(out), *SHORT, "--batch-size", "2")
    assert "5 images" in said
    assert "fashion-mnist to exact-gaussian at σ = 157.407" in said
    assert "cycle error (rms" in said
    assert len(list(out.glob("*.png"))) == 5
    over = between("fashion-mnist", "exact-gaussian", steps=4)
    over.source.network_batch = over.target.network_batch = 8
    from odeddim.storage.images import open_images

    found = over.cross(open_images().read(range(5)))
    assert found.error is not None
    for place in (out, tmp_path / "out.h5"):
        said = run("-n", "5", "-o", str(place), *SHORT, "--csv")
        rows = list(csv.DictReader(said[said.index("name,") :].splitlines()))
        assert [row["name"].removesuffix(".png") for row in rows] == [f"{i:06d}" for i in range(5)]
        assert [float(row["cycle_error"]) for row in rows] == pytest.approx(found.error.tolist(), rel=1e-5)


def test_a_stopped_bridge_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run("-n", "4", "-o", str(out), *SHORT).splitlines()[-1]
    (out / "000002.png").unlink()
    said = run("-n", "4", "-o", str(out), *SHORT)
    assert "1 now" in said
    assert said.splitlines()[-1] == whole  # the error of each lies in its PNG
    Image.new("L", (28, 28)).save(out / "000003.png")
    said = command("bridge", "-n", "4", "-o", out, *SHORT, code=2)
    assert re.search(r"Error: .*000003\.png is damaged, or another file", said)
    assert "median" in run("-n", "4", "-o", str(out), *SHORT, "--overwrite")


def test_a_sheet_and_a_file_without_the_cycle(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert "median" in run("-n", "2", "-o", str(sheet), *SHORT, "--scale", "1", "--no-labels")
    assert len(tiles(sheet, 28, 28, 1, panes=3)) == 2  # each image, what became of it, what came back
    assert "cycle" not in run("-n", "2", "-o", str(tmp_path / "x.h5"), *SHORT, "--no-cycle")


def test_two_classes_of_one_model(tmp_path: Path) -> None:
    """The target has its own condition, with everything that a condition can be."""
    from test_conditions import Told

    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(2, 1, 28, 28), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    program = torch.export.export(Told(), example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.export.save(program, model := tmp_path / "told.pt2")
    beside = {"schedule": {"name": "linear"}, "predicts": "eps", "time": "index", "classes": 3, "null": 3}
    model.with_suffix(".json").write_text(json.dumps(beside))
    to = ("--model", str(model), "--label", "0", "--to", str(model), "--to-label", "2")
    guided = ("--to-guidance", "2", "--to-guidance-interval", "0.5,5", "--to-guidance-rescale", "0.5")
    said = run("-n", "2", "-o", str(tmp_path / "out"), *to, *guided, "--steps", "4")
    assert "under class 0" in said
    assert "under class 2, guidance 2 rescaled by 0.5 for σ in 0.5 to 5" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "fashion-mnst"], "fashion-mnist"),
        (["--to", "exact-gaussian", "--to-label", "3"], "no conditions"),
        (["--to", "exact-gaussian", "--label", "3"], "no conditions"),
        (["--to", "exact-gaussian", "--solver", "ddpm"], "ddpm"),
        (["--to", "exact-gaussian", "--to-guidance", "nan"], "finite"),
        (["--to", "exact-gaussian", "--guidance-interval", "3,1"], "below the second"),
        (["--to", "exact-gaussian", "--to-guidance", "2", "--to-low-guidance", "3"], "leave out guidance 2 (3 of the"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in command("bridge", "-n", "2", "-o", tmp_path / "out", *arguments, code=2)
