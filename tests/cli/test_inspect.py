"""`odeddim inspect` knows every file and folder that odeddim writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import odeddim
from odeddim import jobs
from odeddim.bench import report
from odeddim.bench.tables import Column, Table
from odeddim.storage.images import ImageSource
from odeddim.storage.resumable import Run
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
HOW: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
SMALL = jobs.Machine(batch_size=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    here = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        jobs.encode(None, "z.h5", count=3, **HOW)
        for name in ("x.h5", "sheet.png", "out"):
            jobs.decode("z.h5", name)
        jobs.decode("z.h5", jobs.Pictures(Path("jpegs"), format="jpeg"))
        way = jobs.Direction(start=[0], goal=[1], keep=Path("d.h5"))
        jobs.shift("z.h5", way, to=jobs.Drawing(Path("shifted.h5")))
        odeddim.plan("exact-mixture", "ab2", steps=4).save("plan.json")
        columns = (Column("steps", "steps"), Column("error", "error", "rms", ".2e"))
        Table("demo", "A title", {"model": "m"}, columns, ({"steps": 1, "error": 0.5},)).save(
            here / "tables", {"demo.svg": b"<svg/>"}
        )
        report.report(here / "tables", here / "page.html")
        rows: dict[str, Any] = {"made_by": "bench demo", "model": "m"}
        with Run(here / "tables/cells/demo-0.h5", 2, rows) as run:
            run.commit(0, 2, {"error": np.zeros(2)})
        jobs.train(_images(), "model", steps=2, channels=8, multipliers=(1,), blocks=1, attention=(), batch_size=2)
        _stopped(lambda: jobs.encode(None, "part.h5", count=6, machine=SMALL, **HOW), patch)
        _stopped(lambda: jobs.encode(None, "gone.h5", count=6, machine=SMALL, **HOW), patch)
        Path("gone.h5").unlink()
        shutil.copy("z.h5", "longer.h5")
        _stopped(lambda: jobs.encode(None, "longer.h5", count=6, machine=SMALL, **HOW), patch)
        assert Path("longer.h5.parts").is_dir()
    return here


def _images() -> ImageSource:
    pixels = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ImageSource((1, 8, 8), [str(i) for i in range(4)], lambda rows: pixels[list(rows)])


def _stopped(make: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """Stop a run after its first batch."""
    commit = Run.commit

    def stop(self: Run, *arguments: Any, **notes: Any) -> None:
        commit(self, *arguments, **notes)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(Run, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            make()


KINDS: dict[str, dict[str, Any]] = {
    "z.h5": {"kind": "a latent file", "latents": 3, "solver": "bdia"},
    "shifted.h5": {"kind": "a latent file", "made by": "shift"},
    "d.h5": {"kind": "a direction between latents", "latents": 3},
    "x.h5": {
        "kind": "a file of images",
        "images": 3,
        "made by": "decode",
        "first names": ["000000", "000001", "000002"],
    },
    "sheet.png": {"kind": "a sheet of images", "size": "302×248"},
    "out": {"kind": "a folder of images", "images": 3, "made by": "decode", "solver": "bdia"},
    "jpegs": {"kind": "a folder of images", "images": 3, "format": "jpeg"},
    "out/odeddim.json": {"kind": "a folder of images", "images": 3},
    "out/000001.png": {"kind": "an image of a run", "number": 1, "size": "28×28", "made by": "decode"},
    "plan.json": {"kind": "a plan", "plan": "ab2, log grid, 4 steps, end zero", "evaluations": 4},
    "tables": {"kind": "a folder of benches", "tables": {"demo": "A title"}, "measurements": 1},
    "tables/demo.h5": {"kind": "the table of the bench demo", "title": "A title", "rows": 1, "model": "m"},
    "tables/demo.csv": {"kind": "a file of the bench demo", "title": "A title"},
    "tables/demo.json": {"kind": "a file of the bench demo"},
    "tables/demo.svg": {"kind": "a file of the bench demo"},
    "tables/cells/demo-0.h5": {"kind": "measurements of a bench", "rows": 2, "made by": "bench demo"},
    "page.html": {"kind": "a page that odeddim wrote"},
    "model": {"kind": "a training run", "step": 2, "steps": 2},
    "model/checkpoint.safetensors": {"kind": "the checkpoint of a training run", "step": 2},
    "model/log.csv": {"kind": "the log of a training run", "rows": 1},
    "model/samples-000002.png": {"kind": "a sheet of images"},
    "part.h5": {
        "kind": "a latent file",
        "latents": "2 of 6 so far",
        "run": "2 of 6 rows are done; no process is at work: the same command goes on",
    },
    "part.h5.parts": {"kind": "the parts of an unfinished run", "makes": "part.h5", "solver": "bdia"},
    "part.h5.parts/000000000-000000002.h5": {"kind": "a part of an unfinished run", "rows": "0 to 1"},
    "gone.h5": {
        "kind": "the parts of an unfinished run",
        "run": "2 of 6 rows are done; no process is at work: the same command goes on",
    },
    "longer.h5": {
        "kind": "a latent file",
        "latents": 3,
        "run": "4 of 6 rows are done; no process is at work: the same command goes on",
    },
    "fashion-mnist": {"kind": "a model", "model": "fashion-mnist"},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_odeddim_writes_is_known(run: Command, made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    facts = jobs.inspect(name)
    assert {key: facts[key] for key in KINDS[name]} == KINDS[name]
    assert next(iter(facts)) == "kind"
    code, out, err = run("inspect", name, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(facts))
    code, out, err = run("inspect", name)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split("  ")[0] == "kind"
    assert out.splitlines()[0].endswith(facts["kind"])
    assert len(out.splitlines()) == len(facts)
    assert sorted(made.rglob("*")) == before


def test_the_model_of_a_training_run_is_told(made: Path) -> None:
    facts = jobs.inspect(made / "model")
    assert facts["holds"]["shape"] == [1, 8, 8]
    assert facts["training"]["batch_size"] == 2
    assert facts["log"]["step"] == "2"


def test_what_is_not_ours_is_one_sentence(made: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "demo.csv").write_text("steps,error\n1,0.5\n")  # without the table that notes it
    shutil.copy(made / "tables/demo.h5", tmp_path / "demo.h5")
    (tmp_path / "demo.json").write_text("{}")  # changed
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["images"] = np.zeros(3)
    for name in ("some", "note.txt", "list.json", "demo.json"):
        with pytest.raises(InputError, match=f"{name} is nothing that odeddim writes, nor a model"):
            jobs.inspect(tmp_path / name)
    assert jobs.inspect(tmp_path / "demo.csv")["kind"] == "a file of the bench demo"
    with pytest.raises(InputError, match="is an HDF5 file, but odeddim did not write it"):
        jobs.inspect(tmp_path / "theirs.h5")
    with pytest.raises(InputError, match="did you mean fashion-mnist"):
        jobs.inspect("fashion-mnst")
