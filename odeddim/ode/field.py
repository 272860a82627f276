"""VectorField: a network as the right-hand side of dx̄/dσ = ε(x̄/√(1+σ²), t(σ))  (DDIM, eq. 14)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.adapted import Adapted
from odeddim.ode.answers import check_answer, like_images, not_finite
from odeddim.ode.codec import Codec
from odeddim.ode.conditions import Condition, Conditions, Given, classes_of
from odeddim.ode.devices import Numbers, device_of, dtype_of, products
from odeddim.ode.forms import Form
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.guidance import Way, conditioned_answer, guided_answer, in_blocks, in_ways, length_of, ways_at
from odeddim.ode.guides import as_guide, each_as_guide, named
from odeddim.ode.labels import Labels, Relabelled, labels_of
from odeddim.ode.pickling import check_pickles
from odeddim.ode.placed import Placed, check_each, given_to_all, given_to_each, shared_by, together
from odeddim.ode.predictions import HELD, PREDICTIONS
from odeddim.ode.schedule import TIMES, Schedule, Time
from odeddim.ode.sizes import Sizes, check_batch, counterpart
from odeddim.ode.two_networks import TwoNetworks
from odeddim.storage.errors import called
from odeddim.types import InputError, pick


class VectorField:
    """A network as a Field: called with sigma () or (B,) and xbar (B, *), it returns ε (B, *) in xbar's dtype.

    The network is set to evaluation mode. It runs in its own dtype and on its own device; the state keeps its dtype.
    On a GPU, products of float32 numbers are float32 while the network is evaluated, whatever torch's settings are.
    torch's default, TF32 in convolutions, is available as `to(device, "tf32")`.

    A field can be copied, deep-copied and pickled if its network can; `watch` is not copied.

    Args:
        eps: The network, eps(x (B, *), t (B,)) -> (B, *), with x in the units of its training and t the real-valued
            label; with `conditions`, eps(x, t, *given). `from_network` takes networks of other forms.
        schedule: The noise levels, labels and units that the network was trained with.
        predicts: What the network predicts, a name of `odeddim.ode.predictions.PREDICTIONS`.
        time: What t is, a name of `odeddim.ode.schedule.TIMES` or a function of σ; by default the schedule's own.
        shape: The shape (C, H, W) of the network's input, or the `odeddim.ode.sizes.Sizes` that it takes; None for any.
        name: The name of the model, as latent files store it.
        sha256: The hash of the model, as latent files store it.
        details: What else is known of the model, for `odeddim inspect`.
        conditions: The conditions that the network takes, see `odeddim.ode.conditions`.
        codec: The autoencoder of a latent model, whose data have the given shape.

    Attributes:
        guide: The model that guidance leads away from, under the same condition; None for the network itself.
        sizes: The sizes of the network's input; None for any.
        boundary: The noise level below which a model of two networks takes the lower one; None for one network.
        nfe: The number of calls; `reset` sets the three counters to 0.
        rows: The number of images evaluated in these calls; a guided image counts twice.
        filled: The number of images among them that only filled up a batch to `network_batch`.
        notes: Where a run keeps what it reads at its end: whether the values of each evaluation were finite, () bool
            each. None for a check of each evaluation at once (`odeddim.ode.waits`).
        watch: A function that is called with the number of images of each call, for a progress bar, or None.
        network_batch: The number of images in each evaluation of the network, the last batch being filled up; None for
            as many as the field is called with. The last digits of convolutions depend on the size of their batch, so
            with a number here the latent of an image is the same, bit for bit, whatever other images are in the batch.
            (On a CPU, an image whose size is no multiple of 16 numbers can also be rounded differently by its place in
            the batch; network_batch = 1 avoids it.)

    Raises:
        InputError: If `predicts` or `time` is an unknown name.

    Example:
        >>> field = odeddim.VectorField(lambda x, t: x / 2, odeddim.Schedule.linear(), name="mine")
        >>> field(torch.tensor(1.0), torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
        >>> odeddim.encode(torch.zeros(2, 1, 4, 4), "euler", model=field, steps=10)
        State(2 × (1, 4, 4) float32, σ = 157.407)
    """

    def __init__(
        self,
        eps: Callable[[Tensor, Tensor], Tensor],
        schedule: Schedule,
        *,
        predicts: str = "eps",
        time: Time | None = None,
        shape: tuple[int, ...] | Sizes | None = None,
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
        self.sizes = shape if shape is None or isinstance(shape, Sizes) else Sizes(tuple(shape))
        self.name = name
        self.sha256 = sha256
        self.details = details or {}
        self.conditions = conditions
        self.condition = Condition()
        self.codec = codec
        self.boundary = eps.boundary if isinstance(eps, TwoNetworks) else None
        its = getattr(eps, "moments", None)  # of an exact field
        self._moments = its if isinstance(its, Gaussian) else None
        self.guide: VectorField | None = None
        self._given: Placed | None = None
        self._each: int | None = None  # how many images have a condition of their own
        self.network_batch: int | None = None
        self.watch: Callable[[int], Any] | None = None
        self.notes: list[Tensor] | None = None
        self._labels: Labels = labels_of(schedule, self.time)
        if isinstance(eps, torch.nn.Module):
            eps.eval()  # dropout would make each run different
        parameter = next(eps.parameters(), None) if isinstance(eps, torch.nn.Module) else None
        self._form = Form() if parameter is None else Form(parameter.device, Numbers(parameter.dtype))
        self.reset()

    @property
    def moments(self) -> Gaussian | None:
        """The Gaussian of the data that the field leads to, of a latent model those of its autoencoder; None for none.

        It can be set. `odeddim.load` finds what `odeddim moments` has computed, and an exact field has its own. That of
        a network under no condition does not hold under one: moments that were computed under a condition say so in
        their notes.
        """
        if self._moments is None or self._each is not None:
            return None
        return self._moments if self._moments.notes.get("condition", "") == self.condition.words else None

    @moments.setter
    def moments(self, moments: Gaussian | None) -> None:
        self._moments = moments

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the network; None if it runs in the dtype of the state."""
        return self._form.numbers.dtype

    @property
    def device(self) -> torch.device | None:
        """The device of the network; None if it runs on the device of the state."""
        return self._form.device

    @property
    def keeps_dtype(self) -> bool:
        """Whether the dtype is a fixed part of the network, as in exported programs."""
        return bool(getattr(self.eps, "keeps_dtype", False))

    @property
    def tf32(self) -> bool:
        """Whether a GPU may multiply the network's float32 numbers in TF32."""
        return self._form.numbers.tf32

    @property
    def form(self) -> Form:
        """The form of the network: device, dtype, memory, and whether it is compiled. `to` changes it."""
        return self._form

    @property
    def network(self) -> Callable[..., Tensor]:
        """The network in its form, network(x (B, *), t (B,), *given) -> (B, *). Of two it takes low=True or False."""
        return self._form.of(self.eps)

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype | str | None = None,
        *,
        channels_last: bool | None = None,
        compile: bool | None = None,
    ) -> VectorField:
        """Move the network and the codec to a device, and the network to a dtype and into a form, and its guide too.

        All fields that share the network move together, whatever their conditions.

        Args:
            device: A device of torch, or its name.
            dtype: A dtype of torch, or "float32", "float64", "bfloat16", "float16"; or "tf32" on CUDA, which is
                float32 with products that are several times faster and keep 10 bits; or "autocast-bfloat16",
                "autocast-float16", which are float32 within torch.autocast. By default it stays as it is.
            channels_last: Whether images lie in memory with their channels side by side, which many convolutions are
                faster with. By default it stays as it is. It changes last digits.
            compile: Whether torch compiles the network alone (`torch.compile`), once for each size of batch: give a
                `network_batch`. On CUDA it is replayed as a graph. The first evaluation takes up to minutes, and on a
                CPU it needs a compiler of C++. By default it stays as it is. It changes last digits.

        Returns:
            The field itself.

        Raises:
            InputError: If this machine has no such device, the dtype is not one of a network, or the network has no
                other form.
        """
        place = device_of(device)
        numbers = self._form.numbers if dtype is None else dtype_of(dtype)
        if dtype is not None and numbers.tf32 and place.type != "cuda":
            raise InputError(f"dtype='tf32' needs CUDA, and the device is {place.type}: give dtype='float32'")
        if isinstance(self.eps, torch.nn.Module):
            self.eps.to(device=place, dtype=None if dtype is None else numbers.dtype)
        if self.codec is not None:
            self.codec.to(place)
        self._form.device, self._form.numbers = place, numbers
        self._form.change(self.eps, self.name, channels_last, compile)
        if self.guide is not None:
            self.guide.to(device, dtype, channels_last=channels_last, compile=compile)
        return self

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape (C, H, W) of the network's input, of a convolutional network its own; None if it takes any."""
        return None if self.sizes is None else self.sizes.own

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape (C, H, W) of the images of `shape`: `shape` is that of the codec's data."""
        return self.shape if self.codec is None else self.codec.image_shape

    @property
    def image_sizes(self) -> Sizes | None:
        """The sizes of images that the model takes; None for any. `sizes` are those of the codec's data."""
        if self.codec is None:
            return self.sizes
        return (self.sizes or Sizes(self.codec.image_shape)).of_images(self.codec.image_shape)

    def shape_of_images(self, data: Sequence[int]) -> tuple[int, ...]:
        """The shape of the images of data of a shape.

        Args:
            data: The shape of the data, and so of latents.
        """
        own = self.image_shape
        return tuple(data) if self.codec is None or own is None else counterpart(data, self.shape or tuple(data), own)

    def shape_of_data(self, images: Sequence[int] | None = None) -> tuple[int, ...]:
        """The shape of the data of images of a shape, and so of latents and of noise.

        Args:
            images: The shape (C, H, W) of the images; by default the model's own.

        Raises:
            InputError: If the model makes no such images, or takes any shape and none is given.
        """
        own, sizes = self.image_shape, self.image_sizes
        shape = own if images is None else tuple(images)
        if shape is None or (self.codec is not None and self.shape is None):
            raise InputError(f"the model {self.name!r} takes any shape: say which one with shape=..., (C, H, W)")
        if sizes is not None:
            sizes.check_made(self.name, shape)
        return shape if self.codec is None or own is None or self.shape is None else counterpart(shape, own, self.shape)

    def on_data(self) -> VectorField:
        """This field without its codec, so that a run starts and ends at the data that the ODE moves."""
        if self.codec is None:
            return self
        twin = copy.copy(self)
        twin.codec = None
        return twin

    def reset(self) -> None:
        """Set the counters `nfe`, `rows` and `filled` to 0."""
        self.counts = 0, 0, 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """The counters `nfe`, `rows` and `filled`, which can be set to what they were."""
        return self.nfe, self.rows, self.filled

    @counts.setter
    def counts(self, counts: tuple[int, int, int]) -> None:
        self.nfe, self.rows, self.filled = counts

    def __copy__(self) -> VectorField:
        """A field that shares the network; see `conditioned` and `on_data`."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorField:
        """A field with a copy of the network. `watch` belongs to the caller and is not copied."""
        twin = memo[id(self)] = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "watch": None}, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: everything but `watch`.

        Raises:
            InputError: If a part of the model cannot be pickled.
        """
        parts = {"network": self.eps, "time labels": self._labels, "conditions": self.conditions, "codec": self.codec}
        check_pickles(self.name, parts)
        return {**self.__dict__, "watch": None}

    def relabelled(self, label_at: Callable[[float], float]) -> VectorField:
        """This field with the labels of another noise level: t(label_at(σ)), where all images share σ.

        Much code inverts DDIM in this way, with the next node of the grid: x at the source, the label of the target.

        Args:
            label_at: A function from a noise level to the one whose label is taken.

        Returns:
            A field that shares the network.
        """
        twin = copy.copy(self)
        twin._labels = Relabelled(self._labels, label_at)
        return twin

    def assuming(
        self, *, predicts: str | None = None, schedule: Schedule | None = None, time: Time | None = None
    ) -> VectorField:
        """This field as it would be if its network had been trained under another convention.

        Args:
            predicts, schedule, time: As of the class; what is not given stays. Another schedule has its usual labels.

        Returns:
            A field that shares the network, with counters of its own.

        Raises:
            InputError: If `predicts` or `time` is an unknown name.
        """
        twin = copy.copy(self)
        twin.watch, twin.counts = None, (0, 0, 0)
        twin.predicts = self.predicts if predicts is None else pick(predicts, PREDICTIONS, "prediction")
        if schedule is not None:
            twin.schedule, twin.time = schedule, schedule.time
        if time is not None:
            twin.time = time if callable(time) else pick(time, TIMES, "time label")
        twin._labels = labels_of(twin.schedule, twin.time)
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
        """A field of any network::

            VectorField.from_network(net, Schedule.scaled_linear(), predicts="v")                  # time="index"
            VectorField.from_network(net, Schedule.rectified_flow(), predicts="flow")              # time="unit"
            VectorField.from_network(net, Schedule.rectified_flow(), predicts="flow-to-data", time="reversed")
            VectorField.from_network(denoiser, Schedule.edm(), predicts="x0")                      # D(x, σ)

        Args:
            network: A module or function, network(x (B, *), t (B,)) -> (B, *). Its answer may also be the first element
                of a tuple, or the attribute `sample` of an object.
            schedule, predicts, time: As of the class.
            variances: Whether the second half of the answer's channels are variances, which are left out.
            classes: The number of classes, if the network is called as network(x, t, labels (B,) int64) with labels
                from 0 to classes - 1.
            null: The label that stands for no class, for guidance.
            shape, name, sha256: As of the class.

        Returns:
            The field.

        Raises:
            InputError: If `predicts` or `time` is an unknown name, or `classes` or `null` is outside its range.

        Example:
            >>> network = torch.nn.Conv2d(1, 1, 3, padding=1)
            >>> field = odeddim.VectorField.from_network(
            ...     lambda x, t: network(x), odeddim.Schedule.rectified_flow(), predicts="flow", name="mine"
            ... )
            >>> field
            <VectorField mine: Schedule.rectified_flow(T=1000, σ 0.001 to 999), predicts flow, time unit>
        """
        return cls(
            Adapted(network, variances=variances),
            schedule,
            predicts=predicts,
            time=time,
            shape=shape,
            name=name,
            sha256=sha256,
            conditions=classes_of(classes, null),
        )

    @property
    def title(self) -> str:
        """The name without its folders, and the condition, for the titles of figures."""
        name = PurePath(self.name).name
        return f"{name} ({self.condition.words})" if self.condition.words else name

    def __repr__(self) -> str:
        return f"<VectorField {self.title}: {self.describe()}>"

    def describe(self) -> str:
        """The model in one line: what `load` found in the files, and what it had to assume."""
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
        distilled_guidance: float = 1.0,
        guidance_rescale: float = 0.0,
        guide: VectorField | None = None,
        low_guidance: float | None = None,
    ) -> VectorField:
        """This field under a condition. Both fields share the network.

        Args:
            label: The class.
            prompt: The text.
            negative_prompt: The text that guidance leads away from.
            guidance: The weight w of `odeddim.ode.conditions`; 1 is the condition alone.
            interval: The noise levels (low, high) between which guidance holds; by default all of them.
            distilled_guidance: The weight that a guidance-distilled network, such as Flux's, takes as an input; 1 is
                the condition alone.
            guidance_rescale: How far the guided answer is scaled to the standard deviation of the answer under the
                condition, image by image: φ of arXiv 2305.08891, eq. 15 and 16, from 0 (not at all) to 1.
            guide: The model that guidance leads away from, in place of the network under no condition: one without
                conditions, or a smaller or less trained one (autoguidance, arXiv 2406.02507). It is told the label or
                the prompt too, if it takes any. Shape, schedule, prediction and time labels must be the same.
            low_guidance: The weight w of the network for the lower noise levels, of a model that has two, such as Wan
                2.2; by default `guidance`.

        Returns:
            A field with counters of its own.

        Raises:
            InputError: If the network does not take this condition, or the guide does not fit.

        Example:
            >>> schedule = odeddim.Schedule.edm()
            >>> good = odeddim.VectorField.from_network(lambda x, t: x, schedule, predicts="eps", name="good")
            >>> small = odeddim.VectorField.from_network(lambda x, t: x / 2, schedule, predicts="eps", name="small")
            >>> guided = good.conditioned(guidance=3, guide=small)
            >>> guided(torch.tensor(1.0), torch.ones(1, 1)), guided.rows  # 0.5 + 3·(1 - 0.5)
            (tensor([[2.]]), 2)
        """
        shared = (guidance, interval, distilled_guidance, guidance_rescale, named(guide), low_guidance)
        condition = Condition(label, prompt, negative_prompt, *shared)
        twin = copy.copy(self)
        twin.watch, twin._each, twin.counts = None, None, (0, 0, 0)
        twin.guide = None if guide is None else as_guide(guide, self, condition)
        twin.condition = condition
        twin._given = given_to_all(self.name, self.conditions, condition, twin.guide)
        condition.check_networks(self.name, self.boundary)
        return twin

    def conditioned_each(self, conditions: Sequence[Condition]) -> VectorField:
        """This field under a condition for each image of a batch. Both fields share the network.

        It is called with batches of as many images, in the order of the conditions. Solvers that take images one by
        one, or some of them together, cannot run on it.

        Args:
            conditions: The conditions. They may differ in label and prompt.

        Returns:
            A field with counters of its own, whose `condition` is what all of them share.

        Raises:
            InputError: If the network does not take a condition, or they differ in more.

        Example:
            >>> from odeddim.ode.conditions import Condition
            >>> model = odeddim.VectorField.from_network(
            ...     lambda x, t, label: x - label[:, None], odeddim.Schedule.linear(), classes=3, name="mine"
            ... )
            >>> each = model.conditioned_each([Condition(0), Condition(2)])
            >>> (each(torch.tensor(1.0), torch.zeros(2, 4)))[:, 0].tolist()
            [0.0, -2.0]
        """
        twin = copy.copy(self)
        twin.watch, twin.counts = None, (0, 0, 0)
        twin._each, twin.condition = len(conditions), shared_by(conditions, self.condition)
        twin.condition.check_networks(self.name, self.boundary)
        twin.guide = each_as_guide(self.guide, twin.condition, conditions)
        twin._given = given_to_each(self.name, self.conditions, conditions, twin.condition.guidance, twin.guide)
        return twin

    def count(self, other: VectorField) -> None:
        """Add the counters of another field, which did a part of this one's work."""
        self.nfe, self.rows, self.filled = self.nfe + other.nfe, self.rows + other.rows, self.filled + other.filled

    def check(self, x: Tensor, sizes: Sizes | None = None) -> None:
        """Raise an InputError unless this model takes a batch.

        Args:
            x: The images or latents, (B, *).
            sizes: The sizes of what it is a batch of, `image_sizes`; by default `sizes`, those of the network's input.

        Raises:
            InputError: If the batch is empty, of another shape, or not finite.
        """
        sizes = sizes or self.sizes
        what = "latents" if self.codec is not None and sizes == self.sizes else called(self.image_shape or ())
        check_batch(x, sizes, f"the model {self.name!r} takes {what}")

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        """Evaluate the field.

        Args:
            sigma: The noise levels, () or (B,).
            xbar: x̄, (B, *).

        Returns:
            ε, (B, *), in xbar's dtype.

        Raises:
            InputError: If the network returns another shape, or values that are not finite.
        """
        batch = xbar.shape[0]
        check_each(self.name, self._each, batch)
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        # The label is float32 at least: bfloat16 would round 999 to 1000.
        dtype = self.dtype or xbar.dtype
        t_dtype = torch.promote_types(dtype, torch.float32)
        if sigma.ndim == 0:  # Python numbers need no transfer to the device of the network
            label, scale = self._labels(float(sigma))
            x = (xbar * scale).to(dtype)
            labels = torch.full((batch,), label, dtype=t_dtype, device=xbar.device)
        else:
            x = (xbar * like_images(self.schedule.scale(sigma), xbar)).to(dtype)
            labels = self.schedule.label(sigma, self.time).to(xbar.device, t_dtype, non_blocking=True)
        with products(xbar.device, tf32=self.tf32):
            out = self._under_condition(x, labels, sigma).to(xbar.dtype)
        self.nfe += 1
        if self.watch is not None:
            self.watch(batch)
        check_answer(self.name, out, xbar)
        if self.predicts != "eps":
            # Below σ_1 the network is evaluated at σ_1, so σ_1 is used here too: (x̄ - x0)/σ has no value at σ = 0.
            held = sigma.clamp(min=self.schedule.sigma_min) if self.predicts in HELD else sigma
            if self.predicts == "score":
                out = out * like_images(self.schedule.scale(held), xbar)
            out = PREDICTIONS[self.predicts](out, xbar, like_images(held, xbar))
        if self.notes is not None:
            self.notes.append(torch.isfinite(out.detach().sum()))
        elif not bool(torch.isfinite(out.sum())) and not bool(torch.isfinite(out).all()):
            raise not_finite(self.name, float(sigma.max()), float(labels.max()), self.nfe, xbar)
        return out

    def _under_condition(self, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
        """The network's answer under the condition, at each noise level in its way; labels (B,), sigma () or (B,)."""
        each = () if self._each is None or self._given is None else together(self._given, x)
        ways = ways_at(self.condition, sigma, self.boundary)
        self.rows += sum(way.evaluations * (len(places) or x.shape[0]) for way, places in ways)
        return in_ways(self._evaluate, ways, x, labels, each)

    def _evaluate(self, x: Tensor, labels: Tensor, way: Way, each: Given) -> Tensor:
        size = self.network_batch
        if size is None or size == x.shape[0]:
            return self._network(x, labels, way, each)
        out, filled = in_blocks(
            lambda block, its_labels, *its: self._network(block, its_labels, way, its), x, labels, size, each
        )
        self.filled += filled * way.evaluations
        return out

    def _network(self, x: Tensor, labels: Tensor, way: Way, each: Given) -> Tensor:
        network = self.network if self.boundary is None else functools.partial(self.network, low=way.low)
        if self._given is None:
            if self.conditions is None:
                return network(x, labels)
            self._given = Placed(*self.conditions.given(self.condition))
        given, null = self._given.beside(x)
        if each:
            given, null = each[: len(given)], None if null is None else each[len(given) :]
        if way.weight == 1 or null is None:
            return conditioned_answer(network, x, labels, given)
        guide = None if self.guide is None else self.guide._guiding
        rescale, length = self.condition.guidance_rescale, length_of(self.conditions)
        return guided_answer(network, x, labels, given, null, way.weight, rescale, length, guide)

    def _guiding(self, x: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
        """The network's answer where it guides another one, whose device and dtype the arguments have."""
        own = x.to(self.device, self.dtype)
        each, _ = Placed(given, None).beside(own)
        answer = self._network(own, labels.to(own.device), Way(1.0, low=False), each)
        check_answer(self.name, answer, x)
        return answer.to(x.device)
