"""Provenance: how latents came about, and so how to decode them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.ode.tops import GAUSSIAN
from odeddim.plans import Plan, end_of
from odeddim.types import InputError

MADE_OF_OTHERS = ("interpolate", "shift")
"""The commands that make new latents of others (`Provenance.made_by`)."""
MACHINE = "made_on"
OF_THE_MACHINE = ("device", "network_batch", "threads", "cpu", "onednn", "gpu", "cudnn")
"""The details on which the digits of the latents depend, unless they are portable: then they are kept apart."""

CONDITIONS, WHICH = "conditions", "condition_of_each"
"""The details of images that have a condition each: what these are, and a hash of which image has which."""


@dataclass(frozen=True)
class Provenance:
    """How latents came about, and so how to decode them.

    Attributes:
        model: The name of the model.
        sha256: The hash of the model; "" for exact fields.
        predicts: What the network predicts.
        schedule: The model's schedule, as `Schedule.to_dict` describes it.
        solver: The name of the solver.
        grid: The name of the grid.
        end: Where images lie: "zero", "sigma_min" or "nodes".
        steps: The number of the solver's steps.
        nodes: The hash of the nodes, (S+1,).
        made_by: The command: "encode", "interpolate", "shift", ...; for images "sample" or "decode".
        time: The network's labels, see `odeddim.ode.schedule.TIMES`; "" in files that are older than this field.
        condition: The condition, as `VectorField.conditioned` takes it.
        settings: The settings of the solver.
        versions: The versions of odeddim, PyTorch and Python.
        details: Everything else on which the digits of the latents depend, or that says what they were made of: "top"
            and "moments", the hash of the model's Gaussian, where that carries the last interval. Of portable latents
            "portable", and "made_on", which is not compared.
    """

    model: str
    sha256: str
    predicts: str
    schedule: dict[str, Any]
    solver: str
    grid: str
    end: str
    steps: int
    nodes: str
    made_by: str
    time: str = ""
    condition: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def entries(self) -> dict[str, Any]:
        """All on which the digits of the latents depend, by name: what tells why two files of the same images differ.

        Paths and Python's version are left out; a model and images are told by their hashes, where they have one.
        """
        own = {name: value for name, value in vars(self).items() if not isinstance(value, dict)}
        own["model"] = self.sha256[:12] or self.model
        versions = {key: value for key, value in self.versions.items() if key != "python"}
        details = {**self.details, **self.details.get(MACHINE, {})}
        details.pop(MACHINE, None)
        told = {**own, "schedule": self.schedule, **self.condition, **self.settings, **versions, **details}
        hashes = {
            name: value["sha256"] for name, value in told.items() if isinstance(value, dict) and "sha256" in value
        }
        return {name: value for name, value in {**told, **hashes}.items() if name != "sha256"}

    def unlike(self, other: Provenance) -> dict[str, tuple[Any, Any]]:
        """What differs from another provenance: {entry: (the value here, the value there)}, None for none."""
        here, there = self.entries(), other.entries()
        both = {name: (here.get(name), there.get(name)) for name in (*here, *(key for key in there if key not in here))}
        return {name: values for name, values in both.items() if values[0] != values[1]}

    def check_model(self, model: VectorField, where: str) -> None:
        """Raise an InputError unless the latents belong to a model.

        Args:
            model: The model.
            where: The file of the latents, for messages.

        Raises:
            InputError: If the model has another name, weights, prediction, labels or schedule.
        """
        if model.sha256 != self.sha256 or (not self.sha256 and model.name != self.model):
            if model.name == self.model:
                raise InputError(
                    f"{where} holds latents of model {self.model!r} with the hash {self.sha256[:12]}, but its "
                    f"weights or settings have changed since ({model.sha256[:12]}): give the former one, model=..."
                )
            ours, theirs = _model_words(self.model, self.sha256), _model_words(model.name, model.sha256)
            raise InputError(
                f"{where} holds latents of the model {ours}, not of {theirs}: give the former with model=..."
            )
        is_now = {"predicts": model.predicts, "time": _time_of(model), "schedule": model.schedule.to_dict()}
        was = {"predicts": self.predicts, "time": self.time or is_now["time"], "schedule": self.schedule}
        for key, value in is_now.items():
            if value != was[key]:
                raise InputError(
                    f"{where} was made with {key} {brief(was[key])}, but {self.model!r} now has {brief(value)}: "
                    "restore it in the model's files, or encode again"
                )


def provenance_of(model: VectorField, plan: Plan, made_by: str, **details: Any) -> Provenance:
    """The provenance of what a run makes.

    Args:
        model: The model.
        plan: The plan of the run.
        made_by: The command, see `Provenance`.
        **details: The details, see `Provenance`.

    Returns:
        The provenance.
    """
    import platform

    import odeddim

    if plan.carried:
        details |= {"top": GAUSSIAN, "moments": "" if model.moments is None else model.moments.sha256}
    versions = {"odeddim": odeddim.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if plan.portable:  # the machine is told, but does not matter: a run goes on with any other
        machine = {key: details.pop(key) for key in OF_THE_MACHINE if key in details}
        details |= {"portable": True, MACHINE: {**machine, "torch": versions.pop("torch")}}
    return Provenance(
        model=model.name,
        sha256=model.sha256,
        predicts=model.predicts,
        schedule=model.schedule.to_dict(),
        solver=plan.solver.name,
        grid=plan.grid,
        end=end_of(plan.nodes, model.schedule),
        steps=len(plan.nodes) - 1 - plan.carried,
        nodes=digest(plan.nodes),
        made_by=made_by,
        time=_time_of(model),
        condition=model.condition.to_dict(),
        settings=plan.settings,
        versions=versions,
        details={**details, **({"start": plan.start} if plan.start else {})},
    )


def _time_of(model: VectorField) -> str:
    return model.time if isinstance(model.time, str) else "a function"


def digest(nodes: Tensor) -> str:
    """The hash of a list of noise levels."""
    return sha256_of(str(nodes.tolist()))


def sha256_of(words: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(words.encode()).hexdigest()


def brief(value: Any) -> str:
    """A setting in words, without the numbers of a list."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {brief(item)}" for key, item in value.items())
    return f"of {len(value)} numbers" if isinstance(value, list) else str(value)


def _model_words(name: str, sha256: str) -> str:
    return f"{name!r} (weights {sha256[:12]})" if sha256 else repr(name)
