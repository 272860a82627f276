"""Names that other libraries have for what odeddim has under another name, for the messages about unknown names.

diffusers, k-diffusion, Stable Diffusion's web interfaces, torchdiffeq and SciPy are covered. A name is a hint and no
alias: the thing may differ in a setting or a grid, which the user should choose knowingly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANCESTRAL = "the noise of ancestral steps is DDIM's η = 1"
_SOLVERS = {
    "ddim, DDIMInverse, DDIMParallel, FlowMatchEulerDiscrete, EulerDiscrete, EDMEuler, flow_euler": (
        "euler",
        "DDIM is Euler's method in σ; encoding is the same solver on rising σ",
    ),
    "DDPMParallel, ancestral": ("ddpm", "DDIM with η = 1"),
    "euler_a, euler_ancestral, EulerAncestralDiscrete": ("ddpm", _ANCESTRAL),
    "ddim_eta": ("ddim-eta", ""),
    "er_sde, er_sde_solver": ("er-sde-3", "through two points it is 'er-sde-2'"),
    "SASolver, sa_solver_pece": ("sa-solver", ""),
    "HeunDiscrete, FlowMatchHeunDiscrete, edm, edm_heun": ("heun", ""),
    "dpm_2, KDPM2Discrete, dpm2, dpm_solver, dpmsolver": ("dpm-solver-2", ""),
    "dpm_fast": ("dpm-solver-fast", ""),
    "dpm_adaptive": ("dpm-solver-23", ""),
    "DPMSolverMultistep, DPMSolverMultistepInverse, EDMDPMSolverMultistep, dpmpp, dpm_solver_pp, dpmsolver++, dpm++": (
        "dpmpp-2m",
        "of order 3 it is 'dpmpp-3m'",
    ),
    "DPMSolverSinglestep": ("dpmpp-2s", "of DPM-Solver's order 3 it is 'dpm-solver-3'"),
    "dpmpp_2s_ancestral, dpmpp_2s_a, dpm++_2s_a": ("dpmpp-2s", "without its noise"),
    "dpmpp_2m_sde, dpmpp_sde, DPMSolverSDE, dpmpp_2m_sde_gpu": ("dpmpp-2m", "without its noise"),
    "dpmpp_3m_sde": ("dpmpp-3m", "without its noise"),
    "deis, DEISMultistep, deis_logrho": ("ab2", "DEIS in log ρ; those in t and ρ are 'deis-tab3' and 'deis-rhoab3'"),
    "LMSDiscrete, klms": ("lms", ""),
    "UniPCMultistep, uni_pc, unipc, uni_pc_bh2": ("unipc-2", "of order 3 it is 'unipc-3'"),
    "uni_pc_bh1": ("unipc-2-bh1", ""),
    "PNDM": ("pndm", "without its Runge-Kutta steps it is 'plms'"),
    "f_pndm": ("pndm", ""),
    "s_pndm": ("plms", ""),
    "ode45, RK45": ("dopri5", "SciPy's own is 'scipy-rk45'"),
    "RK23": ("bosh3", ""),
    "DOP853": ("scipy-dop853", ""),
    "LSODA, odeint": ("scipy-lsoda", ""),
    "Radau": ("scipy-radau", ""),
    "BDF": ("scipy-bdf", ""),
    "tsit5": ("tsit5-per-image", ""),
    "explicit midpoint": ("midpoint", ""),
    "rf_solver": ("midpoint", "in σ; with its middle slope kept for the next step it is 'midpoint-reuse'"),
    "fireflow": ("midpoint-reuse", ""),
    "pfdiff": ("midpoint-reuse", "much alike"),
    "uniinv, UniInvDDIM, UniInvEuler": ("uni-inv", "in its form for flow models"),
    "res, res_multistep": ("res-2m", ""),
    "abnorsett_2m": ("res-2m", "with the weights of any steps"),
    "abnorsett_3m": ("res-3m", "with the weights of any steps"),
    "res_2s": ("dpmpp-2s", "whose weights differ"),
    "stork": ("stork-2", "of order 4 it is 'stork-4'"),
    "rex": ("mf-data-euler", "in data prediction; of other tableaus 'mf-data-rk4'; in noise prediction 'mf-euler'"),
}
_PREDICTIONS = {
    "epsilon, noise, pred_noise, eps_pred, pred_eps": ("eps", ""),
    "sample, original_sample, x_0, pred_x0, start_x, x_start, data, denoiser": ("x0", "the predicted image"),
    "v_prediction, velocity, v_pred, pred_v": ("v", "the velocity ε - x0 of a flow is 'flow'"),
    "flow_prediction, rectified_flow, flow_matching, u": ("flow", "ε - x0; with the noise at t = 0 'flow-to-data'"),
}
_GRIDS = {
    "uniform, uniform_timesteps, ddim, normal, time_uniform": ("linear", "even in the index of the level"),
    "quad": ("quadratic", ""),
    "exponential, logsnr, log_snr, loglinear, use_exponential_sigmas": ("log", "even in log σ"),
    "use_karras_sigmas": ("karras", ""),
    "optimized, dm_nonuniform": ("xue", "for latent models 'xue:2'"),
    "align_your_steps": ("ays", "with the model's list, as in 'ays:sdxl'"),
    "simple, sgm_uniform": ("trailing", ""),
    "shift, flow_shift, use_flow_sigmas": ("flow", "with the shift, as in 'flow:3'"),
    "gits": ("", "GITS chooses nodes for each model: odeddim.gits_plan(solver, steps) makes a plan with them"),
}
_TABLE = {
    "solver": _SOLVERS,
    "prediction": _PREDICTIONS,
    "prediction to train": _PREDICTIONS,
    "grid": _GRIDS,
    "time label": {
        "timestep, timesteps, t": ("index", "0 to T - 1"),
        "continuous": ("unit", "0 to 1"),
        "sigmas": ("sigma", ""),
        "c_noise": ("log-sigma", "ln(σ)/4"),
    },
    "schedule": {
        "squaredcos_cap_v2": ("cosine", ""),
        "ddpm, vp": ("linear", ""),
        "stable_diffusion, ldm": ("scaled_linear", ""),
        "flow, flow_matching": ("rectified_flow", ""),
        "ve": ("exploding", ""),
        "karras": ("edm", ""),
    },
    "dtype": {
        "fp32, single, full, no": ("float32", ""),
        "fp16, half": ("float16", ""),
        "bf16": ("bfloat16", ""),
        "fp64, double": ("float64", ""),
    },
    "condition": {
        "guidance_scale, cfg, cfg_scale, w, scale": ("guidance", ""),
        "class_labels, class_label, class, y": ("label", ""),
        "text": ("prompt", ""),
        "guidance_interval": ("interval", ""),
        "cfg_rescale, rescale_cfg": ("guidance_rescale", ""),
        "gnet": ("guide", ""),
    },
}
"""What a name is of, as `odeddim.types.pick` is told -> their names -> ours, and a note."""

_ARGUMENTS = {
    "num_inference_steps, num_steps, n_steps, num_sampling_steps, sample_steps, ddim_steps, timestep_respacing": (
        "steps",
        "",
    ),
    "guidance_scale, cfg, cfg_scale, true_cfg_scale": (
        "guidance",
        "an argument of VectorField.conditioned; what Flux.1 dev takes as an input is distilled_guidance",
    ),
    "guidance_scale_2": ("low_guidance", "an argument of VectorField.conditioned"),
    "scheduler, sampler, sampler_name, method": ("solver", ""),
    "timestep_spacing, timestep_type, timesteps, sigmas, skip_type, schedule": ("grid", ""),
    "use_karras_sigmas": ("grid", "with the value 'karras'"),
    "shift, flow_shift": ("grid", "with the value 'flow:SHIFT'"),
    "generator, manual_seed": ("seed", ""),
    "num_images_per_prompt, num_images, num_samples, n_samples": ("count", "in odeddim.sample the first argument"),
    "torch_dtype": ("dtype", "an argument of odeddim.load"),
    "prediction_type, parameterization, model_type": ("predicts", "an argument of VectorField.from_network"),
    "class_labels, class_label": ("label", "an argument of VectorField.conditioned"),
    "cfg_rescale, rescale_cfg": ("guidance_rescale", "an argument of VectorField.conditioned"),
    "gnet": ("guide", "an argument of VectorField.conditioned"),
    "prompt, negative_prompt, label, guidance, guidance_rescale, guide, low_guidance": (
        "",
        "an argument of VectorField.conditioned",
    ),
    "eta": ("", "a setting of solvers that add noise, such as 'ddim-eta', and an argument of odeddim.sample"),
    "tau, tau_func": ("eta", "the amount of noise of a solver that adds some; τ of 'sa-solver'"),
}
"""Their arguments -> ours, and a note; "" for one of the same name in another place."""


def _plain(name: str) -> str:
    """A name without what libraries write differently: "sample_dpmpp_2m" and "DPM++ 2M" are "dpmpp2m"."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))
    return re.sub(r"^sample(?=.)|(?<=.)scheduler$", "", plain)


def _by_plain_name(table: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    return {_plain(name): found for names, found in table.items() for name in names.split(", ")}


_KNOWN = {what: _by_plain_name(table) for what, table in _TABLE.items()}
_KNOWN_ARGUMENTS = _by_plain_name(_ARGUMENTS)


def hint(what: str, name: str, choices: Sequence[str]) -> str:
    """What odeddim calls something that another library calls `name`.

    Args:
        what: What the name is of, such as "solver".
        name: The other library's name.
        choices: Our names.

    Returns:
        A clause such as "here it is 'euler' (DDIM is ...)"; "" if nothing is known of the name.
    """
    known, plain = _KNOWN.get(what.partition(" (")[0]), _plain(name)
    if known is None:
        return ""
    bare = plain.removesuffix("karras") if what == "solver" else plain
    ours, note = next(((own, "") for own in choices if _plain(own) == bare), known.get(bare, ("", "")))
    if ours not in choices:
        return "" if ours else note
    words = "; ".join(each for each in (note, "" if bare == plain else "with grid='karras'") if each)
    return f"here it is {ours!r} ({words})" if words else f"here it is {ours!r}"


def argument(name: str) -> tuple[str, str]:
    """Our argument for one that another library calls `name`, and a note; two empty texts if nothing is known."""
    return _KNOWN_ARGUMENTS.get(_plain(name), ("", ""))


def argument_hint(name: str) -> str:
    """What odeddim calls an argument of another library, as a clause; "" if nothing is known of the name."""
    ours, note = argument(name)
    if not ours:
        return f"{name} is {note}" if note else ""
    return f"here it is {ours}=...{f', {note}' if note else ''}"
