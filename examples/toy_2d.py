"""The flow of the ODE in two dimensions: where noise goes when it is decoded. Writes toy_2d.png; no network is needed.

    python examples/toy_2d.py

The data lie along a spiral of 60 small Gaussians, whose ε is known exactly: a field may be any function of σ and x̄.
Left: the paths from noise to data, as a callback sees them. Right: the latents, coloured by where they decode to.
"""

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import Tensor

SPREAD = 0.05  # standard deviation of each Gaussian
angles = torch.linspace(0.5, 3.5, 60) * torch.pi
CENTRES = torch.stack([angles.cos(), angles.sin()], dim=1) * angles[:, None] / 6  # (60, 2)


def shares(sigma: float | Tensor, xbar: Tensor) -> Tensor:
    """How likely each Gaussian is to be the one that a noisy point (B, 2) comes from: (B, 60)."""
    return torch.softmax(-(torch.cdist(xbar, CENTRES) ** 2) / (2 * (SPREAD**2 + sigma**2)), dim=1)


def eps(sigma: Tensor, xbar: Tensor) -> Tensor:
    """A field: ε at the points x̄ (B, 2) and the noise level σ."""
    sigma = sigma.to(xbar)
    return (xbar - shares(sigma, xbar) @ CENTRES) * sigma / (SPREAD**2 + sigma**2)


def main() -> None:
    nodes = torch.cat([torch.zeros(1), torch.logspace(-2, 1.5, 60)])  # from the data at σ = 0 to the noise at σ = 32
    plan = odeddim.Plan(odeddim.solvers.get("unipc-2"), nodes)
    x_T = odeddim.noise(4000, (2,), seed=0)
    path = [x_T]

    def keep(step: int, sigma: float, xbar: Tensor) -> None:
        path.append(xbar / (1 + sigma**2) ** 0.5)  # x: the noise has variance 1 in it, whatever σ is

    data = odeddim.integrate(eps, odeddim.State(x_T * (1 + plan.top**2) ** 0.5, plan.top), plan, callback=keep)
    colours = matplotlib.colormaps["viridis"](shares(0.0, data.xbar).argmax(dim=1).numpy() / 59)
    lines = torch.stack(path)[:, :250].numpy()  # (nodes, 250, 2)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.8), sharex=True, sharey=True, layout="constrained")
    left.set(title="Decoding: from noise (grey) to data", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    left.scatter(*lines[0].T, s=4, color="silver")
    for i in range(lines.shape[1]):
        left.plot(*lines[:, i].T, color=colours[i], linewidth=0.5)
    left.scatter(*lines[-1].T, s=6, color=colours[: lines.shape[1]], zorder=3)
    right.set(title="Latents, by where they decode to", aspect="equal")
    right.scatter(*x_T.T.numpy(), s=3, color=colours)
    figure.savefig("toy_2d.png", dpi=150)
    print(f"toy_2d.png: {len(data)} points, {plan.steps} steps of {plan.solver.name}")


if __name__ == "__main__":
    main()
