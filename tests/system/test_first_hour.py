"""A new user's first hour, from a wheel: photographs of five sizes, one of them broken, and a pipeline of diffusers.

What the commands make with the pipeline's folder, Python makes with the pipeline itself: the same bits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow  # a dozen processes; README's examples and the wheel have tests of their own
SIZES = ((40, 30), (30, 40), (32, 32), (64, 20), (9, 50))
PYTHON = """
import sys
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
import odeddim
from odeddim import jobs

assert odeddim.__file__.startswith(sys.argv[1]), odeddim.__file__
torch.manual_seed(0)
unet = UNet2DModel(sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1)
pipe = DDPMPipeline(unet=unet, scheduler=DDIMScheduler())
pipe.save_pretrained("pipe")
how = {"prepare": odeddim.Preparation(crop="center", skip_bad=True), "machine": jobs.Machine(device="cpu")}
print(jobs.encode("photos", "python.h5", model=pipe, steps=5, certify=True, **how))
print(jobs.decode("python.h5", "python", model=pipe, machine=how["machine"]))
found = jobs.verify("python.h5", "photos", model=pipe, machine=how["machine"])
print(found.figures["round_trip"].max().item())
print(jobs.bridge("photos", "python-bridge.h5", "exact-mixture", model=pipe, steps=4, **how))
print(jobs.explore("python.h5", "python.html", corners=(0, 1, 2, 3), tiles=2, levels=2, model=pipe))
field = odeddim.load(pipe)
images = odeddim.open_images("photos", channels=3, prepare=how["prepare"].for_model(field.image_shape))
field.network_batch = 8
state = odeddim.encode(images.read(), model=field, steps=5)
with odeddim.open("python.h5") as latents:
    assert torch.equal(latents[:].xbar, state.xbar)
    assert torch.equal(odeddim.decode(state, model=field), images.read())
"""

COMMANDS = """
import sys
from odeddim.cli import main

for line in sys.argv[1:]:
    sys.argv = ["odeddim", *line.split()]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


@pytest.fixture(scope="module")
def first_hour(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who has done all that, in Python and then by commands."""
    pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("hour")
    zipfile.ZipFile(wheel).extractall(site)
    photos = folder / "photos" / "holidays"
    photos.mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photos / f"{i}.jpg", quality=95)
    whole = (photos / "4.jpg").read_bytes()
    (photos / "4.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "._0.jpg").write_bytes(b"not an image")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    program = [sys.executable, "-W", "ignore", "-c", PYTHON, str(site)]
    encode = "encode photos -o z.h5 --model pipe --steps 5 --crop center --skip-bad --certify"
    others = [
        "decode z.h5 -o out/",
        "verify z.h5 photos",
        "bridge photos --model pipe --to exact-mixture --steps 4 --crop center --skip-bad -o bridge.h5",
        "explore z.h5 --corners 0 1 2 3 --tiles 2 --levels 2 -o explore.html",
    ]
    command = [sys.executable, "-m", "odeddim", *encode.split()]
    for line in (program, command, [sys.executable, "-c", COMMANDS, *others]):  # a new process takes seconds to import
        result = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, (line[-1], result.stderr)
        (folder / "said.txt").open("a").write(result.stdout + result.stderr)
    return folder


def test_the_broken_one_is_left_out_and_named(first_hour: Path) -> None:
    said = (first_hour / "said.txt").read_text()
    assert re.search(r"warning: skipped: holidays/4\.jpg .+", said)
    assert "4 latents" in said
    assert "1 file skipped" in said
    assert sorted(path.name for path in (first_hour / "out").rglob("*.png")) == ["0.png", "1.png", "2.png", "3.png"]


def test_python_and_the_commands_make_the_same_bits(first_hour: Path) -> None:
    for python, command in (("python.h5", "z.h5"), ("python-bridge.h5", "bridge.h5")):
        with h5py.File(first_hour / python) as ours, h5py.File(first_hour / command) as theirs:
            arrays = [
                name
                for name, it in ours.items()
                if isinstance(it, h5py.Dataset) and name not in ("crc32", "provenance")
            ]
            assert arrays
            for name in arrays:
                assert ours[name][()].tobytes() == theirs[name][()].tobytes(), (python, name)
    for path in (first_hour / "out").rglob("*.png"):
        other = first_hour / "python" / path.relative_to(first_hour / "out")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other)))


def test_the_way_back_is_exact(first_hour: Path) -> None:
    with h5py.File(first_hour / "z.h5") as file:
        assert not file["certificate/round_trip"][:].any()
        assert file["xbar"].shape == (4, 3, 16, 16)


def test_both_pages_show_the_same_tiles(first_hour: Path) -> None:
    ours, theirs = ((first_hour / name).read_text(encoding="utf-8") for name in ("python.html", "explore.html"))
    tiles = [re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page) for page in (ours, theirs)]
    assert tiles[0] == tiles[1]
    assert len(tiles[0]) > 1
