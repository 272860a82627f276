"""VectorField: a network as the right-hand side of dx̄/dσ = ε(x̄/√(1+σ²), t(σ))  (DDIM, eq. 14)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

import torch
from torch import Tensor

from odeddim.ode.conditions import Classes, Condition, Conditions, Given
from odeddim.ode.devices import device_of, dtype_of, products
from odeddim.ode.predictions import PREDICTIONS
from odeddim.ode.schedule import TIMES, Schedule, Time
from odeddim.types import InputError, pick


class Codec(Protocol):
    """What stands between images and the data of a latent model: an autoencoder. Images (B, C, H, W) in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        """Images -> data (B, c, h, w), in the units that the network was trained on."""
        ...

    def decode(self, data: Tensor) -> Tensor:
        """Data -> images."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move it to a device."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images that it is made for."""
        ...

    @property
    def sha256(self) -> str:
        """Which autoencoder this is: data of different ones are not in the same units."""
        ...


class VectorField:
    """A network as a Field: called with (sigma () or (B,), xbar (B, *)), it returns ε (B, *) in xbar's dtype.

    eps: the network, eps(x (B, *), t (B,)) -> (B, *), with x in the units of its training and t the real-valued label;
    with `conditions`, eps(x, t, *given), see `odeddim.ode.conditions`. `from_network` makes one of what people have.
    schedule: its noise levels, labels and units. predicts: "eps", "x0", "v" or "flow" (see `odeddim.ode.predictions`).
    time: what t is, a name of `odeddim.ode.schedule.TIMES` or a function of σ; None: the schedule's own.
    shape: (C, H, W) of one image if it is fixed. codec: the autoencoder of a latent model, whose data have that shape.
    name, sha256: which model this is, as written into latent files;
    details: what else is known of it, for `odeddim inspect`.

    A module is set to evaluation mode. It runs in its own dtype and on its own device; the state keeps its own dtype.
    On a GPU float32 is float32 while the network is evaluated, whatever torch is set to outside: its default rounds
    what convolutions multiply to TF32, which here takes `to(device, "tf32")`.
    `nfe` counts calls, `rows` the images evaluated in them, `filled` those that only filled up blocks; `reset()` sets
    all to 0. `watch`, if set, is told of the images of each call, for a progress bar.

    network_batch: None, or how many images the network always sees at once, filled up if need be. The last digits of
    convolutions depend on the shape of their batch, so that with a number here an image's latent is the same, bit for
    bit, in whatever company it comes. (On a CPU, images whose size is no multiple of 16 numbers can also be rounded by
    their place among those: then 1 makes it so.)
    """

    def __init__(
        self,
        eps: Callable[[Tensor, Tensor], Tensor],
        schedule: Schedule,
        *,
        predicts: str = "eps",
        time: Time | None = None,
        shape: tuple[int, ...] | None = None,
        name: str = "custom",
        sha256: str = "",
        details: dict[str, Any] | None = None,
        conditions: Conditions | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.eps = eps
        self.schedule = schedule
        self.predicts = pick(predicts, PREDICTIONS, "prediction")
        time = schedule.time if time is None else time
        self.time: Time = time if callable(time) else pick(time, TIMES, "time label")
        self.shape = shape
        self.name = name
        self.sha256 = sha256
        self.details = details or {}
        self.conditions = conditions
        self.condition = Condition()
        self.codec = codec
        self._given: tuple[Given, Given | None] | None = None
        self.network_batch: int | None = None
        self.watch: Callable[[int], Any] | None = None
        # Every node is met once for each batch and direction: what it costs to look it up is paid once.
        self._label_and_scale = functools.lru_cache(maxsize=4096)(
            functools.partial(_label_and_scale, schedule, self.time)
        )
        if isinstance(eps, torch.nn.Module):
            eps.eval()  # dropout would make every run another one
        parameter = next(eps.parameters(), None) if isinstance(eps, torch.nn.Module) else None
        self._place = _Place() if parameter is None else _Place(parameter.device, parameter.dtype)
        self.reset()

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the network; None: as the state."""
        return self._place.dtype

    @property
    def device(self) -> torch.device | None:
        """Of the network; None: as the state."""
        return self._place.device

    @property
    def keeps_dtype(self) -> bool:
        """Whether the network computes in a dtype of its own, which is a part of it, as of exported programs."""
        return bool(getattr(self.eps, "keeps_dtype", False))

    @property
    def tf32(self) -> bool:
        """Whether a GPU may multiply the network's float32 numbers in TF32."""
        return self._place.tf32

    def to(self, device: torch.device | str, dtype: torch.dtype | str | None = None) -> VectorField:
        """This field with its network and codec moved to a device and, if given, a dtype. Returns itself.

        dtype: torch's, or "float32", "float64", "bfloat16"; or "tf32" on CUDA, which is float32 with products that are
        several times faster and carry 10 bits. The fields of one network move together, whatever their conditions.
        Errors: InputError for a device that is not there and for what is no dtype of a network.
        """
        place = device_of(device)
        kind, tf32 = (self.dtype, self.tf32) if dtype is None else dtype_of(dtype)
        if dtype is not None and tf32 and place.type != "cuda":
            raise InputError(f"tf32 is a way of CUDA to multiply float32 numbers, not of {place.type}: use float32")
        if isinstance(self.eps, torch.nn.Module):
            self.eps.to(device=place, dtype=None if dtype is None else kind)
        if self.codec is not None:
            self.codec.to(place)
        self._place.device, self._place.dtype, self._place.tf32 = place, kind, tf32
        return self

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of one image, None if it takes any; `shape` is that of the data, which are images without codec."""
        return self.shape if self.codec is None else self.codec.image_shape

    def on_data(self) -> VectorField:
        """This field without its codec: what goes in and comes out of a run is then the data that the ODE moves."""
        if self.codec is None:
            return self
        twin = copy.copy(self)
        twin.codec = None
        return twin

    def reset(self) -> None:
        """Set the counters `nfe`, `rows` and `filled` to 0."""
        self.nfe = 0
        self.rows = 0
        self.filled = 0

    def relabelled(self, label_at: Callable[[float], float]) -> VectorField:
        """This field with the network's label taken at another noise level: t(label_at(σ)), where all share σ.

        With the next node of a grid that is how much code inverts DDIM: x at the source, the label of the target.
        """
        twin, own = copy.copy(self), self._label_and_scale
        twin._label_and_scale = lambda sigma: (own(label_at(sigma))[0], own(sigma)[1])  # type: ignore[assignment]
        return twin

    @classmethod
    def from_network(
        cls,
        network: Callable[..., Any],
        schedule: Schedule,
        *,
        predicts: str = "eps",
        time: Time | None = None,
        variances: bool = False,
        classes: int | None = None,
        null: int | None = None,
        shape: tuple[int, ...] | None = None,
        name: str = "custom",
        sha256: str = "",
    ) -> VectorField:
        """Any network, module or function, network(x (B, *), t (B,)) -> (B, *): its answer may also be the first of a
        tuple, or lie in an attribute `sample`.

            VectorField.from_network(net, Schedule.scaled_linear(), predicts="v")                  # time="index"
            VectorField.from_network(net, Schedule.rectified_flow(), predicts="flow")              # time="unit"
            VectorField.from_network(net, Schedule.rectified_flow(), predicts="flow-to-data", time="reversed")
            VectorField.from_network(denoiser, Schedule.edm(), predicts="x0")                      # D(x, σ)

        schedule, predicts, time: see the class. variances: it predicts variances too, in the second half of its
        channels; they are left out. classes: it is called network(x, t, labels (B,) int64) with 0 <= label < classes;
        null: the label that means none, for guidance. name, sha256: for latent files, which only go with this model.
        """
        return cls(
            Adapted(network, variances=variances),
            schedule,
            predicts=predicts,
            time=time,
            shape=shape,
            name=name,
            sha256=sha256,
            conditions=_classes(classes, null),
        )

    @property
    def title(self) -> str:
        """For titles: the name without its folders, and the condition."""
        name = PurePath(self.name).name
        return f"{name} ({self.condition.words})" if self.condition.words else name

    def __repr__(self) -> str:
        return f"<VectorField {self.title}: {self.describe()}>"

    def describe(self) -> str:
        """What this model is, in one line: what `load` found, and what it had to assume."""
        known = self.details
        words = [
            f"{self.schedule!r}, predicts {self.predicts}, time {self.time if isinstance(self.time, str) else 'own'}"
        ]
        words += [str(known["found"])] if "found" in known else []
        words += [f"{known['weights']} weights"] if "weights" in known else []
        words += [f"under {self.condition.words}"] if self.condition.words else []
        words += [f"assumed: {'; '.join(known['assumed'])}"] if known.get("assumed") else []
        return "; ".join(words)

    def conditioned(
        self,
        label: int | None = None,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> VectorField:
        """This field under a condition: class or prompt, and guidance on an interval (from, to) of noise levels σ.

        Errors: InputError for what the network does not know.
        """
        condition = Condition(label, prompt, negative_prompt, guidance, interval)
        twin = copy.copy(self)
        twin.watch = None
        twin.reset()
        if self.conditions is None:
            if condition != Condition():
                raise InputError(f"the model {self.name!r} has no conditions: leave out {condition.words}")
            return twin
        given, null = self.conditions.given(condition)
        if guidance != 1 and null is None:
            raise InputError(
                f"the model {self.name!r} was not trained without condition: guidance has nothing to leave"
            )
        twin.condition, twin._given = condition, (given, null)
        return twin

    def check(self, x: Tensor, shape: tuple[int, ...] | None = None) -> None:
        """Raise an InputError unless x is a finite batch (B, *), B >= 1, that this model takes.

        shape: (*) of one, if not the one that the network takes.
        """
        shape = shape or self.shape
        if x.ndim < 2 or x.shape[0] == 0:
            raise InputError(f"a batch (B, *) of at least one image or latent is needed, not shape {tuple(x.shape)}")
        if shape is not None and tuple(x.shape[1:]) != shape:
            has, wants = "×".join(map(str, x.shape[1:])), "×".join(map(str, shape))
            what = "latents" if self.codec is not None and shape == self.shape else "images"
            raise InputError(f"the model {self.name!r} takes {what} of {wants} (channels×height×width), not {has}")
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise InputError(f"image {int((~finite).nonzero()[0])} of the batch holds NaN or infinite values")

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        batch = xbar.shape[0]
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        # The label keeps float32 at least: bfloat16 would make 999 of it 1000.
        dtype = self.dtype or xbar.dtype
        t_dtype = torch.promote_types(dtype, torch.float32)
        if sigma.ndim == 0:  # Python numbers need no transfer to the device
            label, scale = self._label_and_scale(float(sigma))
            x = xbar * scale
            labels = torch.full((batch,), label, dtype=t_dtype, device=xbar.device)
        else:
            x = xbar * _like_images(self.schedule.scale(sigma), xbar)
            labels = self.schedule.label(sigma, self.time).to(xbar.device, t_dtype)
        with products(xbar.device, tf32=self.tf32):
            out = self._under_condition(x.to(dtype), labels, sigma).to(xbar.dtype)
        self.nfe += 1
        if self.watch is not None:
            self.watch(batch)
        if out.shape != xbar.shape:
            raise InputError(
                f"the model {self.name!r} returned shape {tuple(out.shape)} for an input of {tuple(xbar.shape)}: "
                "of a network that also predicts variances, say from_network(..., variances=True)"
            )
        if self.predicts != "eps":
            # Below σ_1 the network is asked at σ_1, so its answer is read there: (x̄ - x0)/σ has no value at σ = 0.
            held = sigma.clamp(min=self.schedule.sigma_min) if self.predicts == "x0" else sigma
            out = PREDICTIONS[self.predicts](out, xbar, _like_images(held.expand(batch), xbar))
        if not bool(torch.isfinite(out.sum())) and not bool(torch.isfinite(out).all()):
            where = float(sigma.max())
            cause = "its input there was finite" if bool(torch.isfinite(xbar).all()) else "the state was so already"
            raise InputError(
                f"the model {self.name!r} gave NaN or infinite values at σ = {where:.6g} "
                f"(t = {float(labels.max()):.6g}), evaluation {self.nfe}; {cause}: "
                "try more steps, another solver, or --dtype float32"
            )
        return out

    def _under_condition(self, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
        """What the network answers, guided where the condition says so; x and labels (B, ...), sigma () or (B,)."""
        guided: Tensor | bool = self.condition.guidance != 1
        if guided and self.condition.interval is not None:
            low, high = self.condition.interval
            within = (sigma >= low) & (sigma <= high)
            guided = within if within.ndim and bool(within.any() ^ within.all()) else bool(within.any())
        if isinstance(guided, bool):
            self.rows += x.shape[0] * (1 + guided)
            return self._evaluate(x, labels, guided)
        # An image outside must not see that another is within: its last digits would.
        rows = guided.to(x.device)
        self.rows += x.shape[0] + int(rows.sum())
        inside = self._evaluate(x[rows], labels[rows], True)
        out = inside.new_empty((x.shape[0], *inside.shape[1:]))
        out[rows], out[~rows] = inside, self._evaluate(x[~rows], labels[~rows], False).to(out.dtype)
        return out

    def _evaluate(self, x: Tensor, labels: Tensor, guided: bool) -> Tensor:
        size = self.network_batch
        if size is None or size == x.shape[0]:
            return self._network(x, labels, guided)
        blocks = []
        for start in range(0, x.shape[0], size):
            block, its_labels = x[start : start + size].clone(), labels[start : start + size]
            count = block.shape[0]
            if count < size:  # any image will do
                filling = (size - count, *[-1] * (x.ndim - 1))
                block = torch.cat([block, block[:1].expand(filling)])
                its_labels = torch.cat([its_labels, its_labels[:1].expand(size - count)])
                self.filled += (size - count) * (1 + guided)
            blocks.append(self._network(block, its_labels, guided)[:count])
        return torch.cat(blocks)

    def _network(self, x: Tensor, labels: Tensor, guided: bool) -> Tensor:
        if self.conditions is None:
            return self.eps(x, labels)
        if self._given is None:
            self._given = self.conditions.given(self.condition)
        given, null = self._given
        if not guided or null is None:
            return self.eps(x, labels, *(_repeated(part, x) for part in given))
        both = [torch.cat([_repeated(part, x), _repeated(none, x)]) for part, none in zip(given, null, strict=True)]
        told, untold = self.eps(torch.cat([x, x]), torch.cat([labels, labels]), *both).chunk(2)
        # In the state's precision at least: the difference is small and the guidance may be large.
        exact = torch.promote_types(told.dtype, torch.float32)
        told, untold = told.to(exact), untold.to(exact)
        return untold + self.condition.guidance * (told - untold)


@dataclass
class _Place:
    """Where a network is and in what dtype: one thing for all fields that share it."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None
    tf32: bool = False


class Adapted(torch.nn.Module):
    """A network of other people as one that gives a tensor (B, *) and nothing else."""

    def __init__(self, network: Callable[..., Any], *, variances: bool) -> None:
        super().__init__()
        self.network = network  # a module here is a part of this one, and moves with it
        self.variances = variances

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        """x (B, C, *), t (B,) -> (B, C, *)."""
        out = self.network(x, t, *given)
        out = out[0] if isinstance(out, (tuple, list)) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise InputError(f"the network gives a {type(out).__name__}, not a tensor: wrap it in a function that does")
        if self.variances and out.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
            return out[:, : x.shape[1]]
        return out


def _classes(count: int | None, null: int | None) -> Classes | None:
    if count is None and null is not None:
        raise InputError(f"null = {null} stands for no class: say how many classes there are, classes=N")
    return None if count is None else Classes(count, null)


def _repeated(part: Tensor, x: Tensor) -> Tensor:
    """(1, *) for each image of x, on its device; in its dtype unless it is whole numbers."""
    part = part.to(x.device, x.dtype if part.is_floating_point() else None)
    return part.expand(x.shape[0], *part.shape[1:])


def _label_and_scale(schedule: Schedule, time: Time, sigma: float) -> tuple[float, float]:
    if not math.isfinite(sigma):
        raise InputError(f"the solver went to σ = {sigma}: give it tolerances that it can keep, or more steps")
    node = torch.tensor(sigma, dtype=torch.float64)
    return float(schedule.label(node, time)), float(schedule.scale(node))


def _like_images(per_image: Tensor, xbar: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) on xbar's device and in its dtype."""
    return per_image.to(xbar.device, xbar.dtype).reshape(-1, *[1] * (xbar.ndim - 1))
