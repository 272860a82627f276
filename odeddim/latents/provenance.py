"""Provenance: how latents came about, and so how to decode them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.plans import Plan, end_of
from odeddim.types import InputError

MADE_OF_OTHERS = ("interpolate", "shift")
"""What makes new latents of others (`Provenance.made_by`)."""


@dataclass(frozen=True)
class Provenance:
    """How latents came about, and so how to decode them. nodes: the hash of the (S+1,) noise levels walked."""

    model: str
    sha256: str
    predicts: str
    schedule: dict[str, Any]
    solver: str
    grid: str
    end: str
    steps: int
    nodes: str
    made_by: str  # the command: "encode", "interpolate", "shift", ...; of images "sample" or "decode"
    time: str = ""  # the network's labels, see `odeddim.ode.schedule.TIMES`; "" in files from before there was a choice
    condition: dict[str, Any] = field(default_factory=dict)  # of `VectorField.conditioned`
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def check_model(self, model: VectorField, where: str) -> None:
        """Raise an InputError unless `model` is the one these latents belong to."""
        if model.sha256 != self.sha256 or (not self.sha256 and model.name != self.model):
            if model.name == self.model:
                raise InputError(
                    f"{where} holds latents of {self.model!r} as it was ({self.sha256[:12]}): its weights or settings "
                    f"have been changed since ({model.sha256[:12]}); give the model that it was with model=..."
                )
            ours, theirs = _model_words(self.model, self.sha256), _model_words(model.name, model.sha256)
            raise InputError(f"{where} holds latents of the model {ours}, not of {theirs}: give it as model=...")
        is_now = {"predicts": model.predicts, "time": _time_of(model), "schedule": model.schedule.to_dict()}
        was = {"predicts": self.predicts, "time": self.time or is_now["time"], "schedule": self.schedule}
        for key, value in is_now.items():
            if value != was[key]:
                raise InputError(
                    f"{where} was made with {key} {_brief(was[key])}, but now {self.model!r} has {_brief(value)}: "
                    "change that back in the model's files, or encode again"
                )


def provenance_of(model: VectorField, plan: Plan, made_by: str, **details: Any) -> Provenance:
    """The provenance of latents of this model that a run of this plan makes."""
    import platform

    import odeddim

    versions = {"odeddim": odeddim.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return Provenance(
        model=model.name,
        sha256=model.sha256,
        predicts=model.predicts,
        schedule=model.schedule.to_dict(),
        solver=plan.solver.name,
        grid=plan.grid,
        end=end_of(plan.nodes, model.schedule),
        steps=len(plan.nodes) - 1,
        nodes=digest(plan.nodes),
        made_by=made_by,
        time=_time_of(model),
        condition=model.condition.to_dict(),
        settings=plan.settings,
        versions=versions,
        details=details,
    )


def _time_of(model: VectorField) -> str:
    return model.time if isinstance(model.time, str) else "a function"


def digest(nodes: Tensor) -> str:
    """The hash of a list of noise levels."""
    return sha256_of(str(nodes.tolist()))


def sha256_of(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def _brief(value: Any) -> str:
    """A setting, without the numbers of a long list."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(item)}" for key, item in value.items())
    return f"of {len(value)} numbers" if isinstance(value, list) else str(value)


def _model_words(name: str, sha256: str) -> str:
    return f"{name!r} (weights {sha256[:12]})" if sha256 else repr(name)
