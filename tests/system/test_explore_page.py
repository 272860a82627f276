"""The page of `odeddim explore` in a browser: what it shows is what decode gives, however one moves there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, chromium_driver, in_a_browser
from PIL import Image

import odeddim
from odeddim import jobs
from odeddim.latents.interpolate import LatentPath

pytestmark = in_a_browser
SIDE, LEVELS = 5, 4
NASTY = '<script>alert(1)</script> "quotes" & <img src=x onerror=alert(2)> $title'
CANVAS = """
const canvas = document.querySelectorAll(arguments[0])[arguments[1]], { width, height } = canvas;
const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
return [width, height, ...copy.getImageData(0, 0, width, height).data];
"""


class Explored(Browser):
    """The page, and what it shows."""

    def __init__(self, driver: Any, page: Path, images: list[np.ndarray[Any, Any]]) -> None:
        super().__init__(driver, page)
        self.images = images
        """What decode gives for each tile."""

    def ready(self, **how: Any) -> Explored:
        """Open the page, and wait until its images are there."""
        from selenium.webdriver.support.ui import WebDriverWait

        self.open(**how)
        WebDriverWait(self.driver, 10).until(lambda _: self.js("return document.querySelector('#nearest li') !== null"))
        return self

    def pixels(self, selector: str, at: int = 0) -> np.ndarray[Any, Any]:
        """The pixels of a canvas, (H, W, 3)."""
        width, height, *values = self.js(CANVAS, selector, at)
        found = np.array(values, np.uint8).reshape(height, width, 4)
        assert (found[..., 3] == 255).all()
        return found[..., :3]

    def is_at(self, row: int, column: int) -> bool:
        """Whether the page says that it shows this tile, marks it, and shows what decode gives for it."""
        (where,) = self.find("#where")
        assert where.text.startswith(f"row {row + 1}, column {column + 1} of {SIDE}"), where.text
        inside = self.js(
            "const boxOf = id => document.getElementById(id).getBoundingClientRect();"
            "const point = boxOf('point'), square = boxOf('square');"
            "return [(point.top + point.bottom) / 2 - square.top, (point.left + point.right) / 2 - square.left]"
            ".map((at, i) => Math.floor(at / (i ? square.width : square.height) * arguments[0]))",
            SIDE,
        )
        assert inside == [row, column]
        return np.array_equal(self.pixels("#predicted"), self.images[row * SIDE + column])

    def shown(self) -> str:
        """All of its text that can be seen."""
        text: str = self.js("return document.body.innerText")
        return text


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explored]:
    """A page in colour of a file with hostile names, and the images that decode gives."""
    folder = tmp_path_factory.mktemp("explored")
    images = np.random.default_rng(3).integers(0, 256, (8, 6, 6, 3), np.uint8)
    np.save(folder / "images.npy", images)
    z, model = folder / "<b>z.h5", "exact-mixture"
    jobs.encode(folder / "images.npy", folder / "plain.h5", model=model, solver="ab2", steps=8)
    with odeddim.open(folder / "plain.h5") as file:
        names = [f"{NASTY}{i}" for i in range(8)]
        odeddim.save(file[:], z, names=names, model=model, plan=file.plan)
    corners = (5, 1, 0, 7)
    jobs.explore(z, folder / "e.html", corners=corners, tiles=SIDE, levels=LEVELS)
    jobs.interpolate(z, corners, SIDE, "grid", to=jobs.Drawing(folder / "path.h5"))
    jobs.decode(folder / "path.h5", folder / "out")
    decoded = [np.array(Image.open(path)) for path in sorted((folder / "out").glob("*.png"))]
    with chromium_driver(tmp_path_factory.mktemp("chromium")) as driver:
        yield Explored(driver, folder / "e.html", decoded)


@pytest.fixture
def page(chromium: Explored) -> Iterator[Explored]:
    """The page at 1280 pixels, light; whatever a test does there, the console stays empty."""
    yield chromium.ready()
    assert chromium.driver.get_log("browser") == []


def test_it_opens_quietly(page: Explored) -> None:
    page.asked()  # of the pages before
    page.ready()
    assert page.asked() == [page.page.as_uri()]
    assert page.driver.title == "<b>z.h5, explored"
    assert page.is_at(2, 2)
    words = page.shown()
    assert f"{NASTY}5" in words
    assert "Figures of the corners" in words
    assert page.js("return [document.scripts.length, document.querySelectorAll('img, b b').length]") == [2, 0]


def drag(page: Explored, *places: tuple[float, float], touch: bool = False) -> None:
    """Press at the first (across, down) of the square, as shares of it, and move to the others."""
    (square,) = page.find("#square")
    box = page.js("arguments[0].scrollIntoView(); return arguments[0].getBoundingClientRect()", square)
    points = [{"x": box["left"] + a * box["width"], "y": box["top"] + d * box["height"]} for a, d in places]
    for i, point in enumerate([*points, points[-1]]):
        last = i == len(points)
        if touch:
            kind = "touchEnd" if last else "touchMove" if i else "touchStart"
            page.devtools("Input.dispatchTouchEvent", type=kind, touchPoints=[] if last else [point])
        else:
            kind = "mouseReleased" if last else "mouseMoved" if i else "mousePressed"
            page.devtools("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **point)


@pytest.mark.parametrize("touch", [False, True])
def test_a_drag_moves_the_point(page: Explored, touch: bool) -> None:
    page.devtools("Emulation.setTouchEmulationEnabled", enabled=touch)
    drag(page, (0.5, 0.5), (0.3, 0.7), touch=touch)
    assert page.is_at(3, 1)
    drag(page, (0.1, 0.1), (0.5, 0.5), (0.95, 0.31), touch=touch)
    assert page.is_at(1, 4)
    before = page.js("return scrollY")
    drag(page, (0.9, 0.9), (0.5, 1.4), touch=touch)  # out of the square, whose edge it keeps to
    assert page.is_at(4, 2)
    assert page.js("return scrollY") == before
    page.devtools("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_mouse_that_is_not_pressed_moves_nothing(page: Explored) -> None:
    drag(page, (0.9, 0.9))
    box = page.js("return document.querySelector('#square').getBoundingClientRect()")
    page.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=box["left"] + 5, y=box["top"] + 5)
    assert page.is_at(4, 4)


def test_the_keyboard_does_it_all(page: Explored) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> Any:
        ActionChains(page.driver).send_keys(*keys).perform()
        return page.driver.switch_to.active_element

    square = press(Keys.TAB)
    assert square.get_attribute("id") == "square"
    assert page.js("return getComputedStyle(arguments[0]).outlineStyle", square) == "solid"
    press(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.is_at(0, 1)
    press(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert page.is_at(0, 2)
    press(Keys.END, Keys.PAGE_DOWN)
    assert page.is_at(4, 4)
    assert square.get_attribute("aria-valuetext") == f"row 5, column 5 of 5: the latent 7 itself, {NASTY}7"
    assert square.get_attribute("aria-valuenow") == square.get_attribute("aria-valuemax") == "25"
    press(Keys.HOME, Keys.PAGE_UP)
    assert page.is_at(0, 0)
    slider = press(Keys.TAB)
    assert slider.get_attribute("id") == "level"
    press(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "σ = 157.4"
    press(Keys.END)
    assert slider.get_attribute("aria-valuetext") == "σ = 0, the image"
    assert page.is_at(0, 0)


def test_the_slider_goes_from_noise_to_image(page: Explored) -> None:
    from selenium.webdriver import Keys

    (slider,) = page.find("#level")
    seen = []
    for _ in range(LEVELS):
        (sigma,), (what,) = page.find("#sigma"), page.find("#what")
        seen.append((float(sigma.text.removeprefix("σ = ")), what.text.split()[0], page.pixels("#x").tobytes()))
        assert np.array_equal(page.pixels("#map")[12:18, 12:18], page.pixels("#predicted"))  # the tile in the middle
        slider.send_keys(Keys.ARROW_LEFT)
    sigmas, words, states = zip(*seen, strict=True)
    assert sigmas[0] == 0
    assert list(sigmas) == sorted(sigmas)
    assert words == ("Image", *["Predicted"] * (LEVELS - 1))
    assert len(set(states)) == LEVELS
    with odeddim.open(page.page.with_name("path.h5")) as file:  # at the top x is the latent itself
        x = ((file[12].x[0].double() + 1) * 127.5).round().clamp(0, 255).movedim(0, -1).numpy()
    assert np.array_equal(page.pixels("#x"), x)


def test_the_nearest_follow_the_point(page: Explored) -> None:
    drag(page, (0.05, 0.05))
    z = page.page.with_name("<b>z.h5")
    (found,) = jobs.neighbours(z, [5], 4)
    rows = [item.text.splitlines() for item in page.find("#nearest li")]
    near = [(5, f"{NASTY}5", 0.0), *found.neighbours]
    assert rows == [[f"{number} {name}", f"{distance:.4f} away"] for number, name, distance in near]
    jobs.decode(z, z.with_name("every.h5"), overwrite=True)
    import h5py

    with h5py.File(z.with_name("every.h5")) as file:
        images = file["images"][:]
    for at, (number, _, _) in enumerate(near):
        expected = ((images[number].astype(np.float64) + 1) * 127.5).round().clip(0, 255)
        assert np.array_equal(page.pixels("#nearest canvas", at), np.moveaxis(expected, 0, -1))
    (where,) = page.find("#where")
    assert where.text == f"row 1, column 1 of {SIDE}: the latent 5 itself, {NASTY}5"
    with odeddim.open(z) as file:
        assert LatentPath.grid([file.pick(i) for i in (5, 1, 0, 7)], SIDE).read(0, 1).xbar.equal(file.pick(5).xbar)


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_wider_than_the_window(page: Explored, width: int) -> None:
    page.ready(width=width)
    most, room = page.js("const size = document.documentElement; return [size.scrollWidth, size.clientWidth]")
    assert most == room > width - 20
    outside = page.js(
        "return [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll > *, .names > * > *') &&"
        "each.getBoundingClientRect().right > arguments[0] + 0.5).map(each => each.outerHTML.slice(0, 80))",
        room,
    )
    assert outside == []
    drag(page, (0.7, 0.1))
    assert page.is_at(0, 3)


CONTRAST = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (rgb) => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const paper = light(parse(getComputedStyle(document.body).backgroundColor));
const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
return [paper, ...[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('script, noscript') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .map(e => ratio(light(parse(getComputedStyle(e).color)), paper))]
"""


def test_words_can_be_read_in_light_and_dark(page: Explored) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        page.wear(scheme)
        paper, *ratios = page.js(CONTRAST)
        assert (paper < 0.1) == dark
        assert len(ratios) > 30
        assert min(ratios) >= 4.5


def test_every_control_and_image_has_a_name(page: Explored) -> None:
    tree = page.devtools("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in tree:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert named["slider"] == ["The point in the square: arrow keys move it", "Noise level"]
    assert named["image"] == ["The image at row 3, column 3 of 5, σ = 0", "The state x at row 3, column 3 of 5, σ = 0"]
    assert named["heading"] == ["<b>z.h5, explored", "Nearest latents of the file", "Figures of the corners"]
    assert len(named["listitem"]) == 5
