"""Other libraries' names lead to ours: in Python and on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import command

import odeddim
from odeddim import InputError, foreign_names, solvers
from odeddim.ode import devices, grids, predictions, schedule
from odeddim.train.loss import OBJECTIVES

OURS = {
    "solver": solvers.names(),
    "prediction": predictions.PREDICTIONS,
    "prediction to train": OBJECTIVES,
    "grid": grids.NAMES,
    "time label": schedule.TIMES,
    "schedule": schedule._MADE_BY,
    "dtype": devices.DTYPES,
    "condition": ("label", "prompt", "negative_prompt", "guidance", "interval", "guidance_rescale", "guide"),
}


def test_a_method_that_is_no_grid_leads_to_its_function() -> None:
    with pytest.raises(InputError, match=r"unknown grid.* 'GITS'; GITS chooses .*: odeddim.gits_plan\(solver, steps\)"):
        odeddim.plan(steps=5, grid="GITS")


@pytest.mark.parametrize("what", foreign_names._TABLE)
def test_the_table_leads_to_names_that_exist(what: str) -> None:
    """And its own names are not ours: they would never be asked for. What is no name of ours has a note."""
    for names, (ours, note) in foreign_names._TABLE[what].items():
        if what != "prediction to train":
            assert ours in OURS[what] if ours else note, names
        for name in names.split(", "):
            assert name not in OURS[what], name


SOLVERS = {
    "euler": ("ddim", "DDIMScheduler", "DDIM", "EulerDiscreteScheduler", "sample_euler", "Euler"),
    "heun": ("HeunDiscreteScheduler", "sample_heun"),
    "dpm-solver-2": ("KDPM2DiscreteScheduler", "sample_dpm_2"),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", "dpmpp_2m", "sample_dpmpp_2m", "DPM++ 2M", "DPM++ 2M Karras"),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler",),
    "ab2": ("DEISMultistepScheduler",),
    "lms": ("LMSDiscreteScheduler", "sample_lms", "LMS"),
    "unipc-2": ("UniPCMultistepScheduler", "UniPC", "uni_pc"),
    "pndm": ("PNDMScheduler",),
    "ipndm": ("IPNDMScheduler",),
    "ddpm": ("DDPMScheduler", "sample_euler_ancestral", "Euler a"),
    "dpm-solver-fast": ("sample_dpm_fast",),
    "scipy-dop853": ("DOP853",),
    "adaptive-heun": ("adaptive_heun",),
}
"""Ours -> theirs; `tests/solvers/test_diffusers.py` compares the two point by point."""


@pytest.mark.parametrize("theirs", [name for names in SOLVERS.values() for name in names])
def test_solvers(theirs: str) -> None:
    (ours,) = (name for name, names in SOLVERS.items() if theirs in names)
    with pytest.raises(InputError, match=f"^unknown solver .*; here it is '{ours}'") as caught:
        solvers.get(theirs)
    assert ("grid='karras'" in str(caught.value)) == ("Karras" in theirs)


X = torch.zeros(1, 1, 4, 4)


def made(**how: Any) -> Callable[[], Any]:
    return lambda: odeddim.VectorField.from_network(lambda x, t: x, odeddim.Schedule.linear(), **how)


def solved(**how: Any) -> Callable[[], Any]:
    return lambda: odeddim.solve(X, model="exact-gaussian", **how)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (made(predicts="epsilon"), "here it is 'eps'"),
        (made(predicts="v_prediction"), "here it is 'v'"),
        (made(predicts="sample"), "here it is 'x0'"),
        (made(time="timesteps"), "here it is 'index'"),
        (solved(grid="exponential"), "here it is 'log'"),
        (solved(num_inference_steps=20), "no setting 'num_inference_steps' .*: here it is steps=..."),
        (solved(guidance_scale=5), "here it is guidance=..., an argument of VectorField.conditioned"),
        (solved(solver="euler", eta=0.5), "a setting of solvers that add noise, such as 'ddim-eta'"),
        (solved(timestep_spacing="leading"), "here it is grid=..."),
        (lambda: odeddim.load("exact-gaussian", dtype="fp16"), "here it is 'float16'"),
        (lambda: odeddim.Schedule.from_dict({"name": "squaredcos_cap_v2"}), "here it is 'cosine'"),
        (
            lambda: odeddim.jobs.sample(
                1, "never", model=odeddim.jobs.Subject("exact-gaussian", {"guidance_scale": 2.0})
            ),
            "unknown condition 'guidance_scale'; here it is 'guidance'",
        ),
    ],
)
def test_names_and_arguments(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_a_scheduler_as_solver() -> None:
    class DPMSolverMultistepScheduler: ...

    with pytest.raises(InputError, match="not a DPMSolverMultistepScheduler: here it is 'dpmpp-2m'"):
        odeddim.plan("exact-gaussian", DPMSolverMultistepScheduler())  # type: ignore[arg-type]


def test_what_is_unknown_everywhere_gets_its_neighbours() -> None:
    with pytest.raises(InputError, match="did you mean heun"):
        solvers.get("heunn")
    with pytest.raises(InputError, match=r"no setting 'gama' \(its settings and defaults: gamma = [0-9.]+\)$"):
        solvers.get("bdia").with_settings(gama=1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("encode --solver ddim -o z.h5", "here it is 'euler'"),
        ("encode --num-inference-steps 20 -o z.h5", "No such option '--num-inference-steps'. Here it is --steps."),
        ("sample 2 --guidance-scale 5 -o out", "Here it is --guidance."),
        ("encode --model exact-gaussian --set num_inference_steps=20 -o z.h5", "here it is --steps"),
    ],
)
def test_the_command_line(words: str, says: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = " ".join(command(*words.split(), code=2).split())
    assert re.sub(r"[':.]", "", says) in re.sub(r"[':.]", "", said)  # which click sets otherwise in each version


def test_an_option_that_the_command_does_not_have_is_not_named() -> None:
    assert "Here it is" not in command("merge", "--guidance-scale", "5", code=2)
