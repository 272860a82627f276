"""What an option can be, besides click's own types."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import click

from odeddim import solvers
from odeddim.types import InputError

if TYPE_CHECKING:
    from click import ParamType as Kind
else:

    class Kind(click.ParamType):
        """click's, which says what it converts to from click 8.4 on only: at run time nobody asks."""

        def __class_getitem__(cls, result: object) -> type[Kind]:
            return cls


class SolverName(Kind[str]):
    """A name of the solver table, with its neighbours when it is not one."""

    name = "solver"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return solvers.get(str(value)).name
        except InputError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(n) for n in solvers.names() if n.startswith(incomplete)]


MODELS = ("fashion-mnist", "fashion-mnist-flow", "exact-gaussian", "exact-mixture", "exact-samples")
"""The names of `odeddim.models.BUILT_IN`, whose import would load torch."""


class ModelName(Kind[str]):
    """A name or a path of a model, as `odeddim.load` takes it."""

    name = "name|path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        names = [click.shell_completion.CompletionItem(n) for n in MODELS if n.startswith(incomplete)]
        return [click.shell_completion.CompletionItem(incomplete, type="file"), *names]


class Items(Kind[list[Any]]):
    """A comma-separated list, each item of another type."""

    name = "list"

    def __init__(self, item: click.ParamType[Any]) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        words = [word.strip() for word in str(value).split(",") if word.strip()]
        if not words:
            self.fail("an empty list", param, ctx)
        return [self.item.convert(word, param, ctx) for word in words]

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = self.item.shell_complete(ctx, param, last)
        return [click.shell_completion.CompletionItem(before + comma + it.value, it.type, it.help) for it in found]


class Tolerance(click.FloatRange):
    """A positive number, and no other float."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no tolerance", param, ctx)
        return number


class Workers(Kind["int | str"]):
    """A number of processes up to `most`, or "auto"."""

    name = "integer|auto"

    def __init__(self, most: int) -> None:
        self.number = click.IntRange(1, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return "auto" if value == "auto" else int(self.number.convert(value, param, ctx))


class Window(Kind[tuple[int, float | None]]):
    """WINDOW[:TOLERANCE] of runs in parallel."""

    name = "window[:tolerance]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float | None]:
        if isinstance(value, tuple):
            return value
        window, colon, tolerance = str(value).partition(":")
        try:
            found = int(window), float(tolerance) if colon else None
        except ValueError:
            self.fail(f"{value!r} is not WINDOW or WINDOW:TOLERANCE, as in 50 or 50:1e-4", param, ctx)
        if found[0] < 1 or not 0 <= (found[1] or 0.0) < math.inf:
            self.fail(f"{value!r}: the window must be at least 1, and the tolerance at least 0", param, ctx)
        return found


class Interval(Kind[tuple[float, float]]):
    """LOW,HIGH: two noise levels."""

    name = "interval"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH: two noise levels σ, as in 0.3,5", param, ctx)
        if not 0 <= low < high:
            self.fail(f"{value!r}: the first noise level must be at least 0 and below the second", param, ctx)
        return low, high


class Assignment(Kind[tuple[str, Any]]):
    """NAME=VALUE; the value is a number if it looks like one."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        name, text = name.strip().replace("-", "_"), text.strip()
        if not equals or not name.isidentifier() or not text:
            self.fail(f"{value!r} is no NAME=VALUE", param, ctx)
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                number = kind(text)
                if not math.isfinite(number):
                    self.fail(f"{value!r} is no finite number", param, ctx)
                return name, number
        return name, text


class Shape(Kind[tuple[int, ...]]):
    """C,H,W: the shape of an image; C,F,H,W: that of a video."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).replace("x", ",").split(",")]
        if len(parts) not in (3, 4) or not all(part.isdecimal() and part.strip("0") for part in parts):
            self.fail(
                f"{str(value)!r:.80}: give channels, height and width, as in 3,32,32, "
                "or of videos channels, frames, height and width",
                param,
                ctx,
            )
        if any(len(part) > 9 for part in parts):
            self.fail(f"{str(value)!r:.80}: an image has fewer values than that: give less", param, ctx)
        return tuple(map(int, parts))


class FigureSize(Kind[tuple[float, float]]):
    """W,H: the width and height of a figure in inches."""

    name = "inches"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            width, height = (float(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{str(value)!r:.80}: give the width and the height in inches, as in 6.5,4", param, ctx)
        return width, height


class Size(Kind[Any]):
    """The size of an image: S, H,W or model."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value == "model":
            return value
        parts = [part.strip() for part in value.replace("x", ",").replace("×", ",").split(",")]
        if len(parts) > 2 or not all(part.isdecimal() and part.strip("0") and len(part) < 10 for part in parts):
            self.fail(f"{value!r:.80}: give a number of pixels, height and width as in 64,96, or model", param, ctx)
        sides = tuple(map(int, parts))
        return sides if len(sides) == 2 else sides[0]


class Frames(Kind["int | str"]):
    """Which frames are taken: first, all, video or a number of them."""

    name = "frames"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if not isinstance(value, str) or value in ("first", "all", "video"):
            return int(value) if isinstance(value, int) else str(value)
        if not value.isdecimal() or not value.strip("0") or len(value) > 9:
            self.fail(f"{value!r:.80}: give first, all, video, or a number of frames", param, ctx)
        return int(value)


class Indices(Kind[Any]):
    """A group of latents: indices and ranges of them, ends included, 0-9,12,20-29."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from odeddim.latents.group import Group

        try:
            return Group.parse(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
