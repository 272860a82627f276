"""How long software takes to start: CPU seconds of new processes, to import it and to the first image."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK = f"""
import json, torch
from safetensors.torch import load_file
from odeddim.models.networks.unet import UNet
folder = {str(ROOT / "odeddim" / "data" / "fashion-mnist")!r}
network = UNet(**json.load(open(folder + "/model.json"))["architecture"]).eval()
network.load_state_dict(load_file(folder + "/model.safetensors"))
alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
x = torch.randn(1, 1, 28, 28)
"""
"""The plain network and DDPM's schedule, which all but odeddim are given."""

IMPORTS = {
    "torch": ("odeddim", "import torch"),
    "odeddim": ("odeddim", "import odeddim; odeddim.load, odeddim.sample"),
    "diffusers, DDIMScheduler": ("diffusers", "from diffusers import DDIMScheduler"),
    "diffusers, DDIMPipeline": ("diffusers", "from diffusers import DDIMPipeline"),
    "k-diffusion": ("k-diffusion", "from k_diffusion import external, sampling"),
    "torchdiffeq": ("torchdiffeq", "from torchdiffeq import odeint"),
}
"""What is imported -> the software that it takes, and the script."""

FIRST = {
    "odeddim": "import odeddim; odeddim.sample(1, 'euler', grid='leading', steps=10)",
    "diffusers": """
from diffusers import DDIMScheduler
its = DDIMScheduler(clip_sample=False)
its.set_timesteps(10)
with torch.no_grad():
    for t in its.timesteps:
        x = its.step(network(x, t.expand(1)), t, x).prev_sample
""",
    "k-diffusion": """
from k_diffusion import external, sampling
its = external.DiscreteEpsDDPMDenoiser(network, alphas, quantize=False)
sampling.sample_euler(its, x * its.sigma_max, its.get_sigmas(10), disable=True)
""",
    "torchdiffeq": """
from torchdiffeq import odeint
levels = ((1 - alphas) / alphas).sqrt()
nodes = torch.cat([levels[range(900, -1, -100)], torch.zeros(1)])
def slope(s, x):
    return network(x / (1 + s**2).sqrt(), (levels - s).abs().argmin().expand(1))
with torch.no_grad():
    odeint(slope, x * nodes[0], nodes, method="euler")
""",
}
"""One image by ten of Euler's steps, which are DDIM's."""


def start_up(names: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds "to import" and "to the first image", in rounds of all after one that fills caches and does not count.

    Args:
        names: The software that is here.
        rounds: How often each is started.
    """
    scripts = {("to import", what): script for what, (name, script) in IMPORTS.items() if name in names}
    for name in names:
        scripts["to the first image", name] = FIRST[name] if name == "odeddim" else NETWORK + FIRST[name]
    rows: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds + 1):
        for (kind, what), script in scripts.items():
            spent = seconds(script)
            if turn:
                rows.setdefault(kind, {}).setdefault(what, []).append(spent)
    return rows


def seconds(script: str) -> float:
    """CPU seconds of a new Python that runs a script."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
