"""`odeddim explore`: the page shows what decode gives, and nothing of a file gets into it as markup."""

from __future__ import annotations

import base64
import importlib
import io
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
from odeddim import jobs
from odeddim.jobs.decoding import Decoding
from odeddim.jobs.stages import stages_of
from odeddim.latents.interpolate import LatentPath
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.storage.png import to_bytes
from odeddim.types import InputError, State

Run = Callable[..., tuple[int, str, str]]
EXPLORE = importlib.import_module("odeddim.jobs.explore")
NASTY = '<script>alert(1)</script> "quotes" & </title><img src=x onerror=alert(2)> $title \u202e --> \u2028'


def told(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    found: dict[str, Any] = json.loads(text)
    return found


def tiles(uri: str, data: dict[str, Any], columns: int) -> np.ndarray[Any, Any]:
    """The images of a sheet in a data URI, (N, H, W) or (N, H, W, 3) uint8."""
    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    down, across = sheet.shape[0] // data["height"], sheet.shape[1] // data["width"]
    assert across == columns
    cells = sheet.reshape(down, data["height"], across, data["width"], *sheet.shape[2:])
    return cells.swapaxes(1, 2).reshape(-1, data["height"], data["width"], *sheet.shape[2:])


def decoded(file: Path, **how: Any) -> np.ndarray[Any, Any]:
    """What `decode` writes of a latent file, (N, H, W) or (N, H, W, 3) uint8."""
    images = file.with_name("decoded")
    jobs.decode(file, images, overwrite=True, **how)
    return np.stack([np.array(Image.open(path)) for path in sorted(images.rglob("*.png"))])


def encoded(folder: Path, count: int = 7, model: Any = "exact-mixture", images: Path | None = None, **how: Any) -> Path:
    if "tol" not in how and "rtol" not in how:
        how.setdefault("steps", 4)
    jobs.encode(images, folder / "z.h5", model=model, count=count, **how)
    return folder / "z.h5"


FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the reversible default": ({}, {}),
    "certified": ({"certify": True, "solver": "euler", "grid": "linear"}, {}),
    "a tolerance": ({"tol": 0.5}, {}),
    "another solver": ({}, {"solver": "rk4", "steps": 3}),
    "a step": ({"solver": "ab2"}, {"solver": "euler", "steps": 1, "grid": "linear"}),
    "sigma_min": ({"solver": "dpmpp-2m", "end": "sigma_min"}, {}),
    "noise": ({"solver": "euler"}, {"solver": "ddim-eta"}),
    "steps of a batch": ({"solver": "dopri5", "rtol": 1e-2}, {}),
    "steps of each image": ({"solver": "bosh3-per-image", "rtol": 0.1}, {}),
    "one by one": ({"solver": "scipy-rk45", "rtol": 0.1}, {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_page_shows_what_decode_gives(tmp_path: Path, kind: str) -> None:
    """The square: `interpolate --corners`, then `decode`. The nearest latents: `decode` of the file."""
    encode, how = FILES[kind]
    np.save(tmp_path / "images.npy", np.random.default_rng(1).integers(0, 256, (7, 6, 6), np.uint8))
    z, corners = encoded(tmp_path, images=tmp_path / "images.npy", **encode), (2, 0, 5, 3)
    made = jobs.explore(z, tmp_path / "e.html", corners=corners, tiles=3, levels=4, **how)
    assert (made.done, made.total) == (9, 9)
    data = told(tmp_path / "e.html")
    jobs.interpolate(z, corners, 3, "grid", to=jobs.Drawing(tmp_path / "path.h5"))
    assert np.array_equal(tiles(data["levels"][-1]["predicted"], data, 3), decoded(tmp_path / "path.h5", **how))
    near = data["nearest"]
    shown = tiles(near["images"], data, near["columns"])[: len(near["order"])]
    assert near["order"] == sorted({number for row in near["numbers"] for number in row})
    if kind != "steps of a batch":  # there the batch decides, and this one is another
        assert np.array_equal(shown, decoded(z, **how)[near["order"]])
    sigmas = np.array([level["sigmas"] for level in data["levels"]])
    assert sigmas.shape == ((2 if kind == "a step" else 4), 9)
    assert (np.diff(sigmas, axis=0) <= 0).all()
    assert (np.diff(sigmas, axis=0) < 0).any(axis=1).all()
    with odeddim.open(z) as file:
        assert sigmas[0] == pytest.approx(file.sigma, rel=1e-3)
        assert sigmas[-1] == pytest.approx(float(file.nodes[0]), rel=1e-3, abs=0)
        path = LatentPath.grid([file.pick(index) for index in corners], 3)
    noise = tiles(data["levels"][0]["x"], data, 3)
    assert np.array_equal(noise, to_bytes(path.read(0, 9).x)[:, 0].numpy())
    assert data["levels"][-1]["x"] is None


def test_the_stages_are_those_of_the_run(tmp_path: Path) -> None:
    """Of Euler's method, the state at a node is what the same run has when it is stopped there."""
    z = encoded(tmp_path, solver="euler", grid="linear", steps=6)
    jobs.explore(z, tmp_path / "e.html", tiles=2, levels=4)
    data, field = told(tmp_path / "e.html"), odeddim.load("exact-mixture")
    with odeddim.open(z) as file:
        states = LatentPath.grid([file.pick(index) for index in range(4)], 2).read(0, 4)
        nodes = file.nodes
    assert len(data["levels"]) == 4
    for level, at in zip(data["levels"][:3], (6, 4, 1), strict=True):  # of six evaluations the first, third and last
        assert level["sigmas"] == [float(f"{float(nodes[at]):.4g}")] * 4
        here = integrate(field, states, Plan(odeddim.solvers.get("euler"), nodes[at:])) if at < 6 else states
        predicted = here.xbar - here.sigma * field(torch.tensor(here.sigma), here.xbar)
        assert np.array_equal(tiles(level["x"], data, 2), to_bytes(here.x)[:, 0].numpy())
        assert np.array_equal(tiles(level["predicted"], data, 2), to_bytes(predicted)[:, 0].numpy())


def test_a_run_that_goes_back_up_leaves_what_it_saw_below() -> None:
    """What an adaptive solver rejects is no stage."""

    def run(field: Any, state: State, sigmas: Any, **_: Any) -> State:
        for sigma in (10.0, 4.0, 1.0, 7.0, 3.0, 3.0, 2.0):
            field(torch.tensor(sigma), state.xbar + sigma)
        return State(state.xbar, float(sigmas[-1]))

    row = odeddim.Solver("looks", run, "tests", 1, 1, "here")
    plan = Plan(row, torch.tensor([2.0, 10.0], dtype=torch.float64))
    field = VectorField(lambda x, t: x * 0, Schedule.linear())
    _, stages = stages_of(Decoding(plan), State(torch.zeros(1, 1, 2, 2), 10.0), field, 5)
    assert [stage.sigma for stage in stages] == [10.0, 7.0, 7.0, 3.0, 2.0]


def test_the_nearest_are_those_of_neighbours(tmp_path: Path) -> None:
    z, corners = encoded(tmp_path, 12), (4, 0, 7, 9)
    jobs.explore(z, tmp_path / "e.html", corners=corners, tiles=3, levels=2)
    near = told(tmp_path / "e.html")["nearest"]
    for tile, found in zip((0, 2, 6, 8), jobs.neighbours(z, corners, 4), strict=True):
        assert near["numbers"][tile] == [found.number, *(it.number for it in found.neighbours)]
        assert near["distances"][tile] == [0.0, *(round(it.distance, 4) for it in found.neighbours)]
    with h5py.File(z) as file:
        every = file["xbar"][:].reshape(12, -1).astype(np.float64)
    with odeddim.open(z) as latents:
        middle = LatentPath.grid([latents.pick(index) for index in corners], 3).read(4, 5)
    apart = np.sqrt(((every - middle.xbar.flatten().double().numpy()) ** 2).mean(1) / (1 + middle.sigma**2))
    order = np.argsort(apart, kind="stable")[:5]
    assert near["numbers"][4] == order.tolist()
    assert near["distances"][4] == pytest.approx(apart[order], abs=1e-4)


class Doubled:
    """A codec: images are the data, twice as large."""

    image_shape, sha256 = (3, 8, 8), "doubled"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 2)

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        return data.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def to(self, device: Any) -> Any:
        return self


def test_a_latent_model_shows_predicted_images_and_no_states(tmp_path: Path) -> None:
    field = VectorField(
        lambda x, t: x, Schedule.linear(), shape=(3, 4, 4), name="mine", codec=Doubled()
    )  # fmt: skip
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8))
    z = encoded(tmp_path, 5, field, tmp_path / "images.npy")
    jobs.explore(z, tmp_path / "e.html", tiles=3, levels=3, model=field)
    data = told(tmp_path / "e.html")
    assert [level["x"] for level in data["levels"]] == [None] * 3
    jobs.interpolate(z, range(4), 3, "grid", to=jobs.Drawing(tmp_path / "path.h5", model=field))
    shown = tiles(data["levels"][-1]["predicted"], data, 3)
    assert shown.shape == (9, 8, 8, 3)
    assert np.array_equal(shown, decoded(tmp_path / "path.h5", model=field))


def test_figures_of_the_file_are_on_the_page(run: Run, here: Path) -> None:
    z = encoded(here, certify=True)
    assert run("explore", "z.h5", "--tiles", 2, "--levels", 2, "-o", "e.html")[0] == 0
    page = (here / "e.html").read_text(encoding="utf-8")
    with odeddim.open(z) as file:
        for name, values in file.certificate.items():
            cells = "".join(f"<td>{float(value):.4g}</td>" for value in values[:4])
            assert f'<th scope="row">{name.replace("_", " ")}</th>{cells}' in page
        assert f"7 latents in z.h5 (<code>{file.fingerprint[:12]}</code>)" in page
    assert "unipc-2, log grid, 4 steps, end zero" in page
    assert "odeddim verify" not in page
    encoded(here, solver="euler", overwrite=True)
    jobs.explore(z, "plain.html", tiles=2, levels=2)
    assert "The file holds no certificates: <code>odeddim verify</code>" in Path("plain.html").read_text("utf-8")


def test_nothing_of_a_file_gets_in_as_markup(tmp_path: Path) -> None:
    state = odeddim.encode(odeddim.noise(4, (1, 4, 4)).clamp(-1, 1), "ab2", model="exact-mixture", steps=4)
    z = tmp_path / f"{NASTY.replace('/', '')}.h5"
    odeddim.save(state, z, names=[f"{NASTY}{i}" for i in range(4)], model="exact-mixture", solver="ab2", steps=4)
    jobs.explore(z, tmp_path / "e.html", tiles=2, levels=2)
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    data = told(tmp_path / "e.html")
    shown = NASTY.replace("\u202e", "\\u202e").replace("\u2028", "\\u2028")
    assert [corner["name"] for corner in data["corners"]] == [f"{shown}{i}" for i in range(4)]
    assert data["nearest"]["names"]["3"] == f"{shown}3"
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert page.count("<img") == 0
    assert page.count("</title") == 1
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4
    assert "&lt;script&gt;alert(1)&lt;script&gt; &quot;quotes&quot; &amp;" in page  # the file's own name
    assert "\u202e" not in page


def test_a_page_has_a_size_that_browsers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z = encoded(tmp_path)
    page = tmp_path / "e.html"
    with pytest.raises(
        InputError, match=r"64 × 64 tiles of 28×28 pixels at levels=50 would take up to \d+ MB, .* 64 MB"
    ):
        jobs.explore(z, page, tiles=64, levels=50)
    monkeypatch.setattr(EXPLORE, "LARGEST", 100_000)
    with pytest.raises(InputError, match=r"give tiles=4 at most, or fewer levels=\.\.\.$"):
        jobs.explore(z, page, tiles=5, levels=3)
    with pytest.raises(InputError, match=r"2 × 2 tiles .* give fewer levels=\.\.\.$"):
        jobs.explore(z, page, levels=99)
    assert not page.exists()
    assert "4 × 4 images" in str(jobs.explore(z, page, levels=3))
    assert len(told(page)["nearest"]["numbers"]) == 16
    written = page.stat().st_size
    assert sum(len(uri) for level in told(page)["levels"] for uri in level.values() if isinstance(uri, str)) < 100_000
    assert f"This page holds {max(written / 1e6, 0.1):.1f} MB" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--corners", 0, 1, 2, 7), "z.h5 holds latents 0 to 6: there is no latent 7"),
        (("-o", "e.pdf"), "e.pdf: name the file NAME.html or NAME.htm"),
        (("-o", "z.h5/e.html"), "z.h5 is a file, so z.h5/e.html cannot be made below it"),
        (("--tiles", 64, "--levels", 40), "give --tiles 27 at most, or fewer --levels"),
        (("--plan", "z.h5"), "z.h5 is no plan"),
        (("--model", "exact-gaussian"), "give the former with --model"),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Run, here: Path, arguments: tuple[object, ...], sentence: str) -> None:
    encoded(here)
    code, out, err = run("explore", "z.h5", "-o", "e.html", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(here.glob("*.html"))


def test_what_python_refuses(tmp_path: Path) -> None:
    z = encoded(tmp_path)
    for how, words in (
        ({"corners": (0, 1, 2)}, "a square has 4 corners, not 3"),
        ({"levels": 1}, "levels=1"),
        ({"tiles": 0}, "tiles=0"),
        ({"tiles": 65}, "2 to 64 tiles"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            jobs.explore(z, tmp_path / "e.html", **how)  # type: ignore[arg-type]


def test_a_page_of_other_settings_is_another_file(run: Run, here: Path) -> None:
    encoded(here)
    command = ("explore", "z.h5", "--tiles", 2, "--levels", 2, "-o", "e.html")
    assert run(*command)[0] == 0
    before = (here / "e.html").read_bytes()
    for more in (("--corners", 3, 2, 1, 0), ("--levels", 3), ("--tiles", 3), ("--solver", "euler")):
        code, _, err = run(*command, *more)
        assert code == 2
        assert "e.html is there already, and this command with these settings has not written it" in err
    assert run(*command, "--batch-size", 1)[0] == 0  # not a setting of the result
    assert (here / "e.html").read_bytes() == before
